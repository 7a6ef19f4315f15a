// SPDX-License-Identifier: Apache-2.0
// Parts of benchmarks/gpu/run: conformance of the ops, and the speed of one model by itself. Each
// runs on any Device: on a GPU for its figures, over the emulator in tests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "benchmarks/gpu/result.h"
#include "worker/device/cuda_device.h"
#include "worker/device/device.h"
#include "worker/model/device_transformer.h"
#include "worker/model/model_config.h"

namespace rempart::benchmarks {

// What a GPU can do; 0: not known. Shares of it are left out then.
struct Peaks {
  double bytes_per_second = 0;  // of its memory, as the driver says
  double flops = 0;             // of its tensor cores, for the type that products are computed in
  std::string flops_are_of;     // the data sheet, or the clock that the driver says
  int64_t clock_hz = 0;         // the highest, as the driver says
};
enum class ProductType { kBF16, kFP8 };
Peaks PeaksOf(const worker::CudaDeviceInfo& card, ProductType type);

// Every op, dtype and odd shape against kernels/reference: the worst percentage of what is allowed,
// by op.
absl::StatusOr<PartResult> CheckConformance(worker::Device& device);

struct SpeedSizes {
  std::vector<int64_t> batches = {1, 4, 16, 64, 256};
  int64_t prompt_tokens = 128;    // of each sequence that decodes
  int64_t decode_steps = 128;     // of each batch
  int64_t prefill_tokens = 2048;  // of one sequence, in one step
  int prefill_repeats = 8;
};

// Decode by batch, as tokens per second and, at batch 1, as a share of what reading the weights and
// the KV cache once a token takes; prefill as a share of the peak; the host's part of a decode step
// at batch 1. The model is on the device.
absl::StatusOr<PartResult> MeasureSpeed(worker::DeviceTransformer& model, const Peaks& peaks,
                                        const SpeedSizes& sizes);

// Opens a device, puts a model of this shape there and computes a first token: the time of each.
// What is left is the model, for MeasureSpeed.
struct Ready {
  std::unique_ptr<worker::Device> device;
  std::unique_ptr<worker::DeviceTransformer> model;
  PartResult times;
};
using DeviceOpener = std::function<absl::StatusOr<std::unique_ptr<worker::Device>>()>;
absl::StatusOr<Ready> GetReady(const DeviceOpener& open, const worker::ModelConfig& config,
                               const worker::DeviceModelOptions& options);

}  // namespace rempart::benchmarks
