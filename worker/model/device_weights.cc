// SPDX-License-Identifier: Apache-2.0
#include "worker/model/device_weights.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "kernels/cuda/numbers.h"
#include "worker/device/thread_pool.h"
#include "worker/model/device_quantized.h"

namespace rempart::worker {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kStagingBytes = 16 << 20;
// That one thread reads of it. Even, as numbers of two bytes are not cut.
constexpr int64_t kReadBytes = 1 << 20;
// Rows that are made together are staged together, in BF16 at most.
static_assert(kMaxQuantizedCols * 2 * kINT4Rows <= kStagingBytes);

int64_t StrideOf(const Matrix& matrix) {
  return matrix.stride_bytes > 0 ? matrix.stride_bytes
                                 : kernels::RowBytes(matrix.view.type, matrix.view.cols);
}

// Calls `piece` with each run of at most one row of the units [at, at + count) of a matrix whose
// rows have `row` of them: piece(row, first unit in it, units, how many went before).
template <class Piece>
void ForEachRow(int64_t row, int64_t at, int64_t count, Piece piece) {
  for (int64_t done = 0; done < count;) {
    const int64_t first = (at + done) % row;
    const int64_t units = std::min(row - first, count - done);
    piece((at + done) / row, first, units, done);
    done += units;
  }
}

// Lays tensors out one after the other: counts bytes, or, with a device, copies too. Both runs see
// the same tensors in the same order, so that the count is exact.
class Uploader {
 public:
  Uploader() = default;
  static absl::StatusOr<Uploader> Into(Device& device, uint8_t* memory, int threads) {
    Uploader uploader;
    uploader.readers_ = std::make_unique<ThreadPool>(ThreadPoolOptions{.threads = threads});
    uploader.device_ = &device;
    uploader.memory_ = memory;
    for (PinnedBuffer& staging : uploader.staging_) {
      ASSIGN_OR_RETURN(staging, PinnedBuffer::Make(device, kStagingBytes));
    }
    return uploader;
  }

  int64_t bytes() const { return used_; }
  const UploadTimes& times() const { return times_; }
  // Waits for what is on its way.
  absl::Status Finish() {
    const absl::Time begin = SteadyNow();
    RETURN_IF_ERROR(device_->Finish());
    times_.wait += SteadyNow() - begin;
    return absl::OkStatus();
  }
  // Called after each piece, with the bytes copied so far.
  void Report(std::function<void(int64_t)> on_piece) { on_piece_ = std::move(on_piece); }

  // From now on plain matrices become FP8 by rows, through BF16 on the device.
  void QuantizeToFp8() { scratch_ = Take(kStagingBytes), to_fp8_ = true; }

  absl::StatusOr<const float*> Vector(absl::Span<const float> values) {
    if (values.empty()) return nullptr;
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
    uint8_t* to = Take(bytes);
    RETURN_IF_ERROR(Copy(to, reinterpret_cast<const uint8_t*>(values.data()), bytes));
    return reinterpret_cast<const float*>(to);
  }

  // The matrices one below the other; they have one format.
  absl::StatusOr<kernels::DeviceMatrix> Stack(absl::Span<const Matrix* const> parts) {
    const kernels::WeightView& first = parts[0]->view;
    if (parts[0]->quantized != nullptr) return StackQuantized(parts);
    if (to_fp8_ && !kernels::IsQuantized(first.type) && first.cols % 16 == 0) {
      return StackAsFp8(parts);
    }
    if (first.cols % 8 != 0) {
      return absl::UnimplementedError(
          absl::StrCat("a matrix of ", first.cols, " columns: a GPU needs a multiple of 8"));
    }
    for (const Matrix* part : parts) {
      if (!kernels::DeviceReads(part->view.type)) {
        return absl::UnimplementedError(
            absl::StrCat("weights of type ", kernels::DTypeName(part->view.type),
                         " are not served on GPUs yet: use another file, or spec.device cpu"));
      }
    }
    kernels::DeviceMatrix matrix;
    matrix.format = kernels::IsQuantized(first.type) ? kernels::DeviceFormat::kGguf
                                                     : kernels::DeviceFormat::kBF16;
    matrix.gguf = first.type;
    matrix.cols = first.cols;
    for (const Matrix* part : parts) matrix.rows += part->view.rows;
    uint8_t* to = Take(kernels::DeviceMatrixBytes(matrix));
    matrix.data = to;
    if (device_ == nullptr) return matrix;
    for (const Matrix* part : parts) {
      const kernels::WeightView& view = part->view;
      if (matrix.format == kernels::DeviceFormat::kGguf) {
        RETURN_IF_ERROR(CopyRows(to, *part));
        to += kernels::RowBytes(view.type, view.cols) * view.rows;
      } else {
        RETURN_IF_ERROR(CopyAsBf16(to, *part));
        to += view.rows * view.cols * 2;
      }
    }
    return matrix;
  }

