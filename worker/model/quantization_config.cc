// SPDX-License-Identifier: Apache-2.0
#include "worker/model/quantization_config.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMaxGroup = 1 << 20;
constexpr char kUseAnother[] = ": use another version of the model, or a GGUF file of it";

absl::Status NotServed(const ConfigJson& config, absl::string_view key, absl::string_view value,
                       absl::string_view served) {
  return absl::UnimplementedError(absl::StrCat(config.Where(key), " ", value,
                                               " is not served; served is ", served, kUseAnother));
}

// A text that must be one of those served, in any case.
absl::Status CheckText(const ConfigJson& config, const char* key,
                       const std::vector<std::string>& served) {
  ASSIGN_OR_RETURN(const std::string text, config.String(key, served.front()));
  for (const std::string& each : served) {
    if (absl::AsciiStrToLower(text) == each) return absl::OkStatus();
  }
  std::string list;
  for (const std::string& each : served) absl::StrAppend(&list, list.empty() ? "" : ", ", each);
  return NotServed(config, key, absl::StrCat("\"", text, "\""), list);
}

absl::Status CheckBits(const ConfigJson& config, const char* key, int64_t served) {
  ASSIGN_OR_RETURN(const int64_t bits, config.Size(key, std::nullopt, 64));
  if (bits == served) return absl::OkStatus();
  return NotServed(config, key, absl::StrCat(bits), absl::StrCat(served));
}

// Columns of a group; -1 says that all are one.
absl::StatusOr<int64_t> ReadGroup(const ConfigJson& config, const char* key) {
  ASSIGN_OR_RETURN(const double size, config.Number(key, std::nullopt));
  if (size == -1) return 0;
  ASSIGN_OR_RETURN(const int64_t group, config.Size(key, std::nullopt, kMaxGroup));
  if (group % 32 != 0) {
    return NotServed(config, key, absl::StrCat(group), "-1 and the multiples of 32");
  }
  return group;
}

absl::Status CheckBlock(const ConfigJson& config, const char* key) {
  ASSIGN_OR_RETURN(const std::vector<double> block, config.Numbers(key));
  if (block.size() == 2 && block[0] == kFP8Block && block[1] == kFP8Block) return absl::OkStatus();
  std::string text;
  for (const double extent : block) absl::StrAppend(&text, text.empty() ? "" : ", ", extent);
  return NotServed(config, key, absl::StrCat("[", text, "]"), "[128, 128]");
}

absl::StatusOr<QuantizationConfig> ReadFp8(const ConfigJson& config) {
  QuantizationConfig read;
  read.fp8 = true;
  RETURN_IF_ERROR(CheckText(config, "fmt", {"e4m3"}));
  RETURN_IF_ERROR(CheckText(config, "activation_scheme", {"dynamic", "static"}));
  read.fp8_blocks = config.Has("weight_block_size");
  if (read.fp8_blocks) RETURN_IF_ERROR(CheckBlock(config, "weight_block_size"));
  return read;
}

absl::StatusOr<QuantizationConfig> ReadAwq(const ConfigJson& config) {
  QuantizationConfig read;
  read.int4 = INT4Layout::kAwq;
  RETURN_IF_ERROR(CheckBits(config, config.Has("w_bit") ? "w_bit" : "bits", 4));
  RETURN_IF_ERROR(CheckText(config, "version", {"gemm"}));
  RETURN_IF_ERROR(CheckText(config, "backend", {"autoawq"}));
  ASSIGN_OR_RETURN(read.group,
                   ReadGroup(config, config.Has("q_group_size") ? "q_group_size" : "group_size"));
  ASSIGN_OR_RETURN(const bool has_zeros, config.Bool("zero_point", true));
  if (!has_zeros) return NotServed(config, "zero_point", "false", "true");
  return read;
}

absl::StatusOr<QuantizationConfig> ReadGptq(const ConfigJson& config) {
  QuantizationConfig read;
  read.int4 = INT4Layout::kGptq;
  RETURN_IF_ERROR(CheckBits(config, "bits", 4));
  ASSIGN_OR_RETURN(read.group, ReadGroup(config, "group_size"));
  RETURN_IF_ERROR(CheckText(config, "pack_dtype", {"int32"}));
  // GPTQModel calls it "format", too.
  const char* const key = config.Has("checkpoint_format") ? "checkpoint_format" : "format";
  RETURN_IF_ERROR(CheckText(config, key, {"gptq", "gptq_v2"}));
  ASSIGN_OR_RETURN(const std::string format, config.String(key, "gptq"));
  read.zero_offset = absl::AsciiStrToLower(format) == "gptq" ? 1 : 0;
  return read;
}

