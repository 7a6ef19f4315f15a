// SPDX-License-Identifier: Apache-2.0
// A model's weights, or one rank's share of them, in the memory of a device. Query, key and value
// are one product where their formats allow it, and so are gate and up; F32 and F16 become BF16,
// quantised blocks stay as they are in the file. One allocation, whose size is known before it is
// made. They go there as weight_stream.h reads them.
#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/hash/sha256.h"
#include "worker/device/device.h"
#include "worker/model/device_memory.h"
#include "worker/model/mapped_file.h"
#include "worker/model/model_config.h"
#include "worker/model/read_plan.h"
#include "worker/model/weight_stream.h"
#include "worker/model/weights.h"

namespace rempart::worker {

// Rows [first_row, first_row + matrix.rows) of a product's result.
struct ProductPart {
  kernels::DeviceMatrix matrix;
  int64_t first_row = 0;
};
// Matrices that are multiplied with the same input, their results side by side.
using Product = std::vector<ProductPart>;

struct DeviceLayer {
  const float* attention_norm = nullptr;
  const float* ffn_norm = nullptr;
  const float* query_norm = nullptr;
  const float* key_norm = nullptr;
  const float* post_attention_norm = nullptr;
  const float* post_ffn_norm = nullptr;
  const float* qkv_bias = nullptr;
  Product qkv, output, gate_up, down;
  int64_t output_lead = 0;  // Matrix::lead of `output`
};

struct DeviceWeights {
  // Of a rank of several, the rows of its part of the vocabulary. The embedding is of the first
  // stage, the head and its norm of the last.
  kernels::DeviceMatrix embedding;
  Product head;
  const float* output_norm = nullptr;
  std::vector<const float*> inverse_frequencies;  // by rope
  std::vector<DeviceLayer> layers;
  DeviceBuffer memory;
  StreamTimes times;
  std::vector<Sha256> file_hashes;  // of UploadOptions::files, where they were asked for
};

// Bytes that UploadWeights will allocate. Unimplemented names what a device cannot hold yet. Of the
// options, context_length chooses among the frequencies of a rope that has two sets.
absl::StatusOr<int64_t> DeviceWeightsBytes(const ModelConfig& config, const Weights& weights,
                                           const DeviceModelOptions& options);

// How many of DeviceWeightsBytes are on their way; called for each piece of a few MiB, and once all
// are there. May be empty.
using UploadProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

struct UploadOptions {
  // Those that the weights view. What lies in none of them is read from memory.
  absl::Span<const MappedFile> files = {};
  // All of each file is read, whatever this rank's share of it.
  bool hash_files = false;
  UploadProgress on_progress = {};
  // Ends it with Cancelled.
  std::stop_token stop = {};
  int64_t piece_bytes = kReadPieceBytes;  // at most so many, a multiple of 4
  FileReader reader = ReadMappedFile;
};

absl::StatusOr<DeviceWeights> UploadWeights(Device& device, const ModelConfig& config,
                                            const Weights& weights,
                                            const DeviceModelOptions& options,
                                            const UploadOptions& upload = {});

}  // namespace rempart::worker
