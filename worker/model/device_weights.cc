// SPDX-License-Identifier: Apache-2.0
#include "worker/model/device_weights.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/model/device_quantized.h"

namespace rempart::worker {
namespace {

constexpr int64_t kAlignment = 256;

// Lays tensors out one after the other: counts bytes, or, with a device, says what is to be copied
// where. Both runs see the same tensors in the same order, so that the count is exact.
class Uploader {
 public:
  Uploader() = default;
  Uploader(Device& device, uint8_t* memory) : device_(&device), memory_(memory) {}

  int64_t bytes() const { return used_; }
  // Views into the weights, and into this.
  absl::Span<const WeightCopy> copies() const { return copies_; }

  // From now on plain matrices become FP8 by rows, through BF16 on the device.
  void QuantizeToFp8() { scratch_ = Take(kReadPieceBytes), to_fp8_ = true; }

  absl::StatusOr<const float*> Vector(absl::Span<const float> values) {
    if (values.empty()) return nullptr;
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
    uint8_t* to = Take(bytes);
    if (device_ != nullptr) {
      const std::vector<float>& kept = vectors_.emplace_back(values.begin(), values.end());
      copies_.push_back(
          {reinterpret_cast<const uint8_t*>(kept.data()), 1, bytes, bytes, Recast::kNone, to});
    }
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
      WeightCopy copy = CopyOf(*part, to);
      if (matrix.format == kernels::DeviceFormat::kBF16) copy.recast = RecastOf(view.type);
      to += RecastBytes(copy.recast, view.rows * copy.row_bytes);
      copies_.push_back(std::move(copy));
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
    for (const Matrix* part : parts) {
      WeightCopy copy = CopyOf(*part, scratch_);
      copy.recast = RecastOf(part->view.type);
      CHECK_LE(RecastBytes(copy.recast, copy.row_bytes), kReadPieceBytes);
      copy.on_device = [this, codes, scales, cols = matrix.cols](int64_t first, int64_t rows) {
        device_->ops().quantize_rows({reinterpret_cast<const uint16_t*>(scratch_),
                                      codes + first * cols, scales + first, false, rows, cols},
                                     device_->stream());
      };
      copies_.push_back(std::move(copy));
      codes += part->view.rows * matrix.cols;
      scales += part->view.rows;
    }
    return matrix;
  }

  absl::StatusOr<kernels::DeviceMatrix> StackQuantized(absl::Span<const Matrix* const> parts) {
    const std::vector<QuantizedWindow> windows = WindowsOf(parts);
    for (const QuantizedWindow& window : windows) RETURN_IF_ERROR(CheckWindow(window));
    kernels::DeviceMatrix matrix;
    matrix.format = FormatOnDevice(windows[0].matrix);
    matrix.int8_activations = windows[0].matrix.int8_activations;
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
      if (device_ == nullptr) break;
      const int64_t stride = window.matrix.cols;
      copies_.push_back({window.matrix.codes + window.row * stride + window.col, window.rows,
                         window.cols, stride, Recast::kNone, codes});
      codes += window.rows * window.cols;
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
    MakeRows(codes, matrix.cols / 2, windows, PackNibbles);
    MakeRows(scales, groups * 2, windows, [](const QuantizedWindow& window, uint8_t* to) {
      GroupScales(window, reinterpret_cast<uint16_t*>(to));
    });
    MakeRows(zeros, groups, windows, GroupZeros);
    return matrix;
  }

  // As BF16: columns of one group lie apart.
  absl::StatusOr<kernels::DeviceMatrix> StackExpanded(const std::vector<QuantizedWindow>& windows,
                                                      kernels::DeviceMatrix matrix) {
    uint8_t* const to = Take(kernels::DeviceMatrixBytes(matrix));
    matrix.data = to;
    MakeRows(to, matrix.cols * 2, windows,
             [](const QuantizedWindow& window, uint8_t* rows) { Expand(window, rows); });
    return matrix;
  }

  // Rows of `row_bytes` each, made by make(window, to), window after window.
  void MakeRows(uint8_t* to, int64_t row_bytes, const std::vector<QuantizedWindow>& windows,
                void (*make)(const QuantizedWindow&, uint8_t*)) {
    if (device_ == nullptr) return;
    for (const QuantizedWindow& window : windows) {
      WeightCopy copy;
      copy.rows = window.rows;
      copy.row_bytes = copy.stride_bytes = row_bytes;
      copy.to = to;
      copy.make_rows = kINT4Rows;
      copy.make = [window, make](int64_t first, int64_t rows, uint8_t* at) {
        make({window.matrix, window.row + first, rows, window.col, window.cols}, at);
      };
      copies_.push_back(std::move(copy));
      to += window.rows * row_bytes;
    }
  }

  static WeightCopy CopyOf(const Matrix& matrix, uint8_t* to) {
    WeightCopy copy;
    copy.from = static_cast<const uint8_t*>(matrix.view.data);
    copy.rows = matrix.view.rows;
    copy.row_bytes = kernels::RowBytes(matrix.view.type, matrix.view.cols);
    copy.stride_bytes = matrix.stride_bytes > 0 ? matrix.stride_bytes : copy.row_bytes;
    copy.to = to;
    return copy;
  }
  static Recast RecastOf(kernels::DType type) {
    if (type == kernels::DType::kF32) return Recast::kF32ToBf16;
    return type == kernels::DType::kF16 ? Recast::kF16ToBf16 : Recast::kNone;
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

  Device* device_ = nullptr;  // null: only count
  uint8_t* memory_ = nullptr;
  int64_t used_ = 0;
  bool to_fp8_ = false;
  uint8_t* scratch_ = nullptr;  // kReadPieceBytes of device memory
  std::vector<WeightCopy> copies_;
  std::deque<std::vector<float>> vectors_;
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
                                            const UploadOptions& upload) {
  ASSIGN_OR_RETURN(const int64_t bytes, DeviceWeightsBytes(config, weights, options));
  DeviceWeights uploaded;
  ASSIGN_OR_RETURN(uploaded.memory, DeviceBuffer::Make(device, bytes));
  Uploader uploader(device, uploaded.memory.as<uint8_t>());
  RETURN_IF_ERROR(Upload(uploader, config, weights, options, uploaded));
  StreamOptions stream;
  stream.threads = options.load_threads;
  stream.read.piece_bytes = std::min(upload.piece_bytes, kReadPieceBytes);
  stream.read.hash_files = upload.hash_files;
  stream.reader = upload.reader;
  stream.stop = upload.stop;
  if (upload.on_progress) {
    // What becomes FP8 on its way is copied as BF16, which is more; and arrays are aligned.
    stream.on_progress = [&](int64_t queued) {
      upload.on_progress(std::min(queued, bytes - 1), bytes);
    };
  }
  ASSIGN_OR_RETURN(StreamResult result,
                   StreamWeights(device, uploader.copies(), upload.files, stream));
  if (upload.on_progress) upload.on_progress(bytes, bytes);
  uploaded.times = result.times;
  uploaded.file_hashes = std::move(result.hashes);
  return uploaded;
}

}  // namespace rempart::worker
