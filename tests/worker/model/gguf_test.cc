// SPDX-License-Identifier: Apache-2.0
#include "worker/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/model/gguf_builder.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<GgufFile> Parse(const std::string& bytes) {
  return ParseGguf(
      "m.gguf", absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()));
}

TEST(Gguf, ReadsMetadataAndTensors) {
  const std::string bytes = GgufBuilder()
                                .String("general.architecture", "llama")
                                .Uint("llama.block_count", 3)
                                .Float("llama.rope.freq_base", 0.5f)
                                .Strings("tokenizer.ggml.tokens", {"a", "", "ccc"})
                                .Add({"w", {32, 2}, 8, 64})
                                .Add({"b", {4}, 0, 0})
                                .Build(64 + 68);
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*file->metadata.String("general.architecture"), "llama");
  EXPECT_EQ(*file->metadata.Uint("llama.block_count"), 3u);
  EXPECT_EQ(*file->metadata.Float("llama.rope.freq_base"), 0.5);
  EXPECT_THAT(*file->metadata.Strings("tokenizer.ggml.tokens"), ElementsAre("a", "", "ccc"));
  EXPECT_EQ(*file->metadata.Uint("absent", 7), 7u);
  EXPECT_EQ(file->metadata.Uint("absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(file->metadata.Uint("general.architecture").status().code(),
            absl::StatusCode::kInvalidArgument);
  const TensorView& w = file->tensors.at("w");
  EXPECT_EQ(w.type, kernels::DType::kQ8_0);
  EXPECT_THAT(w.shape, ElementsAre(2, 32));
  EXPECT_EQ(w.bytes, 68);
  EXPECT_EQ(reinterpret_cast<const char*>(w.data) + 68, bytes.data() + bytes.size());
}

struct HostileCase {
  std::string what;
  std::string bytes;
  std::string message;
};

// A file of one string and one tensor with `edit` written at `at`.
std::string Edited(size_t at, uint64_t value) {
  std::string bytes = GgufBuilder().String("k", "v").Add({"w", {8}, 0, 0}).Build(32);
  std::memcpy(bytes.data() + at, &value, sizeof(value));
  return bytes;
}

std::vector<HostileCase> HostileCases() {
  constexpr uint64_t kHuge = uint64_t{1} << 60;
  using Tensor = GgufBuilder::Tensor;
  const auto with = [](std::vector<Tensor> tensors, size_t data_bytes) {
    GgufBuilder builder;
    for (Tensor& tensor : tensors) builder.Add(std::move(tensor));
    return builder.Build(data_bytes);
  };
  return {
      {"no bytes", "", "truncated: magic"},
      {"another file", "PK\x03\x04 and so on", "not a GGUF file"},
      {"version 1", GgufBuilder().Build(0, 1), "version 1"},
      {"big-endian", GgufBuilder().Build(0, 0x03000000), "big-endian"},
      {"tensor count 2^60", Edited(8, kHuge), "tensor_count is 1152921504606846976"},
      {"metadata count 2^60", Edited(16, kHuge), "metadata_kv_count"},
      {"key length 2^60", Edited(24, kHuge), "the key of metadata 0"},
      {"string length 2^60", Edited(24 + 8 + 1 + 4, kHuge), "the length of k"},
      {"array of 2^60", GgufBuilder().EmptyArray("a", 4, kHuge).Build(0), "metadata a has"},
      {"array past the end", GgufBuilder().EmptyArray("a", 10, 1 << 20).Build(0), "truncated: a"},
      {"strings past the end", GgufBuilder().EmptyArray("a", 8, 1 << 20).Build(0), "truncated: a"},
      {"array of arrays", GgufBuilder().EmptyArray("a", 9, 1).Build(64), "array of type 9"},
      {"same key twice", GgufBuilder().Uint("a", 1).Uint("a", 2).Build(0), "a appears twice"},
      {"alignment 0", GgufBuilder().Uint("general.alignment", 0).Build(0),
       "general.alignment is 0"},
      {"alignment 24", GgufBuilder().Uint("general.alignment", 24).Build(0), "power of two"},
      {"alignment text", GgufBuilder().String("general.alignment", "x").Build(0), "not a non-neg"},
      {"long name", with({{std::string(300, 'n'), {1}, 0, 0}}, 32), "a tensor name is 300"},
      {"no dimensions", with({{"w", {}, 0, 0}}, 32), "n_dimensions is 0"},
      {"five dimensions", with({{"w", {1, 1, 1, 1, 1}, 0, 0}}, 32), "n_dimensions is 5"},
      {"extent 0", with({{"w", {0}, 0, 0}}, 32), "dimension 0 is 0"},
      {"extent 2^60", with({{"w", {kHuge}, 0, 0}}, 32), "dimension 0 is 1152921504606846976"},
      {"product wraps", with({{"w", {1 << 30, 1 << 30, 1 << 30}, 0, 0}}, 32), "dimension 1"},
      {"unknown type", with({{"w", {8}, 99, 0}}, 32), "ggml type 99"},
      {"part of a block", with({{"w", {33}, 8, 0}}, 64), "blocks of 32"},
      {"odd offset", with({{"w", {8}, 0, 4}}, 64), "offset 4 is not a multiple"},
      {"offset past the end", with({{"w", {8}, 0, kHuge}}, 64), "truncated: tensor w"},
      {"data past the end", with({{"w", {64}, 0, 0}}, 64), "truncated: tensor w"},
      {"overlap", with({{"w", {16}, 0, 0}, {"v", {16}, 0, 32}}, 96), "w and v overlap"},
      {"same tensor twice", with({{"w", {8}, 0, 0}, {"w", {8}, 0, 32}}, 64), "w appears twice"},
  };
}

TEST(Gguf, RefusesHostileFilesByName) {
  for (const HostileCase& hostile : HostileCases()) {
    const auto file = Parse(hostile.bytes);
    ASSERT_FALSE(file.ok()) << hostile.what;
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("m.gguf: ")) << hostile.what;
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(hostile.message)) << hostile.what;
  }
}

TEST(Gguf, RefusesEveryTruncation) {
  const std::string bytes = GgufBuilder()
                                .String("general.architecture", "llama")
                                .Strings("tokenizer.ggml.tokens", {"a", "b"})
                                .Add({"w", {8}, 0, 0})
                                .Build(32);
  ASSERT_TRUE(Parse(bytes).ok());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(std::string(Parse(bytes.substr(0, size)).status().message()),
                HasSubstr("truncated"))
        << size;
  }
}

}  // namespace
}  // namespace rempart::worker
