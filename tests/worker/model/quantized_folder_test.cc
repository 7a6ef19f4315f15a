// SPDX-License-Identifier: Apache-2.0
// Quantised folders on a CPU: each computes what the weights that it stands for compute, on any
// number of ranks; wrong ones are refused by the names of their tensors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/worker/model/quantized_folder.h"
#include "tests/worker/model/rank_group.h"
#include "tests/worker/model/relative_error.h"
#include "worker/model/config_json.h"
#include "worker/model/gather_quantized.h"
#include "worker/model/model_source.h"
#include "worker/model/quantization_config.h"
#include "worker/model/weight_memory.h"

namespace rempart::worker {
namespace {

using kernels::DType;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct Case {
  const char* name;
  FolderLayout layout;
  int64_t group;
  DType expanded;   // on a CPU
  double rounding;  // of its weights there
};

// BF16 has eight bits.
constexpr double kBf16 = 5e-3, kNone = 1e-5;

const std::vector<Case>& Cases() {
  static const auto* cases = new std::vector<Case>{
      {"fp8_blocks", FolderLayout::kFp8Blocks, 0, DType::kBF16, kBf16},
      {"fp8_rows", FolderLayout::kFp8Rows, 0, DType::kBF16, kBf16},
      {"fp8_tensor", FolderLayout::kFp8Tensor, 0, DType::kBF16, kBf16},
      {"int8_rows", FolderLayout::kInt8Rows, 0, DType::kQ8_0, kNone},
      {"awq_128", FolderLayout::kAwq, 128, DType::kQ5_0, kNone},
      {"awq_32", FolderLayout::kAwq, 32, DType::kQ5_0, kNone},
      {"gptq_64", FolderLayout::kGptq, 64, DType::kQ4_0, kNone},
      {"gptq_whole_columns", FolderLayout::kGptq, -1, DType::kQ4_0, kNone},
      {"gptq_v2_128", FolderLayout::kGptqV2, 128, DType::kQ5_0, kNone},
      {"gptq_act_order", FolderLayout::kGptqActOrder, 64, DType::kBF16, kBf16},
      {"packed_128", FolderLayout::kPacked, 128, DType::kQ4_0, kNone},
      {"packed_zeros_32", FolderLayout::kPackedZeros, 32, DType::kQ5_0, kNone},
  };
  return *cases;
}

std::string FolderName() {
  static int next = 0;
  return absl::StrCat("/tmp/rempart_quantized_", getpid(), "_", ++next, "/");
}

class QuantizedFolders : public ::testing::TestWithParam<Case> {};

TEST_P(QuantizedFolders, ComputeWhatTheirWeightsStandFor) {
  const QuantizedFolder folder(FolderName(), GetParam().layout, GetParam().group);
  const auto source = OpenModel(folder.folder());
  ASSERT_TRUE(source.ok()) << source.status();
  const std::vector<Step> steps = Steps(QuantizedFolder::kVocabulary);
  Rank plain(folder.dequantized(), source->config, kernels::BestOps(), true, {});
  ASSERT_NE(plain.transformer, nullptr);
  const std::vector<float> expected = Compute(*plain.transformer, steps, 0);
  for (const bool exact : {true, false}) {
    Rank quantized(source->tensors, source->config, kernels::BestOps(), exact, {});
    ASSERT_NE(quantized.transformer, nullptr);
    const Matrix& query = quantized.weights.layers[0].query;
    EXPECT_EQ(query.view.type, GetParam().expanded);
    // Int8 activations change logits by a percent or so.
    EXPECT_LT(RelativeError(Compute(*quantized.transformer, steps, 0), expected),
              exact ? GetParam().rounding : 0.03)
        << (exact ? "exact" : "fast");
    // What is packed is not kept as it was expanded, too.
    EXPECT_EQ(query.packed == nullptr, query.view.data != nullptr);
  }
}

TEST_P(QuantizedFolders, AreTheSameOnTwoRanks) {
  const QuantizedFolder folder(FolderName(), GetParam().layout, GetParam().group);
  const auto source = OpenModel(folder.folder());
  ASSERT_TRUE(source.ok()) << source.status();
  ExpectSameOnAllShapes(source->tensors, source->config, {{2, 1, 0}, {1, 2, 0}});
}

INSTANTIATE_TEST_SUITE_P(All, QuantizedFolders, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return std::string(info.param.name); });

// Of the ranks of one process, before and after they have copied.
struct Counted {
  WeightMemory memory;
  int64_t packed = 0;
  int64_t expanded = 0;
};

Counted CountAndCopy(const ModelSource& source, bool pack, int size) {
  Counted counted;
  const PackOptions options = {.pack = pack};
  const kernels::Ops& ops = kernels::BestOps();
  ThreadPool pool({.threads = 1});
  std::vector<Weights> ranks;
  for (int rank = 0; rank < size; ++rank) {
    auto bound = BindTensors(source.tensors, source.config, ops, PositionOf(rank, size, 1));
    EXPECT_TRUE(bound.ok()) << bound.status();
    ranks.push_back(*std::move(bound));
  }
  std::vector<Weights*> pointers;
  for (Weights& weights : ranks) pointers.push_back(&weights);
  counted.memory = MemoryOf(ops, options, pointers);
  for (Weights& weights : ranks) {
    EXPECT_TRUE(CopyWeights(ops, options, pool, weights).ok());
    counted.packed += static_cast<int64_t>(weights.packed.bytes().size());
    counted.expanded += static_cast<int64_t>(weights.expanded.bytes().size());
  }
  return counted;
}

// Codes that are expanded are read no more, so they do not count.
TEST(QuantizedMemory, CountsWhatIsMadeAndWhatStaysInTheFile) {
  constexpr int64_t kMatrices = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 384 * 256);
  constexpr int64_t kPlain = 2 * 2 * 96 * 256;  // embedding and head, in BF16
  constexpr int64_t kNorms = 4 * 256 * (2 * 2 + 1);
  for (const Case& each : Cases()) {
    const QuantizedFolder folder(FolderName(), each.layout, each.group);
    const auto source = OpenModel(folder.folder());
    ASSERT_TRUE(source.ok()) << source.status();
    const int64_t made = kernels::RowBytes(each.expanded, 256) * kMatrices / 256;
    const Counted exact = CountAndCopy(*source, false, 1);
    EXPECT_EQ(exact.expanded, made) << each.name;
    for (const bool pack : {false, true}) {
      for (const int ranks : {1, 2}) {
        const Counted counted = CountAndCopy(*source, pack, ranks);
        EXPECT_EQ(counted.memory.expanded, counted.expanded) << each.name;
        EXPECT_EQ(counted.memory.repacked, counted.packed) << each.name;
        EXPECT_FALSE(counted.memory.repacked_is_kept) << each.name;
        EXPECT_NEAR(static_cast<double>(counted.memory.in_file),
                    static_cast<double>(kPlain + ranks * kNorms), 8.0 * 1024)
            << each.name << " on " << ranks << " ranks: biases";
        const bool packs = pack && counted.packed > 0;
        // The largest of the matrices is of the FFN.
        EXPECT_EQ(counted.memory.scratch,
                  packs ? kernels::RowBytes(each.expanded, 256) * 384 / ranks : 0)
            << each.name << " on " << ranks;
      }
    }
  }
}

