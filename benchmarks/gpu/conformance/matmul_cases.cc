// SPDX-License-Identifier: Apache-2.0
// Products of every weight format, and embedding, which reads weights too.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/conformance/harness.h"

namespace rempart::benchmarks {
namespace {

using kernels::DeviceMatmulArgs;

struct Shape {
  int64_t tokens, rows;
  int64_t blocks;  // of the format's columns
  bool y_is_f32;
};

// A way to multiply, and what it may change.
struct Way {
  void (*op)(const DeviceMatmulArgs&, kernels::DeviceStream) = nullptr;  // null: Device::Matmul
  bool rounds_weights = false;                                           // to BF16
  bool may_quantise = false;    // activations of many tokens, and not round weights then
  int64_t columns_between = 8;  // rows of x
  int64_t y_between = 3;        // elements between rows of y
  int64_t y_begins = 0;         // so many elements into an allocation
  bool may_pad = false;         // y has rows for more tokens
  bool by_library = false;      // it has to be a library's, where the device has one for the format
};

// What op quantize_rows makes of activations [tokens, cols], and stands for: by rows, or by groups
// of columns.
std::vector<float> Quantized(const std::vector<float>& x, int64_t cols, bool is_int8,
                             int64_t group) {
  const float code_max = is_int8 ? 127.0f : kernels::cuda::kFp8Max;
  std::vector<float> values(x.size());
  for (size_t row = 0; row < x.size(); row += cols) {
    for (int64_t first = 0; first < cols; first += group) {
      const size_t begin = row + first, end = row + std::min(cols, first + group);
      float largest = 0;
      for (size_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(x[i]));
      const float inverse = largest > 0 ? code_max / largest : 0;
      for (size_t i = begin; i < end; ++i) {
        const float scaled = x[i] * inverse;
        const float code =
            is_int8 ? std::nearbyint(scaled) : kernels::cuda::ToFloat(kernels::cuda::ToFp8(scaled));
        values[i] = code * (largest / code_max);
      }
    }
  }
  return values;
}

// x w^T, with the elements within `tolerance` of the largest sum before it cancels.
Trial::Expectation Multiply(const std::vector<float>& x, int64_t x_stride,
                            const std::vector<float>& w, const Shape& shape, int64_t cols,
                            double tolerance) {
  Trial::Expectation expected = {{}, 0};
  for (int64_t t = 0; t < shape.tokens; ++t) {
    for (int64_t r = 0; r < shape.rows; ++r) {
      double sum = 0, squares = 0;
      for (int64_t c = 0; c < cols; ++c) {
        const double product = static_cast<double>(x[t * x_stride + c]) * w[r * cols + c];
        sum += product;
        squares += product * product;
      }
      expected.absolute = std::max(expected.absolute, std::sqrt(squares) * tolerance);
      expected.values.push_back(static_cast<float>(sum));
    }
  }
  return expected;
}

// All that the device may give: our own kernels' product, and a library's of quantised activations.
std::vector<Trial::Expectation> Expected(const Way& way, kernels::DeviceFormat format,
                                         const std::vector<float>& x, int64_t x_stride,
                                         const TestMatrix& m, const Shape& shape) {
  using kernels::DeviceFormat;
  const int64_t cols = m.matrix.cols;
  std::vector<float> w = m.values;
  if (way.rounds_weights) RoundToBf16(w);
  // A weight next to the middle between two BF16 may round either way.
  std::vector<Trial::Expectation> expected = {
      Multiply(x, x_stride, w, shape, cols, way.rounds_weights ? 1e-3 : 2e-5)};
  if (!way.may_quantise || format == DeviceFormat::kBF16) return expected;
  const bool is_int8 = format == DeviceFormat::kINT8Row;
  const int64_t group = format == DeviceFormat::kFP8Block ? kernels::kScaleBlock : cols;
  // Tensor cores keep about 14 bits of the sum of FP8 products; those of INT8 are exact.
  expected.push_back(Multiply(Quantized(x, cols, is_int8, group), cols, m.values, shape, cols,
                              is_int8 ? 2e-5 : 2e-3));
  return expected;
}

absl::Status RunShape(Trial& trial, const Way& way, const MatrixFormat& format,
                      const Shape& shape) {
  const int64_t cols = FormatColumns(format) * shape.blocks;
  ASSIGN_OR_RETURN(const TestMatrix m, MakeMatrix(trial, format, shape.rows, cols));
  const int64_t x_stride = cols + way.columns_between;
  std::vector<float> x = RandomFloats(trial.random, shape.tokens * x_stride);
  RoundToBf16(x);
  ASSIGN_OR_RETURN(auto x_device, DeviceArray<uint16_t>::From(trial.device, ToBits(x)));
  const int64_t y_stride = shape.rows + way.y_between;
  constexpr int64_t kRows = kernels::kProductRows;
  const int64_t y_rows = way.may_pad ? (shape.tokens + kRows - 1) / kRows * kRows : shape.tokens;
  ASSIGN_OR_RETURN(auto y_device,
                   DeviceArray<float>::Make(trial.device, way.y_begins + y_rows * y_stride));
  DeviceMatmulArgs args;
  args.w = m.matrix;
  args.w.int8_activations = way.op == nullptr && format.format == kernels::DeviceFormat::kINT8Row;
  args.x = x_device.data();
  args.x_stride = x_stride;
  args.y = reinterpret_cast<uint8_t*>(y_device.data()) + way.y_begins * (shape.y_is_f32 ? 4 : 2);
  args.y_stride = y_stride;
  args.y_is_f32 = shape.y_is_f32;
  args.num_tokens = shape.tokens;
  args.y_rows = way.may_pad ? y_rows : 0;
  const int64_t products_before = trial.device.library_products();
  if (way.op != nullptr) {
    way.op(args, trial.device.stream());
  } else {
    RETURN_IF_ERROR(trial.device.Matmul(args));
  }
  ASSIGN_OR_RETURN(const std::vector<float> words, y_device.Read(trial.device));
  std::vector<uint16_t> halves(words.size() * 2);
  std::memcpy(halves.data(), words.data(), words.size() * 4);
  std::vector<float> actual;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    for (int64_t r = 0; r < shape.rows; ++r) {
      const int64_t at = way.y_begins + t * y_stride + r;
      actual.push_back(shape.y_is_f32 ? words[at]
                                      : kernels::cuda::ToFloat(kernels::cuda::Bf16{halves[at]}));
    }
  }
  const std::string what =
      absl::StrCat(way.op == nullptr ? "chosen " : "", FormatName(format), " [", shape.tokens, ", ",
                   cols, "] x [", shape.rows, "]", shape.y_is_f32 ? " F32" : "");
  // Our own tiles give right sums, too, at half the rate.
  if (way.by_library && trial.device.HasLibraryFor(format.format)) {
    trial.Require(what + " by the library", trial.device.library_products() == products_before + 1);
  }
  trial.CompareEither(what, actual, Expected(way, format.format, x, x_stride, m, shape),
                      shape.y_is_f32 ? 1e-5 : 0.004);
  return absl::OkStatus();
}

// What a device makes of a product by its own choice: on a GPU a library's kernels for many tokens,
// which may quantise the activations of 8-bit weights.
absl::Status RunChosen(Trial& trial) {
  using kernels::DeviceFormat;
  for (const DeviceFormat format : {DeviceFormat::kBF16, DeviceFormat::kFP8Row,
                                    DeviceFormat::kFP8Block, DeviceFormat::kINT8Row}) {
    Way way = {nullptr, true, true, 0, 3, 8, true};
    RETURN_IF_ERROR(RunShape(trial, way, {format}, {9, 48, 4, true}));
    // Nothing is in the library's way.
    Way suited = {nullptr, true, true, 0, 0, 0, true, true};
    RETURN_IF_ERROR(RunShape(trial, suited, {format}, {33, 256, 64, false}));
    RETURN_IF_ERROR(RunShape(trial, suited, {format}, {144, 128, 32, true}));
    way.y_between = 8;
    // Few tokens are never quantised, nor are weights rounded for them.
    RETURN_IF_ERROR(RunShape(trial, {nullptr, false, false, 0, 8, 8, true}, {format},
                             {kernels::kMatvecTokens, 48, 16, false}));
    // Rows that end in the middle of a block of scales, and numbers of them that are no multiple of
    // four.
    for (const Shape& shape : {Shape{9, 144, 80, true}, Shape{41, 48, 16, true},
                               Shape{33, 272, 64, false}, Shape{18, 16, 96, false}}) {
      RETURN_IF_ERROR(RunShape(trial, way, {format}, shape));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MatvecCase(Trial& trial) {
  for (const MatrixFormat& format : AllMatrixFormats()) {
    for (const Shape& shape : {Shape{1, 9, 3, true}, Shape{1, 64, 5, false}, Shape{3, 17, 2, false},
                               Shape{8, 5, 4, true}}) {
      RETURN_IF_ERROR(RunShape(trial, {trial.device.ops().matvec}, format, shape));
    }
  }
  return absl::OkStatus();
}

absl::Status MatmulCase(Trial& trial) {
  for (const MatrixFormat& format : AllMatrixFormats()) {
    for (const Shape& shape :
         {Shape{9, 130, 3, false}, Shape{33, 40, 1, true}, Shape{65, 129, 2, false}}) {
      RETURN_IF_ERROR(RunShape(trial, {trial.device.ops().matmul, true}, format, shape));
    }
  }
  // More columns than two steps of the tile, and an odd end.
  RETURN_IF_ERROR(RunShape(trial, {trial.device.ops().matmul, true}, {kernels::DeviceFormat::kBF16},
                           {130, 200, 33, false}));
  return RunChosen(trial);
}

// The table begins at id 100: those before and after it are other ranks'.
absl::Status EmbedOfAPart(Trial& trial) {
  const int64_t rows = 5, cols = 40;
  ASSIGN_OR_RETURN(const TestMatrix m,
                   MakeMatrix(trial, {kernels::DeviceFormat::kBF16}, rows, cols));
  const std::vector<int32_t> ids = {99, 100, 104, 105, -1, 2};
  ASSIGN_OR_RETURN(auto ids_device, DeviceArray<int32_t>::From(trial.device, ids));
  const auto count = static_cast<int64_t>(ids.size());
  ASSIGN_OR_RETURN(auto out, DeviceArray<float>::Make(trial.device, count * cols));
  kernels::DeviceEmbedArgs args;
  args.table = m.matrix;
  args.first_id = 100;
  args.ids = ids_device.data();
  args.out = out.data();
  args.num_tokens = count;
  trial.device.ops().embed(args, trial.device.stream());
  ASSIGN_OR_RETURN(const std::vector<float> actual, out.Read(trial.device));
  std::vector<float> expected;
  for (const int32_t id : ids) {
    const bool is_inside = id >= 100 && id < 105;
    for (int64_t c = 0; c < cols; ++c) {
      expected.push_back(is_inside ? m.values[(id - 100) * cols + c] : 0.0f);
    }
  }
  trial.Compare("a part of the table", actual, expected, 1e-7, 1e-6);
  return absl::OkStatus();
}

absl::Status EmbedCase(Trial& trial) {
  for (const MatrixFormat& format : AllMatrixFormats()) {
    const int64_t rows = 37;
    const int64_t cols = FormatColumns(format) * 3;
    ASSIGN_OR_RETURN(const TestMatrix m, MakeMatrix(trial, format, rows, cols));
    const std::vector<int32_t> ids = {0, 36, 5, -1, 37, 5};
    ASSIGN_OR_RETURN(auto ids_device, DeviceArray<int32_t>::From(trial.device, ids));
    const auto count = static_cast<int64_t>(ids.size());
    ASSIGN_OR_RETURN(auto out, DeviceArray<float>::Make(trial.device, count * cols));
    kernels::DeviceEmbedArgs args;
    args.table = m.matrix;
    args.ids = ids_device.data();
    args.scale = 1.5f;
    args.out = out.data();
    args.num_tokens = count;
    trial.device.ops().embed(args, trial.device.stream());
    ASSIGN_OR_RETURN(const std::vector<float> actual, out.Read(trial.device));
    std::vector<float> expected;
    for (const int32_t id : ids) {
      for (int64_t c = 0; c < cols; ++c) {
        expected.push_back(id < 0 || id >= rows ? 0.0f : 1.5f * m.values[id * cols + c]);
      }
    }
    trial.Compare(FormatName(format), actual, expected, 1e-7, 1e-6);
  }
  return EmbedOfAPart(trial);
}

}  // namespace rempart::benchmarks