  // Neighbours of one format become one matrix.
  absl::StatusOr<Product> Fuse(absl::Span<const Matrix* const> matrices) {
    Product product;
    int64_t row = 0;
    for (size_t begin = 0; begin < matrices.size();) {
      size_t end = begin + 1;
      while (end < matrices.size() && SameFormat(*matrices[end - 1], *matrices[end])) ++end;
      ASSIGN_OR_RETURN(kernels::DeviceMatrix matrix, Stack(matrices.subspan(begin, end - begin)));
      product.push_back({matrix, row});
      row += matrix.rows;
      begin = end;
    }
    return product;
  }

 private:
  absl::StatusOr<kernels::DeviceMatrix> StackAsFp8(absl::Span<const Matrix* const> parts) {
    kernels::DeviceMatrix matrix;
    matrix.format = kernels::DeviceFormat::kFP8Row;
    matrix.cols = parts[0]->view.cols;
    for (const Matrix* part : parts) matrix.rows += part->view.rows;
    uint8_t* codes = Take(kernels::DeviceMatrixBytes(matrix));
    auto* scales = reinterpret_cast<float*>(Take(matrix.rows * 4));
    matrix.data = codes;
    matrix.scales = scales;
    if (device_ == nullptr) return matrix;
    const int64_t rows_at_once = std::max<int64_t>(1, kStagingBytes / (matrix.cols * 2));
    for (const Matrix* part : parts) {
      for (int64_t row = 0; row < part->view.rows; row += rows_at_once) {
        Matrix rows;
        rows.view = part->view;
        rows.stride_bytes = StrideOf(*part);
        rows.view.rows = std::min(rows_at_once, part->view.rows - row);
        rows.view.data = static_cast<const uint8_t*>(part->view.data) + row * rows.stride_bytes;
        RETURN_IF_ERROR(CopyAsBf16(scratch_, rows));
        device_->ops().quantize_rows({reinterpret_cast<const uint16_t*>(scratch_), codes, scales,
                                      false, rows.view.rows, matrix.cols},
                                     device_->stream());
        codes += rows.view.rows * matrix.cols;
        scales += rows.view.rows;
      }
    }
    return matrix;
  }

  absl::StatusOr<kernels::DeviceMatrix> StackQuantized(absl::Span<const Matrix* const> parts) {
    const std::vector<QuantizedWindow> windows = WindowsOf(parts);
    for (const QuantizedWindow& window : windows) RETURN_IF_ERROR(CheckWindow(window));
    kernels::DeviceMatrix matrix;
    matrix.format = FormatOnDevice(windows[0].matrix);
    matrix.cols = windows[0].cols;
    for (const QuantizedWindow& window : windows) matrix.rows += window.rows;
    if (matrix.format == kernels::DeviceFormat::kBF16) return StackExpanded(windows, matrix);
    if (matrix.format == kernels::DeviceFormat::kINT4Group) return StackGroups(windows, matrix);
    return StackCodes(windows, matrix);
  }

  // Eight bits a code, and F32 scales.
  absl::StatusOr<kernels::DeviceMatrix> StackCodes(const std::vector<QuantizedWindow>& windows,
                                                   kernels::DeviceMatrix matrix) {
    std::vector<float> scales;
    for (const QuantizedWindow& window : windows) AppendScales(window, scales);
    uint8_t* codes = Take(kernels::DeviceMatrixBytes(matrix));
    matrix.data = codes;
    for (const QuantizedWindow& window : windows) {
      const int64_t stride = window.matrix.cols;
      RETURN_IF_ERROR(CopyRows(codes, window.matrix.codes + window.row * stride + window.col,
                               window.cols, stride, window.rows));
      if (device_ != nullptr) codes += window.rows * window.cols;
    }
    ASSIGN_OR_RETURN(matrix.scales, Vector(scales));
    return matrix;
  }

