// SPDX-License-Identifier: Apache-2.0
// Reads GGUF files, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
// Files come from outside: every count, length, offset and size is checked against the bytes that
// are there before it is used, and every error names the field and what to do.
//
// Strings and arrays are views into the bytes given to ParseGguf, which must outlive the result.
// Arrays of arrays are refused. Of a model in several files (common/split_files.h) this reads
// one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "worker/model/tensor_view.h"

namespace rempart::worker {

enum class GgufType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12
};

// Numbers of one type, unaligned in the file.
struct GgufNumbers {
  GgufType type = GgufType::kUint8;
  uint64_t count = 0;
  const uint8_t* data = nullptr;
};

using GgufStrings = std::vector<absl::string_view>;
using GgufValue =
    std::variant<uint64_t, int64_t, double, bool, absl::string_view, GgufNumbers, GgufStrings>;

// The key-value pairs of a file. Getters answer NotFound for an absent key without a fallback and
// InvalidArgument for a value of another kind; they accept every width of integer and float. What
// Float gives is finite.
class GgufMetadata {
 public:
  bool Has(absl::string_view key) const { return values_.contains(key); }
  absl::StatusOr<uint64_t> Uint(absl::string_view key,
                                std::optional<uint64_t> fallback = std::nullopt) const;
  absl::StatusOr<double> Float(absl::string_view key,
                               std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Bool(absl::string_view key,
                            std::optional<bool> fallback = std::nullopt) const;
  absl::StatusOr<absl::string_view> String(
      absl::string_view key, std::optional<absl::string_view> fallback = std::nullopt) const;
  absl::StatusOr<absl::Span<const absl::string_view>> Strings(absl::string_view key) const;
  absl::StatusOr<std::vector<float>> Floats(absl::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> Ints(absl::string_view key) const;

  // False when the key is there already.
  bool Insert(absl::string_view key, GgufValue value) {
    return values_.try_emplace(key, std::move(value)).second;
  }

 private:
  absl::StatusOr<const GgufValue*> Find(absl::string_view key) const;

  absl::flat_hash_map<absl::string_view, GgufValue> values_;
};

struct GgufFile {
  GgufMetadata metadata;
  TensorMap tensors;
};

// `name` begins every error message.
absl::StatusOr<GgufFile> ParseGguf(absl::string_view name, absl::Span<const uint8_t> bytes);

}  // namespace rempart::worker
