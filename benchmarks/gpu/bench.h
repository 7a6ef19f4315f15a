// SPDX-License-Identifier: Apache-2.0
// The program gpu_bench, whatever it runs on: GPUs, or emulated ones in tests, with models small
// enough for these.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "benchmarks/gpu/load.h"
#include "benchmarks/gpu/parts.h"
#include "benchmarks/gpu/products.h"
#include "benchmarks/gpu/profile.h"
#include "benchmarks/gpu/ranks.h"
#include "benchmarks/gpu/shapes.h"
#include "worker/config/step_defaults.h"
#include "worker/device/gpu.h"
#include "worker/model/device_memory.h"
#include "worker/model/model_config.h"

namespace rempart::benchmarks {

// Of a worker whose Model names a context and a number of sequences and leaves the rest to it.
inline worker::DeviceModelOptions WorkersOptions(int32_t context_length, int32_t max_sequences) {
  return {.context_length = context_length,
          .max_step_tokens = worker::DefaultStepTokens(worker::DeviceKind::kGpu, max_sequences),
          .max_sequences = max_sequences};
}

struct BenchMachine {
  std::function<absl::StatusOr<std::vector<worker::CudaDeviceInfo>>()> find_gpus;
  worker::GpuOpener open;
};

// What is computed; as it stands, what benchmarks/gpu/run shows.
struct BenchWork {
  std::vector<NamedConfig> small = SmallDecoders();  // of parity and ranks
  std::vector<NamedConfig> fp8 = Fp8Decoders();      // of parity
  std::vector<NamedConfig> exact = {SmolLm2(), Gemma3()};
  worker::ModelConfig large = Llama8B();  // of speed
  worker::DeviceModelOptions speed_options = WorkersOptions(2048, 256);
  SpeedSizes speed;
  worker::DeviceModelOptions load_options = WorkersOptions(2304, 512);
  LoadSizes load;
  ProfileSizes profile;
  ProductSizes products;
  std::vector<int64_t> all_reduce_bytes = {8 << 10,   16 << 10,  32 << 10,  64 << 10,
                                           128 << 10, 256 << 10, 512 << 10, 1 << 20};
  RankOptions ranks;  // but for what is of this machine and run
  // Of the times that parts take as a rule, and that a run lasts longer for the part that it is in.
  double pace = 1;
};

// argv without the program's own name. Returns the exit status.
int RunBench(const BenchMachine& machine, const BenchWork& work,
             const std::vector<std::string>& words);

}  // namespace rempart::benchmarks
