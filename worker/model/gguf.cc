// SPDX-License-Identifier: Apache-2.0
#include "worker/model/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

using kernels::DType;

constexpr uint64_t kMaxMetadata = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 16;
constexpr uint64_t kMaxKeyBytes = 1024;
constexpr uint64_t kMaxTensorNameBytes = 256;
constexpr uint64_t kMaxStringBytes = 16 << 20;
constexpr uint64_t kMaxArrayElements = 1 << 24;
constexpr uint64_t kMaxDimensions = 4;
constexpr uint64_t kMaxAlignment = 1 << 16;
constexpr uint64_t kDefaultAlignment = 32;

// Bytes of a number in the file; 0 for what is not a number.
uint64_t NumberBytes(uint32_t type) {
  constexpr uint8_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return type < std::size(kBytes) ? kBytes[type] : 0;
}

std::optional<DType> FromGgmlType(uint32_t type) {
  switch (type) {
    case 0:
      return DType::kF32;
    case 1:
      return DType::kF16;
    case 2:
      return DType::kQ4_0;
    case 3:
      return DType::kQ4_1;
    case 6:
      return DType::kQ5_0;
    case 7:
      return DType::kQ5_1;
    case 8:
      return DType::kQ8_0;
    case 12:
      return DType::kQ4_K;
    case 13:
      return DType::kQ5_K;
    case 10:
      return DType::kQ2_K;
    case 11:
      return DType::kQ3_K;
    case 14:
      return DType::kQ6_K;
    case 20:
      return DType::kIQ4_NL;
    case 23:
      return DType::kIQ4_XS;
    case 39:
      return DType::kMXFP4;
    case 30:
      return DType::kBF16;
    default:
      return std::nullopt;
  }
}

template <typename T>
T Load(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

GgufValue LoadNumber(GgufType type, const uint8_t* data) {
  switch (type) {
    case GgufType::kUint8:
      return uint64_t{*data};
    case GgufType::kInt8:
      return int64_t{Load<int8_t>(data)};
    case GgufType::kUint16:
      return uint64_t{Load<uint16_t>(data)};
    case GgufType::kInt16:
      return int64_t{Load<int16_t>(data)};
    case GgufType::kUint32:
      return uint64_t{Load<uint32_t>(data)};
    case GgufType::kInt32:
      return int64_t{Load<int32_t>(data)};
    case GgufType::kInt64:
      return Load<int64_t>(data);
    case GgufType::kFloat32:
      return double{Load<float>(data)};
    case GgufType::kFloat64:
      return Load<double>(data);
    case GgufType::kBool:
      return *data != 0;
    default:
      return Load<uint64_t>(data);
  }
}

struct TensorHeader {
  TensorView view;
  uint64_t offset = 0;  // in the tensor data section
};

// Walks the file once. Every read is bounded by what remains.
class Parser {
 public:
  Parser(absl::string_view name, absl::Span<const uint8_t> bytes) : name_(name), bytes_(bytes) {}

  absl::StatusOr<GgufFile> Parse();

 private:
  template <typename... Args>
  absl::Status Invalid(const Args&... args) const {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": ", args...));
  }
  absl::Status Truncated(absl::string_view what) const {
    return Invalid("the file is truncated: ", what, " at byte ", position_, " needs more than the ",
                   bytes_.size(), " bytes that are there; download it again");
  }
  uint64_t remaining() const { return bytes_.size() - position_; }

  template <typename T>
  absl::StatusOr<T> Read(absl::string_view what) {
    if (remaining() < sizeof(T)) return Truncated(what);
    const T value = Load<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return value;
  }
  absl::StatusOr<absl::string_view> ReadString(absl::string_view what, uint64_t max_bytes);
  absl::StatusOr<GgufValue> ReadValue(absl::string_view key);
  absl::StatusOr<GgufValue> ReadArray(absl::string_view key);
  absl::Status ReadHeader(uint64_t* tensor_count, uint64_t* metadata_count);
  absl::Status ReadMetadata(uint64_t count);
  absl::StatusOr<TensorHeader> ReadTensorHeader();
  absl::Status CheckAlignment();
  absl::Status PlaceTensors(std::vector<TensorHeader> headers);

  const absl::string_view name_;
  const absl::Span<const uint8_t> bytes_;
  uint64_t position_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  GgufFile file_;
};