absl::Status ReadFloatGroup(const ConfigJson& weights, QuantizationConfig& read) {
  RETURN_IF_ERROR(CheckBits(weights, "num_bits", 8));
  RETURN_IF_ERROR(CheckText(weights, "strategy", {"tensor", "channel", "block"}));
  ASSIGN_OR_RETURN(const std::string strategy, weights.String("strategy", "tensor"));
  if (strategy == "block") {
    RETURN_IF_ERROR(CheckBlock(weights, "block_structure"));
    read.fp8_blocks = true;
  }
  read.fp8 = true;
  return absl::OkStatus();
}

// Activations are not quantised by scales of the file. Those of FP8 may be read for what they are
// without; those of INT8 would lose a zero point.
absl::Status ReadInt8Group(const ConfigJson& group, const ConfigJson& weights,
                           QuantizationConfig& read) {
  RETURN_IF_ERROR(CheckBits(weights, "num_bits", 8));
  RETURN_IF_ERROR(CheckText(weights, "strategy", {"tensor", "channel"}));
  ASSIGN_OR_RETURN(const bool is_symmetric, weights.Bool("symmetric", true));
  if (!is_symmetric) return NotServed(weights, "symmetric", "false", "true");
  if (group.Has("input_activations")) {
    ASSIGN_OR_RETURN(const ConfigJson activations, group.Object("input_activations"));
    ASSIGN_OR_RETURN(const bool is_dynamic, activations.Bool("dynamic", false));
    if (!is_dynamic) return NotServed(activations, "dynamic", "false", "true");
    read.int8_activations = true;
  }
  read.int8 = true;
  return absl::OkStatus();
}

absl::Status ReadPackedGroup(const ConfigJson& weights, QuantizationConfig& read) {
  RETURN_IF_ERROR(CheckBits(weights, "num_bits", 4));
  RETURN_IF_ERROR(CheckText(weights, "strategy", {"group", "channel"}));
  ASSIGN_OR_RETURN(const std::string strategy, weights.String("strategy", "group"));
  ASSIGN_OR_RETURN(const bool is_symmetric, weights.Bool("symmetric", true));
  int64_t columns = 0;
  if (strategy == "group") {
    ASSIGN_OR_RETURN(columns, ReadGroup(weights, "group_size"));
  }
  if (read.int4.has_value() && (columns != read.group || is_symmetric == read.has_zeros)) {
    return NotServed(weights, "group_size", "or symmetric, other than in another group,",
                     "one of each");
  }
  read.int4 = INT4Layout::kPacked;
  read.group = columns;
  read.has_zeros = !is_symmetric;
  return absl::OkStatus();
}

// One entry of config_groups: adds what its weights are.
absl::Status ReadWeightsOf(const ConfigJson& group, const std::string& format,
                           QuantizationConfig& read) {
  if (group.Has("output_activations")) {
    return NotServed(group, "output_activations", "is set: it", "null");
  }
  ASSIGN_OR_RETURN(const ConfigJson weights, group.Object("weights"));
  ASSIGN_OR_RETURN(const std::string type, weights.String("type", "int"));
  const bool is_naive = format == "naive-quantized";
  if (type == "float" && (is_naive || format == "float-quantized")) {
    return ReadFloatGroup(weights, read);
  }
  if (type == "int" && (is_naive || format == "int-quantized")) {
    return ReadInt8Group(group, weights, read);
  }
  if (type == "int" && format == "pack-quantized") return ReadPackedGroup(weights, read);
  return NotServed(group, "format", absl::StrCat("\"", format, "\" of type \"", type, "\""),
                   "float-quantized, int-quantized and pack-quantized (4 bits)");
}

absl::StatusOr<QuantizationConfig> ReadCompressedTensors(const ConfigJson& config) {
  QuantizationConfig read;
  ASSIGN_OR_RETURN(const std::string format, config.String("format", std::nullopt));
  for (const char* key : {"kv_cache_scheme", "sparsity_config"}) {
    if (!config.Has(key)) continue;
    ASSIGN_OR_RETURN(const ConfigJson object, config.Object(key));
    if (object.Keys().empty()) continue;
    return NotServed(config, key, "is set: it", "null");
  }
  ASSIGN_OR_RETURN(const ConfigJson groups, config.Object("config_groups"));
  for (const std::string& name : groups.Keys()) {
    ASSIGN_OR_RETURN(const ConfigJson group, groups.Object(name));
    ASSIGN_OR_RETURN(const std::string own, group.String("format", format));
    RETURN_IF_ERROR(ReadWeightsOf(group, own, read));
  }
  return read;
}

}  // namespace

absl::StatusOr<QuantizationConfig> ReadQuantizationConfig(const ConfigJson& config) {
  ASSIGN_OR_RETURN(const std::string method, config.String("quant_method", std::nullopt));
  if (method == "fp8") return ReadFp8(config);
  if (method == "compressed-tensors") return ReadCompressedTensors(config);
  if (method == "awq") return ReadAwq(config);
  if (method == "gptq") return ReadGptq(config);
  return NotServed(config, "quant_method", absl::StrCat("\"", method, "\""),
                   "fp8, compressed-tensors, awq, gptq");
}

}  // namespace rempart::worker
