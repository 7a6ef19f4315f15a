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
  // The first two read each other's memory, as the driver says.
  bool gpus_reach_each_other = false;
  std::chrono::milliseconds connect_timeout{60'000};
  // Of a step of the ranks' communicators, which is the deadline for one that hangs.
  std::chrono::milliseconds step_timeout{5'000};
  absl::Duration notice = absl::Seconds(2);   // of a rank that is killed
  absl::Duration end = absl::Seconds(10);     // of the process that is left
  absl::Duration whole = absl::Seconds(120);  // of one group, to its end
  // For measuring sums in one shot, which takes seconds where two processes share a GPU.
  std::chrono::milliseconds one_shot_time{20'000};
  absl::Time deadline = absl::InfiniteFuture();  // of all of it, in SteadyNow's time
  std::vector<std::string> only;                 // these groups of CheckRanks; empty: all
};

// What the child is told of its sums: all by the library, or in one shot where that may be.
inline constexpr char kByLibrary[] = "by-library";
inline constexpr char kInOneShot[] = "in-one-shot";

// Two ranks on one GPU, as threads of one process and as two processes, and as two processes on two
// GPUs where there are so many: the tokens of one. Then two processes of which one is killed, and
// two of which one stops answering: the other says so within its deadline and ends cleanly. All of
// it twice: with NCCL alone, and with all sums in one shot (NAME_one_shot). That there are none is
// wrong where ranks share a GPU or reach each other's, else a note. NotRun (course.h) without NCCL.
absl::StatusOr<PartResult> CheckRanks(const RankOptions& options);

// All-reduces of two ranks, on two GPUs where there are so many. Of sums in one shot the same
// holds.
absl::StatusOr<PartResult> MeasureAllReduce(const RankOptions& options,
                                            const std::vector<int64_t>& sizes_bytes);

// Of the child: what the words after --rank-child ask for, of those decoders that two ranks can
// share. Returns its exit status.
int RunRankChild(const worker::GpuOpener& open, const std::vector<NamedConfig>& decoders,
                 const std::vector<std::string>& words);

}  // namespace rempart::benchmarks
