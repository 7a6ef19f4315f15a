// SPDX-License-Identifier: Apache-2.0
// Writes GGUF files, right and wrong ones, for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace rempart::worker {

class GgufBuilder {
 public:
  struct Tensor {
    std::string name;
    std::vector<uint64_t> extents;  // innermost first
    uint32_t type = 0;
    uint64_t offset = 0;
  };

  GgufBuilder& Uint(absl::string_view key, uint32_t value) {
    Key(key, 4);
    Append(&metadata_, value);
    return *this;
  }
  GgufBuilder& Float(absl::string_view key, float value) {
    Key(key, 6);
    Append(&metadata_, value);
    return *this;
  }
  GgufBuilder& String(absl::string_view key, absl::string_view value) {
    Key(key, 8);
    AppendString(&metadata_, value);
    return *this;
  }
  GgufBuilder& Strings(absl::string_view key, const std::vector<std::string>& values) {
    Key(key, 9);
    Append(&metadata_, uint32_t{8});
    Append(&metadata_, uint64_t{values.size()});
    for (const std::string& value : values) AppendString(&metadata_, value);
    return *this;
  }
  GgufBuilder& Bools(absl::string_view key, const std::vector<bool>& values) {
    Key(key, 9);
    Append(&metadata_, uint32_t{7});
    Append(&metadata_, uint64_t{values.size()});
    for (const bool value : values) Append(&metadata_, uint8_t{value});
    return *this;
  }
  // An array header that claims `count` numbers of `type` and holds none.
  GgufBuilder& EmptyArray(absl::string_view key, uint32_t type, uint64_t count) {
    Key(key, 9);
    Append(&metadata_, type);
    Append(&metadata_, count);
    return *this;
  }
  GgufBuilder& Add(Tensor tensor) {
    tensors_.push_back(std::move(tensor));
    return *this;
  }
  // With its bytes, after those of the tensors before.
  GgufBuilder& Add(Tensor tensor, absl::string_view data) {
    tensor.offset = data_.size();
    data_.append(data.data(), data.size());
    data_.resize((data_.size() + 31) / 32 * 32);
    return Add(std::move(tensor));
  }

  // `data_bytes`: zeros after the tensors that were added with their bytes.
  std::string Build(size_t data_bytes, uint32_t version = 3) const {
    std::string out = "GGUF";
    Append(&out, version);
    Append(&out, uint64_t{tensors_.size()});
    Append(&out, metadata_count_);
    out += metadata_;
    for (const Tensor& tensor : tensors_) {
      AppendString(&out, tensor.name);
      Append(&out, static_cast<uint32_t>(tensor.extents.size()));
      for (const uint64_t extent : tensor.extents) Append(&out, extent);
      Append(&out, tensor.type);
      Append(&out, tensor.offset);
    }
    out.resize((out.size() + 31) / 32 * 32);
    out += data_;
    out.resize(out.size() + data_bytes);
    return out;
  }

 private:
  template <typename T>
  static void Append(std::string* out, T value) {
    out->append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  static void AppendString(std::string* out, absl::string_view text) {
    Append(out, uint64_t{text.size()});
    out->append(text.data(), text.size());
  }
  void Key(absl::string_view key, uint32_t type) {
    AppendString(&metadata_, key);
    Append(&metadata_, type);
    ++metadata_count_;
  }

  std::string metadata_;
  uint64_t metadata_count_ = 0;
  std::vector<Tensor> tensors_;
  std::string data_;
};

}  // namespace rempart::worker
