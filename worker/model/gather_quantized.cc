// SPDX-License-Identifier: Apache-2.0
#include "worker/model/gather_quantized.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "kernels/blocks.h"

namespace rempart::worker {
namespace {

using kernels::DType;

constexpr char kDamaged[] = ": the model is damaged or incomplete; download it again";

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t Elements(const TensorView& tensor) {
  int64_t elements = 1;
  for (const int64_t extent : tensor.shape) elements *= extent;
  return elements;
}

// The numbers of a small tensor.
std::vector<float> Numbers(const TensorView& tensor) {
  std::vector<float> numbers(Elements(tensor));
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (tensor.type == DType::kF32) {
      std::memcpy(&numbers[i], tensor.data + 4 * i, 4);
      continue;
    }
    uint16_t bits;
    std::memcpy(&bits, tensor.data + 2 * i, 2);
    numbers[i] =
        tensor.type == DType::kF16 ? kernels::HalfToFloat(bits) : kernels::BFloat16ToFloat(bits);
  }
  return numbers;
}

int32_t Integer32(const TensorView& tensor, int64_t index) {
  int32_t value;
  std::memcpy(&value, tensor.data + 4 * index, 4);
  return value;
}

// The parts of one module. Taking one removes it from the map.
class Module {
 public:
  // `key` and `name`: of the module, in the map and in the folder.
  Module(std::string key, std::string name, TensorMap& tensors)
      : key_(std::move(key)), name_(std::move(name)), tensors_(tensors) {}

  const std::string& key() const { return key_; }
  const std::string& name() const { return name_; }
  int64_t bytes() const { return bytes_; }

  std::optional<TensorView> TakeIfThere(absl::string_view suffix) {
    const auto found = tensors_.find(absl::StrCat(key_, suffix));
    if (found == tensors_.end()) return std::nullopt;
    TensorView tensor = std::move(found->second);
    tensors_.erase(found);
    bytes_ += tensor.bytes;
    return tensor;
  }
  absl::StatusOr<TensorView> Take(absl::string_view suffix) {
    std::optional<TensorView> tensor = TakeIfThere(suffix);
    if (tensor.has_value()) return *std::move(tensor);
    return absl::InvalidArgumentError(
        absl::StrCat("the tensor ", name_, suffix, " is missing", kDamaged));
  }
  // Of integers of 32 bits and the shape given.
  absl::StatusOr<TensorView> TakeWords(absl::string_view suffix, std::vector<int64_t> shape) {
    ASSIGN_OR_RETURN(TensorView tensor, Take(suffix));
    RETURN_IF_ERROR(Check(tensor, TensorElements::kINT32, shape));
    return tensor;
  }
  // Of F16, BF16 or F32.
  absl::StatusOr<TensorView> TakeNumbers(absl::string_view suffix, std::vector<int64_t> shape) {
    ASSIGN_OR_RETURN(TensorView tensor, Take(suffix));
    RETURN_IF_ERROR(Check(tensor, TensorElements::kNumbers, shape));
    return tensor;
  }

  absl::Status Check(const TensorView& tensor, TensorElements elements,
                     const std::vector<int64_t>& shape) const {
    if (tensor.elements != elements) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the tensor ", tensor.name, " has another dtype than the others of ", name_,
          " ask for: ", elements == TensorElements::kINT32 ? "I32" : "F16, BF16 or F32", kDamaged));
    }
    if (tensor.shape == shape) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("the tensor ", tensor.name, " is ",
                                                   tensor.ShapeText(), " instead of [",
                                                   absl::StrJoin(shape, ", "), "]", kDamaged));
  }

 private:
  const std::string key_, name_;
  TensorMap& tensors_;
  int64_t bytes_ = 0;
};