absl::StatusOr<absl::string_view> Parser::ReadString(absl::string_view what, uint64_t max_bytes) {
  ASSIGN_OR_RETURN(const uint64_t length, Read<uint64_t>(what));
  if (length > max_bytes) {
    return Invalid("the length of ", what, " is ", length, ", more than ", max_bytes,
                   "; the file is damaged: download it again");
  }
  if (length > remaining()) return Truncated(what);
  const absl::string_view text(reinterpret_cast<const char*>(bytes_.data() + position_), length);
  position_ += length;
  return text;
}

absl::StatusOr<GgufValue> Parser::ReadArray(absl::string_view key) {
  ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>(key));
  ASSIGN_OR_RETURN(const uint64_t count, Read<uint64_t>(key));
  if (count > kMaxArrayElements) {
    return Invalid("metadata ", key, " has ", count, " elements, more than ", kMaxArrayElements,
                   "; the file is damaged: download it again");
  }
  if (type == static_cast<uint32_t>(GgufType::kString)) {
    // A string takes 8 bytes at least: this bounds what is reserved by what is there.
    if (count > remaining() / 8) return Truncated(key);
    GgufStrings strings;
    strings.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(const absl::string_view text, ReadString(key, kMaxStringBytes));
      strings.push_back(text);
    }
    return GgufValue(std::move(strings));
  }
  const uint64_t bytes = NumberBytes(type);
  if (bytes == 0) {
    return Invalid("metadata ", key, " is an array of type ", type,
                   ", which is not known; convert the model with a current converter");
  }
  if (count > remaining() / bytes) return Truncated(key);
  const GgufNumbers numbers = {static_cast<GgufType>(type), count, bytes_.data() + position_};
  position_ += count * bytes;
  return GgufValue(numbers);
}

absl::StatusOr<GgufValue> Parser::ReadValue(absl::string_view key) {
  ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>(key));
  if (type == static_cast<uint32_t>(GgufType::kArray)) return ReadArray(key);
  if (type == static_cast<uint32_t>(GgufType::kString)) {
    ASSIGN_OR_RETURN(const absl::string_view text, ReadString(key, kMaxStringBytes));
    return GgufValue(text);
  }
  const uint64_t bytes = NumberBytes(type);
  if (bytes == 0) {
    return Invalid("metadata ", key, " has type ", type,
                   ", which is not known; convert the model with a current converter");
  }
  if (remaining() < bytes) return Truncated(key);
  GgufValue value = LoadNumber(static_cast<GgufType>(type), bytes_.data() + position_);
  position_ += bytes;
  return value;
}

absl::Status Parser::ReadHeader(uint64_t* tensor_count, uint64_t* metadata_count) {
  ASSIGN_OR_RETURN(const uint32_t magic, Read<uint32_t>("magic"));
  if (magic != 0x46554747) {
    return Invalid("magic: not a GGUF file (it must begin with \"GGUF\"); name a .gguf file");
  }
  ASSIGN_OR_RETURN(const uint32_t version, Read<uint32_t>("version"));
  if (version != 2 && version != 3) {
    return Invalid("version ", version, " of GGUF is not supported (2 and 3 are); ",
                   (version & 0xffff) == 0 ? "the file is big-endian: " : "",
                   "convert the model with a current converter");
  }
  ASSIGN_OR_RETURN(*tensor_count, Read<uint64_t>("tensor_count"));
  ASSIGN_OR_RETURN(*metadata_count, Read<uint64_t>("metadata_kv_count"));
  if (*tensor_count > kMaxTensors) {
    return Invalid("tensor_count is ", *tensor_count, ", more than ", kMaxTensors,
                   "; the file is damaged: download it again");
  }
  if (*metadata_count > kMaxMetadata) {
    return Invalid("metadata_kv_count is ", *metadata_count, ", more than ", kMaxMetadata,
                   "; the file is damaged: download it again");
  }
  return absl::OkStatus();
}

