// SPDX-License-Identifier: Apache-2.0
#include "worker/model/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

using kernels::DType;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 32 << 20;
constexpr size_t kMaxTensors = 1 << 16;
constexpr size_t kMaxNameBytes = 512;
constexpr size_t kMaxDimensions = 8;
constexpr uint64_t kMaxElements = uint64_t{1} << 40;

struct ElementType {
  TensorElements elements;
  DType type;  // of numbers
  int64_t bytes;
};

std::optional<ElementType> FromName(std::string_view name) {
  if (name == "F32") return ElementType{TensorElements::kNumbers, DType::kF32, 4};
  if (name == "F16") return ElementType{TensorElements::kNumbers, DType::kF16, 2};
  if (name == "BF16") return ElementType{TensorElements::kNumbers, DType::kBF16, 2};
  if (name == "F8_E4M3") return ElementType{TensorElements::kFP8, DType::kF32, 1};
  if (name == "I8") return ElementType{TensorElements::kINT8, DType::kF32, 1};
  if (name == "I32") return ElementType{TensorElements::kINT32, DType::kF32, 4};
  if (name == "I64") return ElementType{TensorElements::kINT64, DType::kF32, 8};
  return std::nullopt;
}

struct Placed {
  TensorView view;
  uint64_t begin = 0, end = 0;  // in the data
};

class Parser {
 public:
  Parser(absl::string_view name, absl::Span<const uint8_t> bytes) : name_(name), bytes_(bytes) {}

  absl::StatusOr<TensorMap> Parse();

 private:
  template <typename... Args>
  absl::Status Invalid(const Args&... args) const {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": ", args...));
  }
  absl::StatusOr<uint64_t> HeaderLength() const;
  absl::StatusOr<Placed> ReadTensor(std::string_view name, simdjson::dom::object fields) const;
  absl::Status ReadShape(simdjson::dom::object fields, int64_t element_bytes,
                         TensorView& view) const;
  absl::StatusOr<TensorMap> Place(std::vector<Placed> tensors) const;

  const absl::string_view name_;
  const absl::Span<const uint8_t> bytes_;
  uint64_t data_start_ = 0;
};

absl::StatusOr<uint64_t> Parser::HeaderLength() const {
  uint64_t length = 0;
  if (bytes_.size() < kLengthBytes) {
    return Invalid("the file is truncated: it has ", bytes_.size(), " bytes; download it again");
  }
  for (uint64_t i = 0; i < kLengthBytes; ++i) length |= uint64_t{bytes_[i]} << (8 * i);
  if (length > kMaxHeaderBytes) {
    return Invalid("the length of the header is ", length, ", more than ", kMaxHeaderBytes,
                   "; the file is damaged, or not a safetensors file");
  }
  if (length > bytes_.size() - kLengthBytes) {
    return Invalid("the file is truncated: the header of ", length, " bytes needs more than the ",
                   bytes_.size(), " bytes that are there; download it again");
  }
  return length;
}

absl::Status Parser::ReadShape(simdjson::dom::object fields, int64_t element_bytes,
                               TensorView& view) const {
  simdjson::dom::array shape;
  if (fields["shape"].get(shape) != simdjson::SUCCESS) {
    return Invalid("tensor ", view.name, ": shape is missing or not an array");
  }
  if (shape.size() > kMaxDimensions) {
    return Invalid("tensor ", view.name, ": ", shape.size(), " dimensions, more than ",
                   kMaxDimensions);
  }
  uint64_t elements = 1;
  for (simdjson::dom::element item : shape) {
    uint64_t extent = 0;
    if (item.get(extent) != simdjson::SUCCESS || extent == 0 || extent > kMaxElements / elements) {
      return Invalid("tensor ", view.name, ": shape ", std::string(simdjson::minify(shape)),
                     " has an extent that is zero, no integer, or too large");
    }
    elements *= extent;
    view.shape.push_back(static_cast<int64_t>(extent));
  }
  view.bytes = static_cast<int64_t>(elements) * element_bytes;
  return absl::OkStatus();
}

