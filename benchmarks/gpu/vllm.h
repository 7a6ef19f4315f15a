// SPDX-License-Identifier: Apache-2.0
// The part of benchmarks/gpu/run that puts vLLM under the load of load.h, where a Python that has
// it was brought along (--vllm).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "benchmarks/gpu/load.h"
#include "benchmarks/gpu/result.h"
#include "worker/model/device_memory.h"
#include "worker/model/model_config.h"

namespace rempart::benchmarks {

// Its own random weights of this shape, a Llama's; FP8 where options.weights_to_fp8. The same
// prompts' and answers' lengths, as many sequences at once and the same window as MeasureLoad.
// NotRun (course.h) when `python` cannot be started or has no vLLM. Ended at `deadline`, in
// SteadyNow's time, with all processes that it has started.
absl::StatusOr<PartResult> MeasureVllm(const std::string& python, const worker::ModelConfig& config,
                                       const worker::DeviceModelOptions& options,
                                       const LoadSizes& sizes,
                                       absl::Time deadline = absl::InfiniteFuture());

}  // namespace rempart::benchmarks