// 130 x 144 codes of 1, in four blocks.
TEST(QuantizedBlocks, AreShorterAtTheEdges) {
  const std::vector<uint8_t> codes(130 * 144, 0x38);
  const std::vector<float> scales = {1, 2, 4, 8};
  TensorMap tensors;
  tensors["q.weight"] = {"q.weight",   DType::kF32, {130, 144},
                         codes.data(), 130 * 144,   TensorElements::kFP8};
  tensors["q.weight_scale_inv"] = {"q.weight_scale_inv",
                                   DType::kF32,
                                   {2, 2},
                                   reinterpret_cast<const uint8_t*>(scales.data()),
                                   16};
  ASSERT_TRUE(GatherQuantized({.fp8 = true, .fp8_blocks = true}, tensors).ok());
  const QuantizedMatrix& matrix = *tensors.at("q.weight").quantized;
  EXPECT_EQ(matrix.scheme, QuantizedScheme::kFP8Blocks);
  std::vector<uint16_t> values(130 * 144);
  Expand({matrix, 0, 130, 0, 144}, values.data());
  const auto at = [&](int64_t row, int64_t col) {
    return kernels::BFloat16ToFloat(values[row * 144 + col]);
  };
  EXPECT_EQ(at(0, 0), 1);
  EXPECT_EQ(at(127, 127), 1);
  EXPECT_EQ(at(0, 128), 2);
  EXPECT_EQ(at(128, 0), 4);
  EXPECT_EQ(at(129, 143), 8);
  std::vector<uint16_t> corner(2 * 16);
  Expand({matrix, 127, 2, 120, 16}, corner.data());
  EXPECT_EQ(kernels::BFloat16ToFloat(corner[7]), 1);
  EXPECT_EQ(kernels::BFloat16ToFloat(corner[8]), 2);
  EXPECT_EQ(kernels::BFloat16ToFloat(corner[31]), 8);
}