absl::Status CheckScales(const TensorView& tensor, const std::vector<float>& scales) {
  for (size_t i = 0; i < scales.size(); ++i) {
    if (std::isfinite(scales[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat("the tensor ", tensor.name, ": scale ", i,
                                                   " is not a finite number", kDamaged));
  }
  return absl::OkStatus();
}

// One scale for all, one a row, or one a block; which, its shape tells.
absl::Status ReadCodeScales(const QuantizationConfig& config, const TensorView& tensor,
                            QuantizedMatrix& matrix) {
  if (tensor.elements != TensorElements::kNumbers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tensor ", tensor.name, " holds scales: they must be F32, BF16 or F16", kDamaged));
  }
  const std::vector<int64_t> blocks = {CeilDivide(matrix.rows, kFP8Block),
                                       CeilDivide(matrix.cols, kFP8Block)};
  const std::vector<int64_t> rows = {matrix.rows}, columns = {matrix.rows, 1};
  const bool is_fp8 = matrix.scheme != QuantizedScheme::kINT8Rows;
  matrix.scales = Numbers(tensor);
  RETURN_IF_ERROR(CheckScales(tensor, matrix.scales));
  if (matrix.scales.size() == 1) {
    matrix.scales.assign(matrix.rows, matrix.scales[0]);
  } else if (is_fp8 && config.fp8_blocks && tensor.shape == blocks) {
    matrix.scheme = QuantizedScheme::kFP8Blocks;
  } else if (tensor.shape != rows && tensor.shape != columns) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tensor ", tensor.name, " is ", tensor.ShapeText(), "; scales of ", matrix.name,
        ".weight [", matrix.rows, ", ", matrix.cols, "] are [1], [", matrix.rows, ", 1]",
        is_fp8 && config.fp8_blocks ? absl::StrCat(" or [", absl::StrJoin(blocks, ", "), "]") : "",
        kDamaged));
  }
  return absl::OkStatus();
}

// Codes of eight bits, each of one number.
absl::Status GatherCodes(const QuantizationConfig& config, Module& module, QuantizedMatrix& matrix,
                         TensorElements elements) {
  ASSIGN_OR_RETURN(const TensorView weight, module.Take(".weight"));
  if (weight.shape.size() != 2) {
    return absl::UnimplementedError(absl::StrCat("the tensor ", weight.name, " ",
                                                 weight.ShapeText(),
                                                 " is quantised; only matrices are served so"));
  }
  matrix.scheme =
      elements == TensorElements::kFP8 ? QuantizedScheme::kFP8Rows : QuantizedScheme::kINT8Rows;
  matrix.int8_activations = config.int8_activations;
  matrix.rows = weight.shape[0];
  matrix.cols = weight.shape[1];
  matrix.codes = weight.data;
  std::optional<TensorView> scale = module.TakeIfThere(".weight_scale_inv");
  if (!scale.has_value()) {
    ASSIGN_OR_RETURN(scale, module.Take(".weight_scale"));
  }
  RETURN_IF_ERROR(ReadCodeScales(config, *scale, matrix));
  for (const char* suffix : {".input_scale", ".activation_scale"}) {
    const std::optional<TensorView> input = module.TakeIfThere(suffix);
    if (!input.has_value()) continue;
    if (input->elements != TensorElements::kNumbers || Elements(*input) != 1) {
      return absl::InvalidArgumentError(absl::StrCat("the tensor ", input->name, " is ",
                                                     input->ShapeText(), "; it must be one number",
                                                     kDamaged));
    }
  }
  if (elements == TensorElements::kINT8 && matrix.cols % 32 != 0) {
    return absl::UnimplementedError(
        absl::StrCat(matrix.name, ".weight has ", matrix.cols,
                     " columns; served are multiples of 32 in INT8: use the model in BF16"));
  }
  return absl::OkStatus();
}

// The group of every column, where that is not column / group.
absl::Status ReadGroupOfColumns(const TensorView& tensor, QuantizedMatrix& matrix) {
  const int64_t groups = matrix.cols / matrix.group;
  bool is_spread = false;
  std::vector<int32_t> group_of(matrix.cols);
  for (int64_t c = 0; c < matrix.cols; ++c) {
    group_of[c] = Integer32(tensor, c);
    if (group_of[c] < 0 || group_of[c] >= groups) {
      return absl::InvalidArgumentError(absl::StrCat("the tensor ", tensor.name, ": entry ", c,
                                                     " is ", group_of[c], ", but ", matrix.name,
                                                     " has ", groups, " groups", kDamaged));
    }
    is_spread = is_spread || group_of[c] != c / matrix.group;
  }
  if (is_spread) matrix.group_of_columns = std::move(group_of);
  return absl::OkStatus();
}