absl::Status Parser::ReadMetadata(uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const absl::string_view key,
                     ReadString(absl::StrCat("the key of metadata ", i), kMaxKeyBytes));
    ASSIGN_OR_RETURN(GgufValue value, ReadValue(key));
    if (!file_.metadata.Insert(key, std::move(value))) {
      return Invalid("metadata ", key, " appears twice; the file is damaged: download it again");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorHeader> Parser::ReadTensorHeader() {
  TensorHeader header;
  ASSIGN_OR_RETURN(const absl::string_view name, ReadString("a tensor name", kMaxTensorNameBytes));
  header.view.name = std::string(name);
  ASSIGN_OR_RETURN(const uint32_t dimensions, Read<uint32_t>(name));
  if (dimensions == 0 || dimensions > kMaxDimensions) {
    return Invalid("tensor ", name, ": n_dimensions is ", dimensions, ", must be 1 to ",
                   kMaxDimensions, "; the file is damaged: download it again");
  }
  uint64_t elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    ASSIGN_OR_RETURN(const uint64_t extent, Read<uint64_t>(name));
    if (extent == 0 || extent > (uint64_t{1} << 40) / elements) {
      return Invalid("tensor ", name, ": dimension ", i, " is ", extent,
                     ", which is zero or makes the tensor too large; the file is damaged: download "
                     "it again");
    }
    elements *= extent;
    header.view.shape.insert(header.view.shape.begin(), static_cast<int64_t>(extent));
  }
  ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>(name));
  const std::optional<DType> dtype = FromGgmlType(type);
  if (!dtype.has_value()) {
    return absl::UnimplementedError(absl::StrCat(
        name_, ": tensor ", name, " has ggml type ", type,
        "; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, "
        "Q6_K, IQ4_NL, IQ4_XS, MXFP4: "
        "use a file quantised to one of them, for example Q4_K_M"));
  }
  header.view.type = *dtype;
  const int64_t cols = header.view.shape.back();
  if (cols % kernels::BlockElements(*dtype) != 0) {
    return Invalid("tensor ", name, ": rows of ", cols, " elements do not divide into blocks of ",
                   kernels::BlockElements(*dtype), " (", kernels::DTypeName(*dtype),
                   "); the file is damaged: download it again");
  }
  header.view.bytes = kernels::RowBytes(*dtype, cols) * (static_cast<int64_t>(elements) / cols);
  ASSIGN_OR_RETURN(header.offset, Read<uint64_t>(name));
  return header;
}

absl::Status Parser::CheckAlignment() {
  const absl::StatusOr<uint64_t> alignment =
      file_.metadata.Uint("general.alignment", kDefaultAlignment);
  if (!alignment.ok()) return Invalid(alignment.status().message());
  alignment_ = *alignment;
  if (alignment_ < 8 || alignment_ > kMaxAlignment || (alignment_ & (alignment_ - 1)) != 0) {
    return Invalid("general.alignment is ", alignment_, ", must be a power of two from 8 to ",
                   kMaxAlignment, "; convert the model with a current converter");
  }
  return absl::OkStatus();
}

absl::Status Parser::PlaceTensors(std::vector<TensorHeader> headers) {
  const uint64_t data_start = (position_ + alignment_ - 1) / alignment_ * alignment_;
  if (data_start > bytes_.size()) return headers.empty() ? absl::OkStatus() : Truncated("data");
  const uint64_t data_bytes = bytes_.size() - data_start;
  std::sort(headers.begin(), headers.end(),
            [](const TensorHeader& a, const TensorHeader& b) { return a.offset < b.offset; });
  uint64_t end_of_last = 0;
  std::string last;
  for (TensorHeader& header : headers) {
    TensorView& view = header.view;
    const uint64_t bytes = static_cast<uint64_t>(view.bytes);
    if (header.offset % alignment_ != 0) {
      return Invalid("tensor ", view.name, ": offset ", header.offset,
                     " is not a multiple of general.alignment ", alignment_,
                     "; the file is damaged: download it again");
    }
    if (header.offset > data_bytes || bytes > data_bytes - header.offset) {
      return Invalid("the file is truncated: tensor ", view.name, " needs bytes ",
                     data_start + header.offset, " to ", data_start + header.offset, " + ", bytes,
                     ", the file has ", bytes_.size(), "; download it again");
    }
    if (header.offset < end_of_last) {
      return Invalid("tensors ", last, " and ", view.name,
                     " overlap; the file is damaged: download it again");
    }
    end_of_last = header.offset + bytes;
    view.data = bytes_.data() + data_start + header.offset;
    const std::string name = view.name;
    const auto [it, inserted] = file_.tensors.try_emplace(name, std::move(view));
    if (!inserted) {
      return Invalid("tensor ", name, " appears twice; the file is damaged: download it again");
    }
    last = name;
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufFile> Parser::Parse() {
  uint64_t tensor_count = 0;
  uint64_t metadata_count = 0;
  RETURN_IF_ERROR(ReadHeader(&tensor_count, &metadata_count));
  RETURN_IF_ERROR(ReadMetadata(metadata_count));
  RETURN_IF_ERROR(CheckAlignment());
  std::vector<TensorHeader> headers;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    ASSIGN_OR_RETURN(TensorHeader header, ReadTensorHeader());
    headers.push_back(std::move(header));
  }
  RETURN_IF_ERROR(PlaceTensors(std::move(headers)));
  return std::move(file_);
}

absl::Status WrongKind(absl::string_view key, absl::string_view kind) {
  return absl::InvalidArgumentError(absl::StrCat("metadata ", key, " is not ", kind,
                                                 "; convert the model with a current converter"));
}

}  // namespace

