// SPDX-License-Identifier: Apache-2.0
// Writes a model folder of tests/goldens/families as the GGUF file that llama.cpp's conversion
// scripts make of it: their names, keys and order of rows, none of which come from the code under
// test. Matrices stay BF16; what has one dimension becomes F32.
#pragma once

#include <cmath>
#include <cstring>
#include <fstream>
#include <numbers>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/check.h"
#include "kernels/blocks.h"
#include "tests/worker/model/gguf_builder.h"
#include "worker/model/config_json.h"
#include "worker/model/mapped_file.h"
#include "worker/model/safetensors.h"

namespace rempart::worker {

class FamilyGguf {
 public:
  // `architecture`: of the GGUF file.
  FamilyGguf(const std::string& folder, std::string architecture)
      : architecture_(std::move(architecture)),
        file_(MappedFile::Open(folder + "/model.safetensors").value()),
        config_(ConfigJson::Parse("config.json", Read(folder + "/config.json")).value()),
        rope_(config_.Object("rope_parameters").value()) {
    if (rope_.Has("full_attention")) rope_ = rope_.Object("full_attention").value();
  }

  std::string Bytes() {
    builder_.String("general.architecture", architecture_);
    WriteSizes();
    WriteRope();
    if (architecture_ == "gemma3") WriteGemma3();
    TensorMap tensors = ParseSafetensors("model.safetensors", file_.bytes()).value();
    for (const auto& [name, tensor] : tensors) WriteTensor(name, tensor);
    return builder_.Build(0);
  }

 private:
  static std::string Read(const std::string& path) {
    std::ifstream file(path);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  }
  std::string Key(absl::string_view name) const { return absl::StrCat(architecture_, ".", name); }
  double Number(const char* key) const { return config_.Number(key, std::nullopt).value(); }
  uint32_t Size(const char* key) const { return static_cast<uint32_t>(Number(key)); }
  double OfRope(const char* key) const { return rope_.Number(key, std::nullopt).value(); }
  uint32_t HeadDim() const {
    return config_.Has("head_dim") ? Size("head_dim")
                                   : Size("hidden_size") / Size("num_attention_heads");
  }

  void WriteSizes() {
    builder_.Uint(Key("block_count"), Size("num_hidden_layers"))
        .Uint(Key("context_length"), Size("max_position_embeddings"))
        .Uint(Key("embedding_length"), Size("hidden_size"))
        .Uint(Key("feed_forward_length"), Size("intermediate_size"))
        .Uint(Key("attention.head_count"), Size("num_attention_heads"))
        .Uint(Key("attention.head_count_kv"), Size("num_key_value_heads"))
        .Float(Key("attention.layer_norm_rms_epsilon"), static_cast<float>(Number("rms_norm_eps")));
    if (config_.Has("head_dim")) {
      builder_.Uint(Key("attention.key_length"), HeadDim())
          .Uint(Key("attention.value_length"), HeadDim());
    }
    // Phi 3 says 0 for none.
    if (config_.Has("sliding_window") || architecture_ == "phi3") {
      builder_.Uint(Key("attention.sliding_window"),
                    config_.Has("sliding_window") ? Size("sliding_window") : 0);
    }
  }

  void WriteRope() {
    const std::string type = rope_.String("rope_type", std::nullopt).value();
    builder_.Float(Key("rope.freq_base"), static_cast<float>(OfRope("rope_theta")));
    if (architecture_ == "llama") builder_.Uint(Key("rope.dimension_count"), HeadDim());
    if (architecture_ == "phi3") {
      const double part = rope_.Number("partial_rotary_factor", 1.0).value();
      builder_.Uint(Key("rope.dimension_count"), static_cast<uint32_t>(part * HeadDim()));
    }
    if (type == "llama3") WriteLlama3Factors();
    if (type == "longrope") WriteLongFactors();
    if (type != "linear" && type != "yarn" && type != "longrope") return;
    builder_.String(Key("rope.scaling.type"), type);
    if (type != "longrope") {
      builder_.Float(Key("rope.scaling.factor"), static_cast<float>(OfRope("factor")));
    }
    if (type != "linear") {
      builder_.Uint(Key("rope.scaling.original_context_length"),
                    static_cast<uint32_t>(OfRope("original_max_position_embeddings")));
    }
  }

  void WriteGemma3() {
    const ConfigJson local =
        config_.Object("rope_parameters").value().Object("sliding_attention").value();
    builder_.Float("gemma3.rope.freq_base_swa",
                   static_cast<float>(local.Number("rope_theta", std::nullopt).value()));
    std::vector<bool> slides;
    const std::vector<std::string> types = config_.Strings("layer_types").value();
    for (const std::string& type : types) {
      slides.push_back(type == "sliding_attention");
    }
    builder_.Bools("gemma3.attention.sliding_window_pattern", slides);
  }