struct Wrong {
  const char* name;
  FolderLayout layout;
  std::function<void(QuantizedFolder&)> spoil;
  std::vector<std::string> words;  // of the message
};

constexpr char kUp[] = "model.layers.1.mlp.up_proj";

StoredTensor& Part(QuantizedFolder& folder, const std::string& suffix) {
  return folder.tensors.at(kUp + suffix);
}

std::vector<Wrong> WrongCodesOfEightBits() {
  using L = FolderLayout;
  return {
      {"no_scale",
       L::kFp8Rows,
       [](auto& f) { f.tensors.erase(absl::StrCat(kUp, ".weight_scale")); },
       {"model.layers.1.mlp.up_proj.weight_scale is missing", "download it again"}},
      {"too_few_scales",
       L::kFp8Rows,
       [](auto& f) {
         Part(f, ".weight_scale") = {"BF16", {96, 1}, std::string(192, 'a')};
       },
       {"up_proj.weight_scale is [96, 1]; scales of model.layers.1.mlp.up_proj.weight [384, 256] "
        "are [1], [384, 1]"}},
      {"blocks_of_another_shape",
       L::kFp8Blocks,
       [](auto& f) {
         Part(f, ".weight_scale_inv").shape = {2, 3};
       },
       {"up_proj.weight_scale_inv is [2, 3]", "or [3, 2]"}},
      {"a_scale_that_is_no_number",
       L::kFp8Tensor,
       [](auto& f) { Part(f, ".weight_scale").bytes = std::string("\x00\x00\xc0\x7f", 4); },
       {"up_proj.weight_scale: scale 0 is not a finite number"}},
      {"scales_that_are_codes",
       L::kFp8Rows,
       [](auto& f) {
         Part(f, ".weight_scale") = {"I8", {384, 1}, std::string(384, 'a')};
       },
       {"up_proj.weight_scale holds scales: they must be F32, BF16 or F16"}},
      {"many_input_scales",
       L::kFp8Tensor,
       [](auto& f) {
         Part(f, ".input_scale") = {"F32", {2}, std::string(8, 'a')};
       },
       {"up_proj.input_scale is [2]; it must be one number"}},
      {"a_quantised_vector",
       L::kFp8Rows,
       [](auto& f) {
         f.tensors["model.norm.weight"] = {"F8_E4M3", {256}, std::string(256, 'a')};
       },
       {"model.norm.weight [256] is quantised; only matrices are served so"}},
      {"a_quantised_norm",
       L::kFp8Rows,
       [](auto& f) {
         f.tensors["model.norm.weight"] = {"F8_E4M3", {1, 256}, std::string(256, 'a')};
         f.tensors["model.norm.weight_scale"] = {"BF16", {1}, std::string(2, 'a')};
       },
       {"model.norm.weight is quantised", "F32, F16 and BF16 alone"}},
      {"a_quantised_embedding",
       L::kFp8Rows,
       [](auto& f) {
         f.tensors["model.embed_tokens.weight"] = {
             "F8_E4M3", {96, 256}, std::string(96 * 256, 'a')};
         f.tensors["model.embed_tokens.weight_scale"] = {"BF16", {96, 1}, std::string(192, 'a')};
       },
       {"model.embed_tokens.weight is quantised, and embeddings are served in"}},
  };
}

