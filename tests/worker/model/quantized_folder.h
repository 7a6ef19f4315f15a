// SPDX-License-Identifier: Apache-2.0
// Folders of a small seeded Llama in every quantised layout that is served, written from the
// descriptions of the layouts and not from the reader, beside the weights that they stand for.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/blocks.h"
#include "worker/model/tensor_view.h"

namespace rempart::worker {

enum class FolderLayout {
  kFp8Blocks,     // quant_method fp8, BF16 scales of blocks of 128 x 128
  kFp8Rows,       // compressed-tensors, one BF16 scale a row
  kFp8Tensor,     // quant_method fp8, one F32 scale, and one of the activations
  kInt8Rows,      // compressed-tensors, one F32 scale a row
  kAwq,           // AutoAWQ, gemm
  kGptq,          // AutoGPTQ, symmetric
  kGptqV2,        // GPTQModel, with zeros
  kGptqActOrder,  // with zeros one less than they are, groups of columns in any order
  kPacked,        // compressed-tensors, symmetric
  kPackedZeros,   // compressed-tensors, with zeros
};

// A tensor of a safetensors file.
struct StoredTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

class QuantizedFolder {
 public:
  static constexpr int64_t kHidden = 256, kFfn = 384, kHeads = 4, kKvHeads = 2, kHeadDim = 64,
                           kVocabulary = 96, kLayers = 2;

  // `folder` ends with a slash. group: columns of a group of 4-bit codes, -1 for all.
  QuantizedFolder(std::string folder, FolderLayout layout, int64_t group = 128)
      : folder_(std::move(folder)), layout_(layout), group_(group) {
    PutPlain("model.embed_tokens.weight", "token_embd.weight", {kVocabulary, kHidden}, 0.5f, 0);
    PutPlain("lm_head.weight", "output.weight", {kVocabulary, kHidden}, 0.06f, 0);
    PutPlain("model.norm.weight", "output_norm.weight", {kHidden}, 0.1f, 1);
    for (int64_t i = 0; i < kLayers; ++i) {
      const std::string from = absl::StrCat("model.layers.", i, "."),
                        to = absl::StrCat("blk.", i, ".");
      PutPlain(from + "input_layernorm.weight", to + "attn_norm.weight", {kHidden}, 0.1f, 1);
      PutPlain(from + "post_attention_layernorm.weight", to + "ffn_norm.weight", {kHidden}, 0.1f,
               1);
      Put(from + "self_attn.q_proj", to + "attn_q", kHeads * kHeadDim, kHidden);
      Put(from + "self_attn.k_proj", to + "attn_k", kKvHeads * kHeadDim, kHidden);
      Put(from + "self_attn.v_proj", to + "attn_v", kKvHeads * kHeadDim, kHidden);
      Put(from + "self_attn.o_proj", to + "attn_output", kHidden, kHeads * kHeadDim);
      Put(from + "mlp.gate_proj", to + "ffn_gate", kFfn, kHidden);
      Put(from + "mlp.up_proj", to + "ffn_up", kFfn, kHidden);
      Put(from + "mlp.down_proj", to + "ffn_down", kHidden, kFfn);
    }
    config = ConfigOf(layout, group);
    Write();
  }
  QuantizedFolder(const QuantizedFolder&) = delete;
  QuantizedFolder& operator=(const QuantizedFolder&) = delete;
  ~QuantizedFolder() { std::filesystem::remove_all(folder_); }

  const std::string& folder() const { return folder_; }
  // What the folder stands for, in F32, by the names of GGUF files.
  const TensorMap& dequantized() const { return dequantized_; }

  // Both may be changed before Write is called again.
  std::map<std::string, StoredTensor> tensors;
  std::string config;  // quantization_config; empty: none