absl::StatusOr<Placed> Parser::ReadTensor(std::string_view name,
                                          simdjson::dom::object fields) const {
  if (name.empty() || name.size() > kMaxNameBytes) {
    return Invalid("a tensor's name has ", name.size(), " bytes, must be 1 to ", kMaxNameBytes);
  }
  Placed placed;
  TensorView& view = placed.view;
  view.name = std::string(name);
  std::string_view type;
  if (fields["dtype"].get(type) != simdjson::SUCCESS) {
    return Invalid("tensor ", view.name, ": dtype is missing or not a string");
  }
  const std::optional<ElementType> element = FromName(type);
  if (!element.has_value()) {
    return absl::UnimplementedError(absl::StrCat(
        name_, ": tensor ", view.name, " has dtype ", std::string(type),
        "; served are F32, F16 and BF16, and in quantised matrices F8_E4M3, I8, I32 and I64: use "
        "a version of the model in one of them, or a GGUF file of it"));
  }
  view.type = element->type;
  view.elements = element->elements;
  RETURN_IF_ERROR(ReadShape(fields, element->bytes, view));
  simdjson::dom::array offsets;
  if (fields["data_offsets"].get(offsets) != simdjson::SUCCESS || offsets.size() != 2 ||
      offsets.at(0).get(placed.begin) != simdjson::SUCCESS ||
      offsets.at(1).get(placed.end) != simdjson::SUCCESS) {
    return Invalid("tensor ", view.name, ": data_offsets must be two integers");
  }
  const uint64_t data_bytes = bytes_.size() - data_start_;
  if (placed.begin > placed.end || placed.end > data_bytes) {
    return Invalid("tensor ", view.name, ": data_offsets ", placed.begin, " to ", placed.end,
                   " lie outside the ", data_bytes, " bytes of data; download the file again");
  }
  if (placed.end - placed.begin != static_cast<uint64_t>(view.bytes)) {
    return Invalid("tensor ", view.name, ": ", view.ShapeText(), " of ", std::string(type),
                   " needs ", view.bytes, " bytes, data_offsets give ", placed.end - placed.begin);
  }
  view.data = bytes_.data() + data_start_ + placed.begin;
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uint64_t>(element->bytes) != 0) {
    return Invalid("tensor ", view.name, " begins at byte ", data_start_ + placed.begin,
                   ", which is not aligned for ", std::string(type),
                   "; save the model again with a current version of safetensors");
  }
  return placed;
}

absl::StatusOr<TensorMap> Parser::Place(std::vector<Placed> tensors) const {
  std::sort(tensors.begin(), tensors.end(),
            [](const Placed& a, const Placed& b) { return a.begin < b.begin; });
  TensorMap map;
  uint64_t end = 0;
  std::string last = "the header";
  for (Placed& placed : tensors) {
    const std::string name = placed.view.name;
    if (placed.begin != end) {
      return Invalid("between ", last, " and tensor ", name,
                     placed.begin < end ? " data overlaps" : " is data that no tensor owns",
                     "; the file is damaged: download it again");
    }
    end = placed.end;
    if (!map.try_emplace(name, std::move(placed.view)).second) {
      return Invalid("tensor ", name, " appears twice; the file is damaged: download it again");
    }
    last = absl::StrCat("tensor ", name);
  }
  if (end != bytes_.size() - data_start_) {
    return Invalid("after ", last, " are ", bytes_.size() - data_start_ - end,
                   " bytes that no tensor owns; the file is damaged: download it again");
  }
  return map;
}

absl::StatusOr<TensorMap> Parser::Parse() {
  ASSIGN_OR_RETURN(const uint64_t length, HeaderLength());
  data_start_ = kLengthBytes + length;
  simdjson::dom::parser parser;
  simdjson::dom::object header;
  const auto error = parser.parse(bytes_.data() + kLengthBytes, length).get(header);
  if (error != simdjson::SUCCESS) {
    return Invalid("the header is not a JSON object (", simdjson::error_message(error),
                   "); the file is damaged, or not a safetensors file");
  }
  std::vector<Placed> tensors;
  for (const auto& [key, value] : header) {
    if (key == "__metadata__") continue;
    simdjson::dom::object fields;
    if (value.get(fields) != simdjson::SUCCESS) {
      return Invalid("the header's entry ", std::string(key), " is not an object");
    }
    if (tensors.size() == kMaxTensors) return Invalid("more than ", kMaxTensors, " tensors");
    ASSIGN_OR_RETURN(Placed placed, ReadTensor(key, fields));
    tensors.push_back(std::move(placed));
  }
  return Place(std::move(tensors));
}

}  // namespace

absl::StatusOr<TensorMap> ParseSafetensors(absl::string_view name,
                                           absl::Span<const uint8_t> bytes) {
  return Parser(name, bytes).Parse();
}

}  // namespace rempart::worker