std::vector<Wrong> WrongCodesOfFourBits() {
  using L = FolderLayout;
  return {
      {"codes_that_are_no_words",
       L::kAwq,
       [](auto& f) {
         Part(f, ".qweight") = {"I8", {256, 48}, std::string(256 * 48, 'a')};
       },
       {"up_proj.qweight is [256, 48]; it must be a matrix of I32"}},
      {"codes_of_another_shape",
       L::kAwq,
       [](auto& f) {
         for (const char* part : {".qweight", ".qzeros", ".scales"}) {
           StoredTensor& tensor = Part(f, part);
           tensor.shape[1] /= 2;
           tensor.bytes.resize(tensor.bytes.size() / 2);
         }
       },
       {"blk.1.ffn_up.weight is [192, 256] instead of [384, 256]"}},
      {"no_zeros",
       L::kAwq,
       [](auto& f) { f.tensors.erase(absl::StrCat(kUp, ".qzeros")); },
       {"model.layers.1.mlp.up_proj.qzeros is missing"}},
      {"zeros_of_another_shape",
       L::kGptq,
       [](auto& f) {
         Part(f, ".qzeros").shape = {48, 2};
       },
       {"up_proj.qzeros is [48, 2] instead of [2, 48]"}},
      {"zeros_of_another_type",
       L::kGptq,
       [](auto& f) { Part(f, ".qzeros").dtype = "F32"; },
       {"up_proj.qzeros has another dtype", "I32"}},
      {"scales_of_another_shape",
       L::kPacked,
       [](auto& f) {
         Part(f, ".weight_scale").shape = {2, 384};
       },
       {"up_proj.weight_scale is [2, 384] instead of [384, 2]"}},
      {"a_group_that_is_not_there",
       L::kGptqActOrder,
       [](auto& f) {
         Part(f, ".g_idx").bytes.replace(4 * 7, 4, std::string("\x02\x00\x00\x00", 4));
       },
       {"up_proj.g_idx: entry 7 is 2, but model.layers.1.mlp.up_proj has 2 groups"}},
      {"a_negative_group",
       L::kGptqActOrder,
       [](auto& f) { Part(f, ".g_idx").bytes.replace(0, 4, "\xff\xff\xff\xff"); },
       {"up_proj.g_idx: entry 0 is -1"}},
      {"groups_of_fewer_columns",
       L::kGptqActOrder,
       [](auto& f) {
         Part(f, ".g_idx") = {"I32", {8}, std::string(32, '\0')};
       },
       {"up_proj.g_idx is [8] instead of [256]"}},
  };
}

std::vector<Wrong> WrongModules() {
  using L = FolderLayout;
  return {
      {"a_bias_that_counts",
       L::kGptq,
       [](auto& f) { Part(f, ".bias").bytes[9] = 'a'; },
       {"blk.1.ffn_up.bias [384] is not part of this architecture"}},
      {"both_weights",
       L::kAwq,
       [](auto& f) {
         f.tensors[absl::StrCat(kUp, ".weight")] = {
             "BF16", {384, 256}, std::string(2 * 384 * 256, 'a')};
       },
       {"model.layers.1.mlp.up_proj has a quantised weight and a plain one"}},
      {"no_word_of_it",
       L::kAwq,
       [](auto& f) { f.config.clear(); },
       {"model.layers.0.mlp.down_proj.qweight is a part of a quantised matrix",
        "quantization_config of config.json does not tell of such"}},
      {"another_word",
       L::kAwq,
       [](auto& f) { f.config = QuantizedFolder::ConfigOf(L::kFp8Rows, 128); },
       {"model.layers.0.mlp.down_proj.qweight is a part of a quantised matrix"}},
      {"groups_that_do_not_divide",
       L::kGptq,
       [](auto& f) { f.config = QuantizedFolder::ConfigOf(L::kGptq, 160); },
       {"model.layers.0.mlp.down_proj has 256 outputs and 384 inputs in groups of 160",
        "use the model in BF16"}},
  };
}

std::vector<Wrong> WrongTensors() {
  std::vector<Wrong> all = WrongCodesOfEightBits();
  for (const auto& more : {WrongCodesOfFourBits(), WrongModules()}) {
    all.insert(all.end(), more.begin(), more.end());
  }
  return all;
}

class WrongQuantizedTensors : public ::testing::TestWithParam<Wrong> {};

TEST_P(WrongQuantizedTensors, AreRefusedByName) {
  QuantizedFolder folder(FolderName(), GetParam().layout);
  GetParam().spoil(folder);
  folder.Write();
  const auto source = OpenModel(folder.folder());
  absl::Status status = source.status();
  if (source.ok()) {
    ThreadPool pool({.threads = 1});
    status = BindWeights(source->tensors, source->config, kernels::BestOps(), {}, pool).status();
  }
  for (const std::string& words : GetParam().words) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  }
}

INSTANTIATE_TEST_SUITE_P(All, WrongQuantizedTensors, ::testing::ValuesIn(WrongTensors()),
                         [](const auto& info) { return std::string(info.param.name); });

struct WrongConfig {
  const char* config;
  const char* words;
};

class WrongQuantizationConfigs : public ::testing::TestWithParam<WrongConfig> {};

TEST_P(WrongQuantizationConfigs, AreRefusedByField) {
  QuantizedFolder folder(FolderName(), FolderLayout::kAwq);
  folder.config = GetParam().config;
  folder.Write();
  EXPECT_THAT(std::string(OpenModel(folder.folder()).status().message()),
              AllOf(HasSubstr("config.json: quantization_config"), HasSubstr(GetParam().words)));
}

