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

// Of each token: how many scales its activations have, and what its sums take.
int64_t ScalesOf(const DeviceMatrix& w) {
  return w.format == DeviceFormat::kFP8Block ? CeilDivide(w.cols, kScaleBlock) : 1;
}
int64_t SumBytesOf(const DeviceMatrix& w) {
  return w.format == DeviceFormat::kINT8Row ? 4 * w.rows : 0;
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
  const bool is_quantized = args.w.format != DeviceFormat::kBF16;
  const bool is_done = Takes(args) && (is_quantized ? MultiplyQuantized(args, stream)
                                                    : library_->Matmul(args, {}, stream));
  if (is_done) {
    ++products_;
  } else {
    NoteRefusal(args);
  }
  return is_done;
}

ProductWay WayOf(const DeviceMatmulArgs& args, BlasProducts* library) {
  if (args.num_tokens <= kMatvecTokens) return ProductWay::kMatvec;
  return library != nullptr && library->Takes(args) ? ProductWay::kLibrary : ProductWay::kTiles;
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

bool BlasProducts::Takes(const DeviceMatmulArgs& args) {
  switch (args.w.format) {
    case DeviceFormat::kBF16:
      return library_->Has(args, {});
    case DeviceFormat::kFP8Row:
      return args.w.cols % 16 == 0 && TakesAllCounts(args);
    case DeviceFormat::kINT8Row:
      return args.w.int8_activations && args.w.cols % 16 == 0 && TakesAllCounts(args);
    case DeviceFormat::kFP8Block:
      return TakesBlocks(args) && TakesAllCounts(args);
    default:
      return false;
  }
}

bool BlasProducts::TakesBlocks(const DeviceMatmulArgs& args) const {
  const int64_t rows = args.w.rows;
  if (!without_fp8_.empty() || args.w.cols % kScaleBlock != 0) return false;
  if (args.y_rows % kProductRows != 0) return false;
  // "Tensor Core Usage" of the library's documentation, which FP8 products demand.
  if (rows * BytesOf(args) % 16 != 0 || args.y_stride * BytesOf(args) % 16 != 0) return false;
  for (const void* memory :
       {args.w.data, static_cast<const void*>(args.w.scales), static_cast<const void*>(args.y)}) {
    if (AlignmentOf(memory) < 16) return false;
  }
  return true;
}

// All but num_tokens decides.
bool BlasProducts::TakesAllCounts(const DeviceMatmulArgs& args) {
  const int64_t most = MostTokens(args.w);
  if (most < 1 || args.x_stride != args.w.cols || args.y_rows < args.num_tokens) return false;
  const Shape shape = {args.w.format,
                       args.w.rows,
                       args.w.cols,
                       args.y_rows,
                       args.y_stride,
                       args.y_is_f32,
                       AlignmentOf(args.w.data),
                       AlignmentOf(args.y)};
  const auto known = takes_all_counts_.find(shape);
  if (known != takes_all_counts_.end()) return known->second;
  bool takes = true;
  DeviceMatmulArgs part = args;
  for (const int64_t count : BlasTokenCounts(args.y_rows, most)) {
    part.num_tokens = count;
    const Layout at = LayOut(count, args.w);
    takes = takes && library_->Has(part, {at.codes, at.scales, at.sums});
  }
  takes_all_counts_[shape] = takes;
  return takes;
}

bool BlasProducts::MultiplyQuantized(const DeviceMatmulArgs& args, DeviceStream stream) {
  const int64_t rows = args.w.rows, cols = args.w.cols, most = MostTokens(args.w);
  const bool is_int8 = args.w.format == DeviceFormat::kINT8Row;
  const int64_t group = args.w.format == DeviceFormat::kFP8Block ? kScaleBlock : 0;
  for (int64_t first = 0; first < args.num_tokens; first += most) {
    DeviceMatmulArgs part = PartOf(args, first, std::min(most, args.num_tokens - first));
    const int64_t tokens = part.num_tokens;
    part.num_tokens = BlasTokens(tokens, part.y_rows);
    const Layout at = LayOut(part.num_tokens, args.w);
    ops_.quantize_rows({part.x, at.codes, at.scales, is_int8, tokens, cols, group, part.num_tokens},
                       stream);
    if (!library_->Matmul(part, {at.codes, at.scales, at.sums}, stream)) return false;
    if (!is_int8) continue;
    ops_.scale_sums(
        {at.sums, at.scales, part.w.scales, part.y, part.y_stride, part.y_is_f32, tokens, rows},
        stream);
  }
  return true;
}

int64_t BlasProducts::MostTokens(const DeviceMatrix& w) const {
  const int64_t token_bytes = w.cols + 4 * ScalesOf(w) + SumBytesOf(w);
  return (options_.room_bytes - 2 * kBlasAligned) / token_bytes / kTokenTile * kTokenTile;
}

BlasProducts::Layout BlasProducts::LayOut(int64_t tokens, const DeviceMatrix& w) const {
  auto* const at = static_cast<uint8_t*>(options_.room);
  const int64_t scales_at = RoundUp(tokens * w.cols, kBlasAligned);
  const int64_t sums_at = scales_at + RoundUp(tokens * ScalesOf(w) * 4, kBlasAligned);
  return {at, reinterpret_cast<float*>(at + scales_at), reinterpret_cast<int32_t*>(at + sums_at)};
}

}  // namespace rempart::kernels::cuda