  void Write() const {
    std::filesystem::create_directories(folder_);
    std::string header = "{", data;
    // Every size here is a multiple of eight but for single scales, which come last.
    for (const bool is_small : {false, true}) {
      for (const auto& [name, tensor] : tensors) {
        if ((tensor.bytes.size() % 8 != 0) != is_small) continue;
        absl::StrAppend(&header, header.size() > 1 ? "," : "", "\"", name, "\":{\"dtype\":\"",
                        tensor.dtype, "\",\"shape\":[", absl::StrJoin(tensor.shape, ","),
                        "],\"data_offsets\":[", data.size(), ",", data.size() + tensor.bytes.size(),
                        "]}");
        data += tensor.bytes;
      }
    }
    header += "}";
    while (header.size() % 8 != 0) header += ' ';
    const uint64_t length = header.size();
    std::ofstream(folder_ + "model.safetensors", std::ios::binary)
        << std::string(reinterpret_cast<const char*>(&length), 8) << header << data;
    std::ofstream(folder_ + "config.json")
        << R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": )"
        << kHidden << ", \"intermediate_size\": " << kFfn << ", \"num_hidden_layers\": " << kLayers
        << ", \"num_attention_heads\": " << kHeads << ", \"num_key_value_heads\": " << kKvHeads
        << ", \"head_dim\": " << kHeadDim << ", \"vocab_size\": " << kVocabulary
        << R"(, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0)"
        << R"(, "tie_word_embeddings": false)"
        << (config.empty() ? "" : ", \"quantization_config\": " + config) << "}";
  }