  absl::StatusOr<kernels::DeviceMatrix> StackGroups(const std::vector<QuantizedWindow>& windows,
                                                    kernels::DeviceMatrix matrix) {
    matrix.group = windows[0].matrix.group;
    const int64_t groups = matrix.cols / matrix.group;
    uint8_t* const codes = Take(kernels::DeviceMatrixBytes(matrix));
    uint8_t* const scales = Take(matrix.rows * groups * 2);
    uint8_t* const zeros = Take(matrix.rows * groups);
    matrix.data = codes;
    matrix.group_scales = reinterpret_cast<const uint16_t*>(scales);
    matrix.group_zeros = zeros;
    RETURN_IF_ERROR(FillRows(codes, matrix.cols / 2, windows, PackNibbles));
    RETURN_IF_ERROR(
        FillRows(scales, groups * 2, windows, [](const QuantizedWindow& window, uint8_t* to) {
          GroupScales(window, reinterpret_cast<uint16_t*>(to));
        }));
    RETURN_IF_ERROR(FillRows(zeros, groups, windows, GroupZeros));
    return matrix;
  }

  // As BF16: columns of one group lie apart.
  absl::StatusOr<kernels::DeviceMatrix> StackExpanded(const std::vector<QuantizedWindow>& windows,
                                                      kernels::DeviceMatrix matrix) {
    uint8_t* const to = Take(kernels::DeviceMatrixBytes(matrix));
    matrix.data = to;
    RETURN_IF_ERROR(FillRows(to, matrix.cols * 2, windows, Expand));
    return matrix;
  }

  // Rows of `row_bytes` each, made by fill(window, to), window after window.
  template <class Fill>
  absl::Status FillRows(uint8_t* to, int64_t row_bytes, const std::vector<QuantizedWindow>& windows,
                        Fill fill) {
    for (const QuantizedWindow& window : windows) {
      if (device_ == nullptr) return absl::OkStatus();
      const int64_t bytes = window.rows * row_bytes;
      RETURN_IF_ERROR(Stage(
          to, bytes,
          [&](uint8_t* staging, int64_t at, int64_t size) {
            const int64_t row = window.row + at / row_bytes;
            fill({window.matrix, row, size / row_bytes, window.col, window.cols}, staging);
          },
          kINT4Rows * row_bytes));
      to += bytes;
    }
    return absl::OkStatus();
  }

  static bool SameFormat(const Matrix& a, const Matrix& b) {
    if (a.quantized != nullptr || b.quantized != nullptr) return CanStack(a, b);
    const bool plain = !kernels::IsQuantized(a.view.type) && !kernels::IsQuantized(b.view.type);
    return a.view.cols == b.view.cols && (plain || a.view.type == b.view.type);
  }

  uint8_t* Take(int64_t bytes) {
    uint8_t* at = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }

  // Through pinned memory, one half filled while the other is on its way; in runs of whole units.
  template <class Fill>
  absl::Status Stage(uint8_t* to, int64_t bytes, Fill fill, int64_t unit = 2) {
    if (device_ == nullptr) return absl::OkStatus();
    CHECK(unit <= kStagingBytes) << "a unit of " << unit << " bytes";
    const int64_t at_once = kStagingBytes / unit * unit;
    const int64_t per_thread = std::max(unit, kReadBytes / unit * unit);
    for (int64_t done = 0; done < bytes;) {
      const int64_t size = std::min(at_once, bytes - done);
      // The copy before the last has read this half.
      if (in_flight_ == 2) {
        RETURN_IF_ERROR(Finish());
        in_flight_ = 0;
      }
      uint8_t* staging = staging_[half_].as<uint8_t>();
      const absl::Time begin = SteadyNow();
      readers_->ParallelFor(size, per_thread, [&](int64_t first, int64_t end) {
        fill(staging + first, done + first, end - first);
      });
      times_.read += SteadyNow() - begin;
      device_->CopyIn(to + done, staging, size);
      half_ ^= 1;
      ++in_flight_;
      done += size;
      copied_ += size;
      if (on_piece_) on_piece_(copied_);
    }
    return absl::OkStatus();
  }

  absl::Status Copy(uint8_t* to, const uint8_t* from, int64_t bytes) {
    return Stage(to, bytes, [&](uint8_t* staging, int64_t at, int64_t size) {
      std::memcpy(staging, from + at, static_cast<size_t>(size));
    });
  }

