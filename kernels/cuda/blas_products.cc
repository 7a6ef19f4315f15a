// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/blas_products.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/layout.h"

namespace rempart::kernels::cuda {
namespace {

// FP8 with a scale for each row, and with one for each block.
constexpr int64_t kOldestWithFp8 = 120900;
constexpr int64_t kTokenTile = 128;  // of the library's kernels, about

int64_t RoundUp(int64_t value, int64_t unit) { return CeilDivide(value, unit) * unit; }

std::string VersionText(int64_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

// The table "Scaling Mode Support Overview" of the library's documentation.
std::string WhyWithoutFp8(const BlasProducts::Options& options, int64_t version) {
  if (options.compute_major != 9 || options.compute_minor != 0) {
    return "it has scales by rows and by blocks for compute capability 9.0 alone";
  }
  return version < kOldestWithFp8 ? "it has scales by rows and by blocks since 12.9" : "";
}

int64_t BytesOf(const DeviceMatmulArgs& args) { return args.y_is_f32 ? 4 : 2; }

// `count` tokens from `first` on.
DeviceMatmulArgs PartOf(const DeviceMatmulArgs& args, int64_t first, int64_t count) {
  DeviceMatmulArgs part = args;
  part.num_tokens = count;
  part.x += first * args.x_stride;
  part.y = static_cast<uint8_t*>(args.y) + first * args.y_stride * BytesOf(args);
  if (args.y_rows > 0) part.y_rows = args.y_rows - first;
  return part;
}

}  // namespace

int64_t BlasTokens(int64_t tokens, int64_t y_rows) {
  int64_t count = 16;
  while (count < tokens && count < kTokenTile) count *= 2;
  return std::min(RoundUp(tokens, count), y_rows);
}

std::vector<int64_t> BlasTokenCounts(int64_t y_rows, int64_t max_tokens) {
  std::vector<int64_t> counts;
  for (int64_t count = 16; count <= std::min(y_rows, max_tokens);
       count += std::min(count, kTokenTile)) {
    counts.push_back(count);
  }
  // Of the last part: what is left of y.
  const int64_t left = y_rows > max_tokens ? y_rows % max_tokens : y_rows;
  if (left > 0) counts.push_back(left);
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  return counts;
}

BlasProducts::BlasProducts(std::unique_ptr<CublasLt> library, const DeviceOps& ops,
                           const Options& options)
    : library_(std::move(library)),
      ops_(ops),
      options_(options),
      without_fp8_(WhyWithoutFp8(options, library_->version())) {}

std::string BlasProducts::Describe() const {
  return "cuBLASLt " + VersionText(library_->version()) +
         (without_fp8_.empty() ? ", FP8 too" : ", FP8 without it: " + without_fp8_);
}

bool BlasProducts::Has(DeviceFormat format) const {
  return (format == DeviceFormat::kFP8Row || format == DeviceFormat::kFP8Block) &&
         without_fp8_.empty();
}

bool BlasProducts::Multiply(const DeviceMatmulArgs& args, DeviceStream stream) {
  const bool is_done = MultiplyBy(args, stream);
  if (is_done) {
    ++products_;
  } else {
    NoteRefusal(args);
  }
  return is_done;
}

// Of formats that are ours alone there is nothing to say, and of FP8 Describe says it.
void BlasProducts::NoteRefusal(const DeviceMatmulArgs& args) {
  const char* format = nullptr;
  if (args.w.format == DeviceFormat::kBF16) format = "BF16";
  if (args.w.format == DeviceFormat::kFP8Row && without_fp8_.empty()) format = "FP8 by rows";
  if (args.w.format == DeviceFormat::kINT8Row && args.w.int8_activations) format = "INT8";
  if (args.w.format == DeviceFormat::kFP8Block && without_fp8_.empty()) format = "FP8 by blocks";
  if (format == nullptr || options_.when_refused == nullptr) return;
  if (!refused_.emplace(args.w.format, args.w.rows, args.w.cols).second) return;
  options_.when_refused(std::string(format) + ", " + std::to_string(args.w.rows) + " x " +
                        std::to_string(args.w.cols));
}

bool BlasProducts::MultiplyBy(const DeviceMatmulArgs& args, DeviceStream stream) {
  switch (args.w.format) {
    case DeviceFormat::kBF16:
      return library_->Matmul(args, {}, stream);
    case DeviceFormat::kFP8Row:
      return MultiplyByRows(args, stream);
    case DeviceFormat::kINT8Row:
      return args.w.int8_activations && MultiplyByRows(args, stream);
    case DeviceFormat::kFP8Block:
      return MultiplyByBlocks(args, stream);
    default:
      return false;
  }
}

// As many tokens at once as their codes, scales and sums have room for.
bool BlasProducts::MultiplyByRows(const DeviceMatmulArgs& args, DeviceStream stream) {
  const int64_t rows = args.w.rows, cols = args.w.cols;
  if (cols % 16 != 0 || args.x_stride != cols) return false;
  const bool is_int8 = args.w.format == DeviceFormat::kINT8Row;
  const int64_t token_bytes = cols + 4 + (is_int8 ? 4 * rows : 0);
  const int64_t most = (options_.room_bytes - 2 * kBlasAligned) / token_bytes;
  if (most < 1) return false;
  for (int64_t first = 0; first < args.num_tokens; first += most) {
    const DeviceMatmulArgs part = PartOf(args, first, std::min(most, args.num_tokens - first));
    const Layout at = LayOut(part.num_tokens, cols, part.num_tokens);
    const QuantizedTokens tokens = {at.codes, at.scales, at.sums};
    if (!library_->Has(part, tokens)) return false;
    ops_.quantize_rows({part.x, at.codes, at.scales, is_int8, part.num_tokens, cols}, stream);
    if (!library_->Matmul(part, tokens, stream)) return false;
    if (!is_int8) continue;
    ops_.scale_sums({at.sums, at.scales, part.w.scales, part.y, part.y_stride, part.y_is_f32,
                     part.num_tokens, rows},
                    stream);
  }
  return true;
}

bool BlasProducts::MultiplyByBlocks(const DeviceMatmulArgs& args, DeviceStream stream) {
  const int64_t cols = args.w.cols;
  const int64_t groups = CeilDivide(cols, kScaleBlock);
  const int64_t most =
      (options_.room_bytes - kBlasAligned) / (cols + 4 * groups) / kTokenTile * kTokenTile;
  if (!TakesBlocks(args, most)) return false;
  for (int64_t first = 0; first < args.num_tokens; first += most) {
    DeviceMatmulArgs part = PartOf(args, first, std::min(most, args.num_tokens - first));
    const int64_t padded = BlasTokens(part.num_tokens, part.y_rows);
    const Layout at = LayOut(padded, cols, padded * groups);
    ops_.quantize_rows(
        {part.x, at.codes, at.scales, false, part.num_tokens, cols, kScaleBlock, padded}, stream);
    part.num_tokens = padded;
    if (!library_->Matmul(part, {at.codes, at.scales, nullptr}, stream)) return false;
  }
  return true;
}

// All but num_tokens decides.
bool BlasProducts::TakesBlocks(const DeviceMatmulArgs& args, int64_t max_tokens) {
  const int64_t rows = args.w.rows, cols = args.w.cols;
  if (!without_fp8_.empty() || max_tokens < 1 || cols % kScaleBlock != 0) return false;
  if (args.x_stride != cols || args.y_rows % kProductRows != 0 || args.y_rows < args.num_tokens)
    return false;
  // "Tensor Core Usage" of the library's documentation, which FP8 products demand.
  if (rows * BytesOf(args) % 16 != 0 || args.y_stride * BytesOf(args) % 16 != 0) return false;
  for (const void* memory :
       {args.w.data, static_cast<const void*>(args.w.scales), static_cast<const void*>(args.y)}) {
    if (AlignmentOf(memory) < 16) return false;
  }
  const BlockShape shape = {rows,
                            cols,
                            args.y_rows,
                            args.y_stride,
                            args.y_is_f32,
                            AlignmentOf(args.w.data),
                            AlignmentOf(args.y)};
  const auto known = takes_blocks_.find(shape);
  if (known != takes_blocks_.end()) return known->second;
  bool takes = true;
  DeviceMatmulArgs part = args;
  for (const int64_t count : BlasTokenCounts(args.y_rows, max_tokens)) {
    part.num_tokens = count;
    const Layout at = LayOut(count, cols, count * CeilDivide(cols, kScaleBlock));
    takes = takes && library_->Has(part, {at.codes, at.scales, nullptr});
  }
  takes_blocks_[shape] = takes;
  return takes;
}

BlasProducts::Layout BlasProducts::LayOut(int64_t tokens, int64_t cols, int64_t scales) const {
  auto* const at = static_cast<uint8_t*>(options_.room);
  const int64_t scales_at = RoundUp(tokens * cols, kBlasAligned);
  const int64_t sums_at = scales_at + RoundUp(scales * 4, kBlasAligned);
  return {at, reinterpret_cast<float*>(at + scales_at), reinterpret_cast<int32_t*>(at + sums_at)};
}

}  // namespace rempart::kernels::cuda