INSTANTIATE_TEST_SUITE_P(
    All, WrongQuantizationConfigs,
    ::testing::Values(
        WrongConfig{"7", "quantization_config is 7; it must be an object"},
        WrongConfig{"{}", "quant_method is missing"},
        WrongConfig{R"({"quant_method": "bitsandbytes"})",
                    "quant_method \"bitsandbytes\" is not served; served is fp8, "
                    "compressed-tensors, awq, gptq: use another version of the model"},
        WrongConfig{R"({"quant_method": "fp8", "fmt": "e5m2"})", "fmt \"e5m2\" is not served"},
        WrongConfig{R"({"quant_method": "fp8", "activation_scheme": "none"})",
                    "activation_scheme \"none\" is not served"},
        WrongConfig{R"({"quant_method": "fp8", "weight_block_size": [64, 128]})",
                    "weight_block_size [64, 128] is not served; served is [128, 128]"},
        WrongConfig{R"({"quant_method": "awq", "bits": 8, "group_size": 128})",
                    "bits 8 is not served; served is 4"},
        WrongConfig{R"({"quant_method": "awq", "bits": 4})", "group_size is missing"},
        WrongConfig{R"({"quant_method": "awq", "bits": 4, "group_size": 16})",
                    "group_size 16 is not served; served is -1 and the multiples of 32"},
        WrongConfig{R"({"quant_method": "awq", "bits": 4, "group_size": -2})",
                    "group_size is -2; it must be an integer"},
        WrongConfig{R"({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"})",
                    "version \"gemv\" is not served; served is gemm"},
        WrongConfig{R"({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": false})",
                    "zero_point false is not served"},
        WrongConfig{R"({"quant_method": "gptq", "bits": 3, "group_size": 128})",
                    "bits 3 is not served; served is 4"},
        WrongConfig{R"({"quant_method": "gptq", "bits": 4, "group_size": 128,
                        "checkpoint_format": "marlin"})",
                    "checkpoint_format \"marlin\" is not served; served is gptq, gptq_v2"},
        WrongConfig{R"({"quant_method": "compressed-tensors"})", "format is missing"},
        WrongConfig{R"({"quant_method": "compressed-tensors", "format": "pack-quantized"})",
                    "config_groups is missing"},
        WrongConfig{R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
                        "kv_cache_scheme": {"num_bits": 8}, "config_groups": {}})",
                    "kv_cache_scheme is set: it is not served"},
        WrongConfig{R"({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
                        "config_groups": {"group_0": {"weights": {"type": "float"}}}})",
                    "format \"nvfp4-pack-quantized\" of type \"float\" is not served"},
        WrongConfig{R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
                        "config_groups": {"g": {"weights": {"type": "int", "num_bits": 8}}}})",
                    "config_groups.g.weights.num_bits 8 is not served"},
        WrongConfig{R"({"quant_method": "compressed-tensors", "format": "int-quantized",
                        "config_groups": {"g": {"input_activations": {"dynamic": false},
                          "weights": {"type": "int", "num_bits": 8, "strategy": "channel"}}}})",
                    "input_activations.dynamic false is not served"},
        WrongConfig{R"({"quant_method": "compressed-tensors", "format": "float-quantized",
                        "config_groups": {"g": {"weights": {"type": "float", "num_bits": 8,
                          "strategy": "block", "block_structure": [1, 32]}}}})",
                    "weights.block_structure [1, 32] is not served"}));

// Products of int8 by int8 are for models that were made for them.
TEST(QuantizationConfig, Int8ActivationsAreThoseOfTheFile) {
  for (const auto& [activations, wanted] :
       {std::pair(R"({"num_bits": 8, "type": "int", "dynamic": true})", true),
        std::pair("null", false)}) {
    const auto config = ConfigJson::Parse(
        "config.json",
        absl::StrCat(R"({"quant_method": "compressed-tensors", "format": "int-quantized",)",
                     R"("config_groups": {"g": {"input_activations": )", activations,
                     R"(, "weights": {"type": "int", "num_bits": 8, "strategy": "channel"}}}})"));
    ASSERT_TRUE(config.ok()) << config.status();
    const auto read = ReadQuantizationConfig(*config);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(read->int8);
    EXPECT_EQ(read->int8_activations, wanted) << activations;
  }
}

}  // namespace
}  // namespace rempart::worker