  // The rows of a matrix as they are, side by side.
  absl::Status CopyRows(uint8_t* to, const Matrix& matrix) {
    return CopyRows(to, static_cast<const uint8_t*>(matrix.view.data),
                    kernels::RowBytes(matrix.view.type, matrix.view.cols), StrideOf(matrix),
                    matrix.view.rows);
  }
  absl::Status CopyRows(uint8_t* to, const uint8_t* from, int64_t row_bytes, int64_t stride,
                        int64_t rows) {
    return Stage(to, row_bytes * rows, [&](uint8_t* staging, int64_t at, int64_t size) {
      ForEachRow(row_bytes, at, size, [&](int64_t row, int64_t first, int64_t bytes, int64_t done) {
        std::memcpy(staging + done, from + row * stride + first, static_cast<size_t>(bytes));
      });
    });
  }

  absl::Status CopyAsBf16(uint8_t* to, const Matrix& matrix) {
    const kernels::WeightView& view = matrix.view;
    if (view.type == kernels::DType::kBF16) return CopyRows(to, matrix);
    const int64_t stride = StrideOf(matrix);
    const auto convert = [&](const uint8_t* row, int64_t column) {
      if (view.type == kernels::DType::kF32) return reinterpret_cast<const float*>(row)[column];
      return kernels::cuda::HalfBitsToFloat(reinterpret_cast<const uint16_t*>(row)[column]);
    };
    return Stage(to, view.rows * view.cols * 2, [&](uint8_t* staging, int64_t at, int64_t size) {
      ForEachRow(view.cols, at / 2, size / 2,
                 [&](int64_t row, int64_t first, int64_t count, int64_t done) {
                   const uint8_t* from = static_cast<const uint8_t*>(view.data) + row * stride;
                   for (int64_t i = 0; i < count; ++i) {
                     const kernels::cuda::Bf16 rounded =
                         kernels::cuda::ToBf16(convert(from, first + i));
                     std::memcpy(staging + 2 * (done + i), &rounded, 2);
                   }
                 });
    });
  }

  Device* device_ = nullptr;  // null: only count
  std::unique_ptr<ThreadPool> readers_;
  UploadTimes times_;
  uint8_t* memory_ = nullptr;
  int64_t used_ = 0;
  int64_t copied_ = 0;
  std::function<void(int64_t)> on_piece_;
  bool to_fp8_ = false;
  uint8_t* scratch_ = nullptr;  // kStagingBytes of device memory
  PinnedBuffer staging_[2];
  int half_ = 0;
  int in_flight_ = 0;
};

absl::Status CheckSupport(const ModelConfig& config, const Partition& partition,
                          const DeviceModelOptions& options) {
  if (config.output_bias || config.ffn_bias) {
    return absl::UnimplementedError(
        absl::StrCat("models with biases of the attention's output or of the feed-forward block (",
                     config.architecture, ") are not served on GPUs yet: use spec.device cpu"));
  }
  if (config.head_dim % 8 != 0 || config.head_dim > 256) {
    return absl::UnimplementedError(absl::StrCat("heads of ", config.head_dim,
                                                 " elements: a GPU needs a multiple of 8, at most "
                                                 "256; use spec.device cpu"));
  }
  if (options.kv_is_fp8 && config.head_dim % 16 != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("heads of ", config.head_dim,
                     " elements: engine.kvCacheType fp8 needs a multiple of 16; use auto"));
  }
  if (config.hidden % 8 != 0 || config.hidden > 32768 || config.ffn % 8 != 0) {
    return absl::UnimplementedError(
        absl::StrCat("hidden size ", config.hidden, " and feed-forward size ", config.ffn,
                     ": a GPU needs multiples of 8, hidden at most 32768; use spec.device cpu"));
  }
  if (partition.Own(partition.ffn).count() == 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the feed-forward size ", config.ffn, " cannot be shared by ", partition.of.size,
        " ranks on GPUs: set spec.parallelism.tensor to fewer, or spec.device to cpu"));
  }
  return absl::OkStatus();
}

std::vector<float> ConcatenatedBias(const LayerWeights& layer) {
  std::vector<float> bias;
  for (const Matrix* matrix : {&layer.query, &layer.key, &layer.value}) {
    bias.insert(bias.end(), matrix->bias.begin(), matrix->bias.end());
  }
  return bias;
}