  static std::string ConfigOf(FolderLayout layout, int64_t group) {
    const auto compressed = [](const std::string& format, const std::string& weights,
                               const std::string& activations) {
      return absl::StrCat(
          R"({"quant_method": "compressed-tensors", "format": ")", format,
          R"(", "ignore": ["lm_head"], "kv_cache_scheme": null, "config_groups": {"group_0": )",
          R"({"targets": ["Linear"], "output_activations": null, "input_activations": )",
          activations, R"(, "weights": {"symmetric": true, "dynamic": false, )", weights, "}}}}");
    };
    const std::string symmetric = "\"symmetric\": true", zeros = "\"symmetric\": false";
    switch (layout) {
      case FolderLayout::kFp8Blocks:
        return R"({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                   "weight_block_size": [128, 128]})";
      case FolderLayout::kFp8Tensor:
        return R"({"quant_method": "fp8", "activation_scheme": "static",
                   "ignored_layers": ["lm_head"]})";
      case FolderLayout::kFp8Rows:
        return compressed("float-quantized",
                          R"("num_bits": 8, "type": "float", "strategy": "channel")",
                          R"({"num_bits": 8, "type": "float", "dynamic": true})");
      case FolderLayout::kInt8Rows:
        return compressed("int-quantized", R"("num_bits": 8, "type": "int", "strategy": "channel")",
                          R"({"num_bits": 8, "type": "int", "dynamic": true})");
      case FolderLayout::kAwq:
        return absl::StrCat(R"({"quant_method": "awq", "bits": 4, "zero_point": true, )",
                            R"("version": "gemm", "group_size": )", group, "}");
      case FolderLayout::kGptq:
      case FolderLayout::kGptqActOrder:
        return absl::StrCat(R"({"quant_method": "gptq", "bits": 4, "sym": true, "group_size": )",
                            group, R"(, "desc_act": )",
                            layout == FolderLayout::kGptqActOrder ? "true}" : "false}");
      case FolderLayout::kGptqV2:
        return absl::StrCat(R"({"quant_method": "gptq", "bits": 4, "sym": false, )",
                            R"("checkpoint_format": "gptq_v2", "group_size": )", group, "}");
      case FolderLayout::kPacked:
      case FolderLayout::kPackedZeros:
        break;
    }
    std::string text = compressed(
        "pack-quantized",
        absl::StrCat(R"("num_bits": 4, "type": "int", "strategy": "group", "group_size": )", group),
        "null");
    if (layout == FolderLayout::kPackedZeros)
      text.replace(text.find(symmetric), symmetric.size(), zeros);
    return text;
  }

 private:
  // A matrix as groups of 4-bit codes: codes [rows, cols]; scales and zeros [rows, groups].
  struct Groups {
    std::vector<int> codes, zeros;
    std::vector<float> scales;
    std::vector<int64_t> group_of;  // [cols]
    int64_t rows, cols, count;
  };

  std::vector<float> Random(int64_t count, float deviation, float middle) {
    std::normal_distribution<float> normal(middle, deviation);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random_);
    return values;
  }
  static float Rounded(float value) {
    return kernels::BFloat16ToFloat(kernels::FloatToBFloat16(value));
  }

  template <class T>
  static std::string Bytes(const std::vector<T>& values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  static std::string Bf16(const std::vector<float>& values) {
    std::vector<uint16_t> bits;
    for (const float value : values) bits.push_back(kernels::FloatToBFloat16(value));
    return Bytes(bits);
  }

  void Stand(const std::string& name, std::vector<int64_t> shape,
             const std::vector<float>& values) {
    const std::string& bytes = storage_.emplace_back(Bytes(values));
    dequantized_[name] = {name, kernels::DType::kF32, std::move(shape),
                          reinterpret_cast<const uint8_t*>(bytes.data()),
                          static_cast<int64_t>(bytes.size())};
  }
  void PutPlain(const std::string& name, const std::string& gguf, std::vector<int64_t> shape,
                float deviation, float middle) {
    std::vector<float> values =
        Random(shape.size() == 1 ? shape[0] : shape[0] * shape[1], deviation, middle);
    for (float& value : values) value = Rounded(value);
    tensors[name] = {"BF16", shape, Bf16(values)};
    Stand(gguf, std::move(shape), values);
  }

  void Put(const std::string& name, const std::string& gguf, int64_t rows, int64_t cols) {
    const std::vector<float> weights = Random(rows * cols, 0.06f, 0);
    std::vector<float> stands(weights.size());
    switch (layout_) {
      case FolderLayout::kFp8Blocks:
      case FolderLayout::kFp8Rows:
      case FolderLayout::kFp8Tensor:
      case FolderLayout::kInt8Rows:
        PutCodes(name, weights, rows, cols, stands);
        break;
      default:
        PutGroups(name, Grouped(weights, rows, cols), stands);
    }
    Stand(gguf + ".weight", {rows, cols}, stands);
  }

  // What a byte is worth: 1 sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, and
  // NaN where all seven are set.
  static float E4m3(int code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    if ((code & 127) == 127) return NAN;
    const float value = exponent == 0
                            ? std::ldexp(static_cast<float>(mantissa), -9)
                            : std::ldexp(8.0f + static_cast<float>(mantissa), exponent - 10);
    return code & 128 ? -value : value;
  }
  static uint8_t NearestE4m3(float value) {
    static const std::vector<float> positive = [] {
      std::vector<float> values;
      for (int code = 0; code < 127; ++code) values.push_back(E4m3(code));
      return values;
    }();
    const float size = std::fabs(value);
    auto above = std::lower_bound(positive.begin(), positive.end() - 1, size);
    if (above != positive.begin() && size - *(above - 1) < *above - size) --above;
    const auto code = static_cast<uint8_t>(above - positive.begin());
    return std::signbit(value) ? code | 128 : code;
  }

  void PutCodes(const std::string& name, const std::vector<float>& weights, int64_t rows,
                int64_t cols, std::vector<float>& stands) {
    const bool is_int8 = layout_ == FolderLayout::kInt8Rows;
    int64_t block_rows = 1, block_cols = cols;
    if (layout_ == FolderLayout::kFp8Tensor) block_rows = rows;
    if (layout_ == FolderLayout::kFp8Blocks) block_rows = block_cols = 128;
    const int64_t across = (cols + block_cols - 1) / block_cols;
    const int64_t down = (rows + block_rows - 1) / block_rows;
    std::vector<float> scales(down * across);
    const auto block_of = [&](int64_t at) {
      return at / cols / block_rows * across + at % cols / block_cols;
    };
    for (int64_t i = 0; i < rows * cols; ++i) {
      scales[block_of(i)] = std::max(scales[block_of(i)], std::fabs(weights[i]));
    }
    // Of few bits, so that BF16 and F16 hold them.
    for (float& scale : scales) scale = Rounded(scale / (is_int8 ? 127.0f : 440.0f));
    std::vector<uint8_t> codes(weights.size());
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float scale = scales[block_of(i)];
      if (is_int8) {
        const float code = std::clamp(std::nearbyint(weights[i] / scale), -128.0f, 127.0f);
        codes[i] = static_cast<uint8_t>(static_cast<int8_t>(code));
        stands[i] = code * scale;
      } else {
        codes[i] = NearestE4m3(weights[i] / scale);
        stands[i] = E4m3(codes[i]) * scale;
      }
    }
    tensors[name + ".weight"] = {is_int8 ? "I8" : "F8_E4M3", {rows, cols}, Bytes(codes)};
    if (layout_ == FolderLayout::kFp8Blocks) {
      tensors[name + ".weight_scale_inv"] = {"BF16", {down, across}, Bf16(scales)};
    } else if (layout_ == FolderLayout::kFp8Rows) {
      tensors[name + ".weight_scale"] = {"BF16", {rows, 1}, Bf16(scales)};
    } else if (layout_ == FolderLayout::kFp8Tensor) {
      tensors[name + ".weight_scale"] = {"F32", {}, Bytes(scales)};
      tensors[name + ".input_scale"] = {"F32", {1}, Bytes(std::vector<float>{0.25f})};
    } else {
      tensors[name + ".weight_scale"] = {"F32", {rows, 1}, Bytes(scales)};
    }
  }

  Groups Grouped(const std::vector<float>& weights, int64_t rows, int64_t cols) {
    const int64_t group = group_ < 0 ? cols : group_;
    Groups g = {{}, {}, {}, {}, rows, cols, cols / group};
    for (int64_t c = 0; c < cols; ++c) g.group_of.push_back(c / group);
    if (layout_ == FolderLayout::kGptqActOrder) {
      std::shuffle(g.group_of.begin(), g.group_of.end(), random_);
    }
    const bool is_symmetric = layout_ == FolderLayout::kGptq || layout_ == FolderLayout::kPacked;
    std::vector<float> low(rows * g.count), high(rows * g.count);
    for (int64_t i = 0; i < rows * cols; ++i) {
      const int64_t at = i / cols * g.count + g.group_of[i % cols];
      low[at] = std::min(low[at], weights[i]);
      high[at] = std::max(high[at], weights[i]);
    }
    for (int64_t i = 0; i < rows * g.count; ++i) {
      const float range = is_symmetric ? 2 * std::max(-low[i], high[i]) : high[i] - low[i];
      g.scales.push_back(kernels::HalfToFloat(kernels::FloatToHalf(range / 15.0f)));
      g.zeros.push_back(
          is_symmetric
              ? 8
              : std::clamp(static_cast<int>(std::nearbyint(-low[i] / g.scales[i])), 1, 15));
    }
    for (int64_t i = 0; i < rows * cols; ++i) {
      const int64_t at = i / cols * g.count + g.group_of[i % cols];
      const int code = static_cast<int>(std::nearbyint(weights[i] / g.scales[at])) + g.zeros[at];
      g.codes.push_back(std::clamp(code, 0, 15));
    }
    return g;
  }

  // Eight numbers a word: number(word row, word column, i).
  template <class Number>
  static std::string Words(int64_t rows, int64_t cols, Number number) {
    std::vector<uint32_t> words;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        uint32_t word = 0;
        for (int i = 0; i < 8; ++i) word |= static_cast<uint32_t>(number(r, c, i) & 15) << (4 * i);
        words.push_back(word);
      }
    }
    return Bytes(words);
  }

  void PutGroups(const std::string& name, const Groups& g, std::vector<float>& stands) {
    for (int64_t i = 0; i < g.rows * g.cols; ++i) {
      const int64_t at = i / g.cols * g.count + g.group_of[i % g.cols];
      stands[i] = static_cast<float>(g.codes[i] - g.zeros[at]) * g.scales[at];
    }
    const bool is_packed =
        layout_ == FolderLayout::kPacked || layout_ == FolderLayout::kPackedZeros;
    std::vector<uint16_t> scales;
    for (int64_t i = 0; i < g.rows * g.count; ++i) {
      // [rows, groups] of compressed-tensors, [groups, rows] of the others.
      const int64_t at = is_packed ? i : i % g.rows * g.count + i / g.rows;
      scales.push_back(kernels::FloatToHalf(g.scales[at]));
    }
    if (is_packed) return PutPacked(name, g, scales);
    tensors[name + ".scales"] = {"F16", {g.count, g.rows}, Bytes(scales)};
    const bool is_awq = layout_ == FolderLayout::kAwq;
    // AutoGPTQ stores one less.
    const int less = is_awq || layout_ == FolderLayout::kGptqV2 ? 0 : 1;
    constexpr int kAwqOrder[] = {0, 2, 4, 6, 1, 3, 5, 7};
    const auto row_of = [&](int64_t word, int i) { return word * 8 + (is_awq ? kAwqOrder[i] : i); };
    tensors[name + ".qzeros"] = {
        "I32",
        {g.count, g.rows / 8},
        Words(g.count, g.rows / 8, [&](int64_t group, int64_t word, int i) {
          return g.zeros[row_of(word, i) * g.count + group] - less;
        })};
    if (is_awq) {
      tensors[name + ".qweight"] = {"I32",
                                    {g.cols, g.rows / 8},
                                    Words(g.cols, g.rows / 8, [&](int64_t c, int64_t word, int i) {
                                      return g.codes[row_of(word, i) * g.cols + c];
                                    })};
      return;
    }
    tensors[name + ".qweight"] = {
        "I32", {g.cols / 8, g.rows}, Words(g.cols / 8, g.rows, [&](int64_t word, int64_t r, int i) {
          return g.codes[r * g.cols + word * 8 + i];
        })};
    const std::vector<int32_t> order(g.group_of.begin(), g.group_of.end());
    tensors[name + ".g_idx"] = {"I32", {g.cols}, Bytes(order)};
    // AutoGPTQ's, of a layer without bias.
    tensors[name + ".bias"] = {"F16", {g.rows}, std::string(2 * g.rows, '\0')};
  }

  void PutPacked(const std::string& name, const Groups& g, const std::vector<uint16_t>& scales) {
    tensors[name + ".weight_packed"] = {
        "I32", {g.rows, g.cols / 8}, Words(g.rows, g.cols / 8, [&](int64_t r, int64_t word, int i) {
          return g.codes[r * g.cols + word * 8 + i];
        })};
    tensors[name + ".weight_scale"] = {"F16", {g.rows, g.count}, Bytes(scales)};
    tensors[name + ".weight_shape"] = {"I64", {2}, Bytes(std::vector<int64_t>{g.rows, g.cols})};
    if (layout_ == FolderLayout::kPacked) return;
    tensors[name + ".weight_zero_point"] = {
        "I32",
        {g.rows / 8, g.count},
        Words(g.rows / 8, g.count, [&](int64_t word, int64_t group, int i) {
          return g.zeros[(word * 8 + i) * g.count + group];
        })};
  }

  const std::string folder_;
  const FolderLayout layout_;
  const int64_t group_;
  std::mt19937 random_{20267};
  std::deque<std::string> storage_;
  TensorMap dequantized_;
};

}  // namespace rempart::worker