bool AllWordsAre(const TensorView& tensor, uint32_t word) {
  for (int64_t i = 0; i < tensor.bytes / 4; ++i) {
    if (static_cast<uint32_t>(Integer32(tensor, i)) != word) return false;
  }
  return true;
}

// [rows, cols] from the shape of the codes, and the group of the configuration.
absl::Status ReadINT4Shape(const QuantizationConfig& config, const TensorView& codes,
                           QuantizedMatrix& matrix) {
  if (codes.elements != TensorElements::kINT32 || codes.shape.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat("the tensor ", codes.name, " is ",
                                                   codes.ShapeText(),
                                                   "; it must be a matrix of I32", kDamaged));
  }
  matrix.scheme = QuantizedScheme::kINT4Groups;
  matrix.layout = *config.int4;
  matrix.zero_offset = config.zero_offset;
  matrix.codes = codes.data;
  const int64_t first = codes.shape[0], second = codes.shape[1];
  switch (matrix.layout) {
    case INT4Layout::kAwq:
      matrix.rows = second * 8, matrix.cols = first;
      break;
    case INT4Layout::kGptq:
      matrix.rows = second, matrix.cols = first * 8;
      break;
    case INT4Layout::kPacked:
      matrix.rows = first, matrix.cols = second * 8;
      break;
  }
  matrix.group = config.group == 0 ? matrix.cols : config.group;
  if (matrix.rows % kINT4Rows != 0 || matrix.cols % matrix.group != 0 || matrix.group % 32 != 0) {
    return absl::UnimplementedError(
        absl::StrCat(matrix.name, " has ", matrix.rows, " outputs and ", matrix.cols,
                     " inputs in groups of ", matrix.group,
                     "; served are multiples of 8 outputs and whole groups of a multiple of 32 "
                     "inputs: use the model in BF16, or a GGUF file of it"));
  }
  return absl::OkStatus();
}

absl::Status GatherINT4(const QuantizationConfig& config, Module& module, QuantizedMatrix& matrix) {
  const bool is_packed = *config.int4 == INT4Layout::kPacked;
  ASSIGN_OR_RETURN(const TensorView codes, module.Take(is_packed ? ".weight_packed" : ".qweight"));
  RETURN_IF_ERROR(ReadINT4Shape(config, codes, matrix));
  const int64_t groups = matrix.cols / matrix.group;
  const std::vector<int64_t> of_scales = is_packed ? std::vector<int64_t>{matrix.rows, groups}
                                                   : std::vector<int64_t>{groups, matrix.rows};
  ASSIGN_OR_RETURN(const TensorView scales,
                   module.TakeNumbers(is_packed ? ".weight_scale" : ".scales", of_scales));
  matrix.group_scales = scales.data;
  matrix.scale_type = scales.type;
  matrix.is_symmetric = true;
  if (config.has_zeros) {
    const std::vector<int64_t> of_zeros = is_packed ? std::vector<int64_t>{matrix.rows / 8, groups}
                                                    : std::vector<int64_t>{groups, matrix.rows / 8};
    ASSIGN_OR_RETURN(const TensorView zeros,
                     module.TakeWords(is_packed ? ".weight_zero_point" : ".qzeros", of_zeros));
    matrix.zeros = zeros.data;
    matrix.is_symmetric = AllWordsAre(zeros, matrix.zero_offset == 0 ? 0x88888888 : 0x77777777);
  }
  if (is_packed) {
    std::optional<TensorView> shape = module.TakeIfThere(".weight_shape");
    if (shape.has_value() && Elements(*shape) != 2) {
      return module.Check(*shape, shape->elements, {2});
    }
  }
  const char* const order = is_packed ? ".weight_g_idx" : ".g_idx";
  const std::optional<TensorView> group_of = module.TakeIfThere(order);
  if (!group_of.has_value()) return absl::OkStatus();
  RETURN_IF_ERROR(module.Check(*group_of, TensorElements::kINT32, {matrix.cols}));
  return ReadGroupOfColumns(*group_of, matrix);
}