absl::Status UploadLayer(Uploader& uploader, const LayerWeights& from, DeviceLayer& to) {
  ASSIGN_OR_RETURN(to.attention_norm, uploader.Vector(from.attention_norm));
  ASSIGN_OR_RETURN(to.ffn_norm, uploader.Vector(from.ffn_norm));
  ASSIGN_OR_RETURN(to.query_norm, uploader.Vector(from.query_norm));
  ASSIGN_OR_RETURN(to.key_norm, uploader.Vector(from.key_norm));
  ASSIGN_OR_RETURN(to.post_attention_norm, uploader.Vector(from.post_attention_norm));
  ASSIGN_OR_RETURN(to.post_ffn_norm, uploader.Vector(from.post_ffn_norm));
  ASSIGN_OR_RETURN(to.qkv_bias, uploader.Vector(ConcatenatedBias(from)));
  const Matrix* qkv[] = {&from.query, &from.key, &from.value};
  const Matrix* output[] = {&from.output};
  const Matrix* gate_up[] = {&from.gate, &from.up};
  const Matrix* down[] = {&from.down};
  ASSIGN_OR_RETURN(to.qkv, uploader.Fuse(qkv));
  ASSIGN_OR_RETURN(to.output, uploader.Fuse(output));
  to.output_lead = from.output.lead;
  ASSIGN_OR_RETURN(to.gate_up, uploader.Fuse(gate_up));
  ASSIGN_OR_RETURN(to.down, uploader.Fuse(down));
  return absl::OkStatus();
}

absl::Status Upload(Uploader& uploader, const ModelConfig& config, const Weights& from,
                    const DeviceModelOptions& options, DeviceWeights& to) {
  const RankPosition& of = from.partition.of;
  if (of.is_first_stage()) {
    const Matrix* embedding[] = {&from.embedding};
    ASSIGN_OR_RETURN(to.embedding, uploader.Stack(embedding));
  }
  if (of.is_first_stage() && from.head.view.data == from.embedding.view.data) {
    to.head = {{to.embedding, 0}};
  } else if (of.is_last_stage()) {
    const Matrix* head[] = {&from.head};
    ASSIGN_OR_RETURN(to.head, uploader.Fuse(head));
  }
  ASSIGN_OR_RETURN(to.output_norm, uploader.Vector(from.output_norm));
  for (const RopeSpec& rope : config.ropes) {
    const bool is_long =
        !rope.long_inverse_frequency.empty() && options.context_length > rope.long_beyond;
    ASSIGN_OR_RETURN(const float* frequency, uploader.Vector(is_long ? rope.long_inverse_frequency
                                                                     : rope.inverse_frequency));
    to.inverse_frequencies.push_back(frequency);
  }
  if (options.weights_to_fp8) uploader.QuantizeToFp8();
  to.layers.resize(from.layers.size());
  for (size_t i = 0; i < from.layers.size(); ++i) {
    RETURN_IF_ERROR(UploadLayer(uploader, from.layers[i], to.layers[i]));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int64_t> DeviceWeightsBytes(const ModelConfig& config, const Weights& weights,
                                           const DeviceModelOptions& options) {
  RETURN_IF_ERROR(CheckSupport(config, weights.partition, options));
  Uploader counter;
  DeviceWeights ignored;
  RETURN_IF_ERROR(Upload(counter, config, weights, options, ignored));
  return counter.bytes();
}

absl::StatusOr<DeviceWeights> UploadWeights(Device& device, const ModelConfig& config,
                                            const Weights& weights,
                                            const DeviceModelOptions& options,
                                            const UploadProgress& on_progress) {
  ASSIGN_OR_RETURN(const int64_t bytes, DeviceWeightsBytes(config, weights, options));
  DeviceWeights uploaded;
  ASSIGN_OR_RETURN(uploaded.memory, DeviceBuffer::Make(device, bytes));
  ASSIGN_OR_RETURN(Uploader uploader, Uploader::Into(device, uploaded.memory.as<uint8_t>(),
                                                     std::max(1, options.load_threads)));
  // What becomes FP8 on its way is copied as BF16, which is more.
  if (on_progress) {
    uploader.Report([&](int64_t copied) { on_progress(std::min(copied, bytes), bytes); });
  }
  RETURN_IF_ERROR(Upload(uploader, config, weights, options, uploaded));
  RETURN_IF_ERROR(uploader.Finish());
  uploaded.times = uploader.times();
  return uploaded;
}

}  // namespace rempart::worker
