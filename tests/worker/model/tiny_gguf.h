// SPDX-License-Identifier: Apache-2.0
// A Llama of one layer in Q8_0 as a GGUF file, or as several, its weights made of a small pattern.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/worker/model/gguf_builder.h"

namespace rempart::worker {

inline constexpr uint64_t kTinyHidden = 64, kTinyFfn = 96, kTinyVocabulary = 48;

// What the first file of `parts` says, and of several files each.
inline GgufBuilder TinyMetadata(size_t index, size_t parts, uint32_t tensors) {
  GgufBuilder builder;
  if (parts > 1) {
    builder.Uint("split.no", static_cast<uint32_t>(index))
        .Uint("split.count", static_cast<uint32_t>(parts))
        .Uint("split.tensors.count", tensors);
  }
  if (index > 0) return builder;
  builder.String("general.architecture", "llama")
      .Uint("llama.block_count", 1)
      .Uint("llama.embedding_length", kTinyHidden)
      .Uint("llama.feed_forward_length", kTinyFfn)
      .Uint("llama.attention.head_count", 2)
      .Uint("llama.context_length", 64)
      .Float("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .String("tokenizer.ggml.model", "gpt2")
      .String("tokenizer.ggml.pre", "smollm")
      .Strings("tokenizer.ggml.tokens", {"a", "b", "c", "ab"})
      .Strings("tokenizer.ggml.merges", {"a b"});
  return builder;
}

// Its files; tensors follow each other, `parts` runs of about as many. `tensor_count`: what
// split.tensors.count says, 0 for the truth.
inline std::vector<std::string> TinyGguf(size_t parts = 1, uint32_t tensor_count = 0) {
  constexpr uint32_t kF32 = 0, kQ80 = 8;
  struct Shape {
    std::string name;
    uint64_t cols, rows;
    uint32_t type;
  };
  std::vector<Shape> shapes = {{"token_embd.weight", kTinyHidden, kTinyVocabulary, kQ80},
                               {"output_norm.weight", kTinyHidden, 1, kF32},
                               {"blk.0.attn_norm.weight", kTinyHidden, 1, kF32},
                               {"blk.0.ffn_norm.weight", kTinyHidden, 1, kF32}};
  for (const char* name : {"q", "k", "v", "output"}) {
    shapes.push_back(
        {absl::StrCat("blk.0.attn_", name, ".weight"), kTinyHidden, kTinyHidden, kQ80});
  }
  shapes.push_back({"blk.0.ffn_gate.weight", kTinyHidden, kTinyFfn, kQ80});
  shapes.push_back({"blk.0.ffn_up.weight", kTinyHidden, kTinyFfn, kQ80});
  shapes.push_back({"blk.0.ffn_down.weight", kTinyFfn, kTinyHidden, kQ80});
  const auto count = static_cast<uint32_t>(shapes.size());
  std::vector<std::string> files;
  for (size_t part = 0; part < parts; ++part) {
    GgufBuilder builder = TinyMetadata(part, parts, tensor_count > 0 ? tensor_count : count);
    uint64_t offset = 0;
    std::string data;
    for (size_t i = part * count / parts; i < (part + 1) * count / parts; ++i) {
      const Shape& shape = shapes[i];
      std::vector<uint64_t> extents = {shape.cols};
      if (shape.rows > 1) extents.push_back(shape.rows);
      builder.Add({shape.name, extents, shape.type, offset});
      const uint64_t bytes =
          shape.type == kF32 ? shape.cols * shape.rows * 4 : shape.cols / 32 * 34 * shape.rows;
      // 0x2c2c is 0.065 as F16 and 2.4e-12 as F32; 0x2d is 45 as a code. Tensors differ.
      for (uint64_t at = 0; at < bytes; ++at) data += (at + i) % 3 == 0 ? '\x2d' : '\x2c';
      offset = (offset + bytes + 31) / 32 * 32;
      data.resize(offset);
    }
    std::string file = builder.Build(0);
    files.push_back(file + data);
  }
  return files;
}

}  // namespace rempart::worker