absl::Status Gather(const QuantizationConfig& config, Module& module, TensorElements elements,
                    TensorMap& tensors) {
  auto matrix = std::make_shared<QuantizedMatrix>();
  matrix->name = module.name();
  if (elements == TensorElements::kINT32) {
    RETURN_IF_ERROR(GatherINT4(config, module, *matrix));
  } else {
    RETURN_IF_ERROR(GatherCodes(config, module, *matrix, elements));
  }
  TensorView whole;
  whole.name = module.name() + ".weight";
  whole.type = ExpandedType(*matrix);
  whole.shape = {matrix->rows, matrix->cols};
  whole.bytes = module.bytes();
  whole.quantized = std::move(matrix);
  if (tensors.try_emplace(module.key() + ".weight", std::move(whole)).second) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(module.name(), " has a quantised weight and a plain one", kDamaged));
}

// A tensor by which a matrix is known to be quantised.
bool IsMark(const QuantizationConfig& config, absl::string_view suffix, const TensorView& tensor) {
  if (suffix == ".weight") {
    return (config.fp8 && tensor.elements == TensorElements::kFP8) ||
           (config.int8 && tensor.elements == TensorElements::kINT8);
  }
  if (!config.int4.has_value()) return false;
  return suffix == (*config.int4 == INT4Layout::kPacked ? ".weight_packed" : ".qweight");
}

}  // namespace

absl::Status GatherQuantized(const QuantizationConfig& config, TensorMap& tensors) {
  struct Mark {
    std::string key, name;
    TensorElements elements;
  };
  std::vector<Mark> marks;
  for (const auto& [key, tensor] : tensors) {
    const size_t dot = key.rfind('.');
    if (dot == std::string::npos) continue;
    const absl::string_view suffix = absl::string_view(key).substr(dot);
    if (!IsMark(config, suffix, tensor)) continue;
    absl::string_view name = tensor.name;
    absl::ConsumeSuffix(&name, suffix);
    const bool is_int4 = suffix != ".weight";
    marks.push_back({key.substr(0, dot), std::string(name),
                     is_int4 ? TensorElements::kINT32 : tensor.elements});
  }
  // So that the same folder is refused by the same words.
  std::sort(marks.begin(), marks.end(),
            [](const Mark& a, const Mark& b) { return a.name < b.name; });
  for (const Mark& mark : marks) {
    Module module(mark.key, mark.name, tensors);
    RETURN_IF_ERROR(Gather(config, module, mark.elements, tensors));
  }
  return CheckAllPlain(tensors);
}

absl::Status CheckAllPlain(const TensorMap& tensors) {
  const TensorView* first = nullptr;
  for (const auto& [key, tensor] : tensors) {
    if (tensor.elements == TensorElements::kNumbers) continue;
    if (first == nullptr || tensor.name < first->name) first = &tensor;
  }
  if (first == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the tensor ", first->name,
      " is a part of a quantised matrix, but quantization_config of "
      "config.json does not tell of such: download config.json again, or use the model in BF16"));
}

void DropZeroBiases(const ModelConfig& config, TensorMap& tensors) {
  std::vector<std::string> dropped;
  for (const auto& [key, tensor] : tensors) {
    absl::string_view part = key;
    if (!absl::ConsumeSuffix(&part, ".bias")) continue;
    const bool is_wanted = absl::EndsWith(part, "attn_output") ? config.output_bias
                           : absl::StrContains(part, ".attn_") ? config.qkv_bias
                                                               : config.ffn_bias;
    const bool is_zero = std::all_of(tensor.data, tensor.data + tensor.bytes,
                                     [](uint8_t byte) { return byte == 0; });
    if (!is_wanted && is_zero) dropped.push_back(key);
  }
  for (const std::string& key : dropped) tensors.erase(key);
}

}  // namespace rempart::worker