absl::StatusOr<const GgufValue*> GgufMetadata::Find(absl::string_view key) const {
  const auto it = values_.find(key);
  if (it == values_.end()) {
    return absl::NotFoundError(
        absl::StrCat("metadata ", key, " is missing; convert the model with a current converter"));
  }
  return &it->second;
}

absl::StatusOr<uint64_t> GgufMetadata::Uint(absl::string_view key,
                                            std::optional<uint64_t> fallback) const {
  if (fallback.has_value() && !Has(key)) return *fallback;
  ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* number = std::get_if<uint64_t>(value)) return *number;
  const auto* number = std::get_if<int64_t>(value);
  if (number == nullptr || *number < 0) return WrongKind(key, "a non-negative integer");
  return static_cast<uint64_t>(*number);
}

absl::StatusOr<double> GgufMetadata::Float(absl::string_view key,
                                           std::optional<double> fallback) const {
  if (fallback.has_value() && !Has(key)) return *fallback;
  ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* number = std::get_if<double>(value)) {
    if (std::isfinite(*number)) return *number;
    return absl::InvalidArgumentError(
        absl::StrCat("metadata ", key, " is ", *number,
                     "; it must be finite: convert the model with a current converter"));
  }
  if (const auto* number = std::get_if<uint64_t>(value)) return static_cast<double>(*number);
  if (const auto* number = std::get_if<int64_t>(value)) return static_cast<double>(*number);
  return WrongKind(key, "a number");
}

absl::StatusOr<bool> GgufMetadata::Bool(absl::string_view key, std::optional<bool> fallback) const {
  if (fallback.has_value() && !Has(key)) return *fallback;
  ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  return WrongKind(key, "a boolean");
}

absl::StatusOr<absl::string_view> GgufMetadata::String(
    absl::string_view key, std::optional<absl::string_view> fallback) const {
  if (fallback.has_value() && !Has(key)) return *fallback;
  ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* text = std::get_if<absl::string_view>(value)) return *text;
  return WrongKind(key, "a string");
}

absl::StatusOr<absl::Span<const absl::string_view>> GgufMetadata::Strings(
    absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  if (const auto* strings = std::get_if<GgufStrings>(value)) return absl::MakeConstSpan(*strings);
  return WrongKind(key, "an array of strings");
}

absl::StatusOr<std::vector<float>> GgufMetadata::Floats(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  const auto* numbers = std::get_if<GgufNumbers>(value);
  if (numbers == nullptr) return WrongKind(key, "an array of numbers");
  const uint64_t bytes = NumberBytes(static_cast<uint32_t>(numbers->type));
  std::vector<float> floats(numbers->count);
  for (uint64_t i = 0; i < numbers->count; ++i) {
    std::visit(
        [&](const auto& number) {
          if constexpr (std::is_arithmetic_v<std::decay_t<decltype(number)>>) {
            floats[i] = static_cast<float>(number);
          }
        },
        LoadNumber(numbers->type, numbers->data + i * bytes));
  }
  return floats;
}

absl::StatusOr<std::vector<int64_t>> GgufMetadata::Ints(absl::string_view key) const {
  ASSIGN_OR_RETURN(const GgufValue* value, Find(key));
  const auto* numbers = std::get_if<GgufNumbers>(value);
  if (numbers == nullptr || numbers->type == GgufType::kFloat32 ||
      numbers->type == GgufType::kFloat64) {
    return WrongKind(key, "an array of integers");
  }
  const uint64_t bytes = NumberBytes(static_cast<uint32_t>(numbers->type));
  std::vector<int64_t> ints(numbers->count);
  for (uint64_t i = 0; i < numbers->count; ++i) {
    const GgufValue number = LoadNumber(numbers->type, numbers->data + i * bytes);
    if (const auto* large = std::get_if<uint64_t>(&number)) {
      if (*large > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return WrongKind(key, "an array of 64-bit integers");
      }
      ints[i] = static_cast<int64_t>(*large);
    } else if (const auto* flag = std::get_if<bool>(&number)) {
      ints[i] = *flag ? 1 : 0;
    } else {
      ints[i] = std::get<int64_t>(number);
    }
  }
  return ints;
}

absl::StatusOr<GgufFile> ParseGguf(absl::string_view name, absl::Span<const uint8_t> bytes) {
  return Parser(name, bytes).Parse();
}

}  // namespace rempart::worker
