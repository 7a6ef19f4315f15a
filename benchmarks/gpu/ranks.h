// SPDX-License-Identifier: Apache-2.0
// Parts of benchmarks/gpu/run with two NCCL ranks. They run in processes of their own: a rank that
// hangs can be ended, one can be killed to see what the other does, and NCCL is told to let two
// ranks share a GPU, which no worker tells it.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "benchmarks/gpu/result.h"
#include "benchmarks/gpu/shapes.h"
#include "worker/device/gpu.h"

namespace rempart::benchmarks {

struct RankOptions {
  std::string program;  // this one, which RunRankChild answers for
  std::string nccl;     // the library; empty: the loader's path
  int gpus = 1;         // that the driver shows
  std::chrono::milliseconds connect_timeout{60'000};
  // Of a step of the ranks' communicators, which is the deadline for one that hangs.
  std::chrono::milliseconds step_timeout{5'000};
  absl::Duration notice = absl::Seconds(2);   // of a rank that is killed
  absl::Duration end = absl::Seconds(10);     // of the process that is left
  absl::Duration whole = absl::Seconds(120);  // of one group, to its end
};

// Two ranks on one GPU, as threads of one process and as two processes, and as two processes on two
// GPUs where there are so many: the tokens of one. Then two processes of which one is killed, and
// two of which one stops answering: the other says so within its deadline and ends cleanly. NotRun
// (course.h) without NCCL.
absl::StatusOr<PartResult> CheckRanks(const RankOptions& options);

// All-reduces of two ranks, on two GPUs where there are so many.
absl::StatusOr<PartResult> MeasureAllReduce(const RankOptions& options,
                                            const std::vector<int64_t>& sizes_bytes);

// Of the child: what the words after --rank-child ask for, of those decoders that two ranks can
// share. Returns its exit status.
int RunRankChild(const worker::GpuOpener& open, const std::vector<NamedConfig>& decoders,
                 const std::vector<std::string>& words);

}  // namespace rempart::benchmarks
