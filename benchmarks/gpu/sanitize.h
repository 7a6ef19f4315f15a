// SPDX-License-Identifier: Apache-2.0
// The part of benchmarks/gpu/run under NVIDIA's compute-sanitizer: a program of the CUDA toolkit
// that runs this one and watches every access of its kernels.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "benchmarks/gpu/result.h"
#include "worker/device/gpu.h"

namespace rempart::benchmarks {

struct SanitizeOptions {
  std::string program;  // this one, which RunSanitized answers for
  // Where the sanitizer is looked for, in this order; one without a slash is looked for on PATH.
  std::vector<std::string> sanitizers = {"compute-sanitizer",
                                         "/usr/local/cuda/bin/compute-sanitizer"};
  std::vector<std::string> tools = {"memcheck", "racecheck"};
  absl::Duration limit = absl::Seconds(150);     // of one tool
  absl::Time deadline = absl::InfiniteFuture();  // of all, in SteadyNow's time
};

// Errors that each tool has found: none are allowed. NotRun (course.h) without the sanitizer.
absl::StatusOr<PartResult> CheckSanitized(const SanitizeOptions& options);

// Of the process under the sanitizer: every op at its odd shapes, and a small decoder with its
// recorded graphs. What they compute is judged elsewhere. Returns the exit status.
int RunSanitized(const worker::GpuOpener& open);

}  // namespace rempart::benchmarks