  void WriteLlama3Factors() {
    const double context = OfRope("original_max_position_embeddings");
    const double low = OfRope("low_freq_factor"), high = OfRope("high_freq_factor");
    std::vector<float> factors;
    for (uint32_t i = 0; i < HeadDim(); i += 2) {
      const double wavelength =
          2 * std::numbers::pi * std::pow(OfRope("rope_theta"), double{1} * i / HeadDim());
      const double smooth = (context / wavelength - low) / (high - low);
      double factor = 1 / ((1 - smooth) / OfRope("factor") + smooth);
      if (wavelength < context / high) factor = 1;
      if (wavelength > context / low) factor = OfRope("factor");
      factors.push_back(static_cast<float>(factor));
    }
    WriteFloats("rope_freqs.weight", factors);
  }

  void WriteLongFactors() {
    const double context = OfRope("original_max_position_embeddings");
    const double scale = Number("max_position_embeddings") / context;
    builder_.Float(Key("rope.scaling.attn_factor"),
                   static_cast<float>(std::sqrt(1 + std::log(scale) / std::log(context))));
    for (const char* length : {"long", "short"}) {
      const auto factors = rope_.Numbers(absl::StrCat(length, "_factor")).value();
      WriteFloats(absl::StrCat("rope_factors_", length, ".weight"),
                  {factors.begin(), factors.end()});
    }
  }

  void WriteFloats(const std::string& name, const std::vector<float>& values) {
    builder_.Add({name, {values.size()}, 0},
                 {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
  }

  void WriteTensor(const std::string& name, const TensorView& tensor) {
    CHECK(tensor.type == kernels::DType::kBF16) << name;
    const auto rows = static_cast<size_t>(tensor.shape[0]);
    const size_t row_bytes = tensor.bytes / rows;
    std::string data(reinterpret_cast<const char*>(tensor.data), tensor.bytes);
    if (architecture_ == "llama") {
      if (absl::StrContains(name, ".q_proj.")) {
        data = Permuted(data, rows, row_bytes, Size("num_attention_heads"));
      }
      if (absl::StrContains(name, ".k_proj.")) {
        data = Permuted(data, rows, row_bytes, Size("num_key_value_heads"));
      }
    }
    if (tensor.shape.size() == 2) {
      builder_.Add({GgufTensorName(name), {static_cast<uint64_t>(tensor.shape[1]), rows}, 30},
                   data);
      return;
    }
    // The norms of Gemma 3 scale by 1 + w; a GGUF file holds the sum.
    const float offset =
        architecture_ == "gemma3" && absl::EndsWith(name, "norm.weight") ? 1.0f : 0.0f;
    std::vector<float> values(rows);
    for (size_t i = 0; i < rows; ++i) {
      uint16_t bits;
      std::memcpy(&bits, data.data() + i * sizeof(bits), sizeof(bits));
      values[i] = offset + kernels::BFloat16ToFloat(bits);
    }
    WriteFloats(GgufTensorName(name), values);
  }

  // Of each head, the halves that rotate together become neighbours.
  static std::string Permuted(const std::string& data, size_t rows, size_t row_bytes,
                              size_t heads) {
    const size_t half = rows / heads / 2;
    std::string out;
    for (size_t head = 0; head < heads; ++head) {
      for (size_t i = 0; i < 2 * half; ++i) {
        const size_t row = head * 2 * half + i % 2 * half + i / 2;
        out.append(data, row * row_bytes, row_bytes);
      }
    }
    return out;
  }

  std::string GgufTensorName(const std::string& name) const {
    const bool gemma = architecture_ == "gemma3";
    return absl::StrReplaceAll(
        name, {{"model.embed_tokens.", "token_embd."},
               {"model.norm.", "output_norm."},
               {"lm_head.", "output."},
               {"model.layers.", "blk."},
               {".input_layernorm.", ".attn_norm."},
               {".self_attn.qkv_proj.", ".attn_qkv."},
               {".self_attn.q_proj.", ".attn_q."},
               {".self_attn.k_proj.", ".attn_k."},
               {".self_attn.v_proj.", ".attn_v."},
               {".self_attn.o_proj.", ".attn_output."},
               {".self_attn.q_norm.", ".attn_q_norm."},
               {".self_attn.k_norm.", ".attn_k_norm."},
               {".post_attention_layernorm.", gemma ? ".post_attention_norm." : ".ffn_norm."},
               {".pre_feedforward_layernorm.", ".ffn_norm."},
               {".post_feedforward_layernorm.", ".post_ffw_norm."},
               {".mlp.gate_up_proj.", ".ffn_up."},
               {".mlp.gate_proj.", ".ffn_gate."},
               {".mlp.up_proj.", ".ffn_up."},
               {".mlp.down_proj.", ".ffn_down."}});
  }

  const std::string architecture_;
  const MappedFile file_;
  const ConfigJson config_;
  ConfigJson rope_;
  GgufBuilder builder_;
};

}  // namespace rempart::worker
