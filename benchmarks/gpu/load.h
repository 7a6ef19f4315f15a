// SPDX-License-Identifier: Apache-2.0
// Parts of benchmarks/gpu/run that measure throughput under load: the engine and its scheduler, as
// a worker has them, over a model on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "benchmarks/gpu/result.h"
#include "worker/model/device_transformer.h"

namespace rempart::benchmarks {

struct LoadCase {
  int64_t prompt_tokens = 0;
  int64_t new_tokens = 0;
  double published = 0;  // tokens per second, of TensorRT-LLM
};

// Llama-3.1-8B in FP8 on one H200, all requests queued at once: perf-overview.md of
// TensorRT-LLM 1.0's documentation. NVIDIA calls them references, not peaks.
inline std::vector<LoadCase> PublishedLoads() {
  return {{128, 128, 27911}, {1000, 1000, 17744}, {2048, 128, 3538}};
}

struct LoadSizes {
  std::vector<LoadCase> cases = PublishedLoads();
  absl::Duration ramp = absl::Seconds(40);    // at most, until the load is steady
  absl::Duration window = absl::Seconds(15);  // that is measured
};

// Generated tokens per second while as many sequences run as the model has room for and more wait.
// The first ones are given prompts and lengths as if the load had gone on for long: the one is in
// the middle of its answer, another near its end. So the window may open when all of them have
// been computed once, instead of after many rounds. Each one that ends is followed by a whole one.
absl::StatusOr<PartResult> MeasureLoad(worker::DeviceTransformer& model,
                                       const worker::DeviceModelOptions& options,
                                       const LoadSizes& sizes);

// Sequences of this case that run at once: as many as there are slots, and KV blocks for.
int64_t SequencesAtOnce(const LoadCase& load, int64_t max_sequences, int64_t kv_blocks);

}  // namespace rempart::benchmarks
