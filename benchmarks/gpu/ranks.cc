// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/ranks.h"

#include <csignal>
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/child.h"
#include "benchmarks/gpu/course.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "worker/comm/record_cipher.h"

namespace rempart::benchmarks {
namespace {

// Two ranks may share a GPU; and kernels are loaded before any of them runs: one that is loaded
// while another rank's waits for it would wait for that one.
const std::vector<std::string>& Environment() {
  static const auto* entries =
      new std::vector<std::string>{"NCCL_MULTI_RANK_GPU_ENABLE=1", "CUDA_MODULE_LOADING=EAGER"};
  return *entries;
}

absl::StatusOr<std::unique_ptr<Child>> StartChild(const RankOptions& options,
                                                  std::vector<std::string> words) {
  words.insert(words.begin(), {options.program, "--rank-child", options.nccl,
                               absl::StrCat(options.connect_timeout.count()),
                               absl::StrCat(options.step_timeout.count())});
  return Child::Start(words, Environment());
}

// What follows `word` in the next line that begins with it. An error when the child says what is
// wrong or missing instead; what else it says, as NCCL does, is passed on.
absl::StatusOr<std::string> HearWord(Child& child, const std::string& word, absl::Time deadline) {
  for (;;) {
    ASSIGN_OR_RETURN(const std::string line, child.Hear(deadline));
    if (absl::StartsWith(line, word + "\t")) return line.substr(word.size() + 1);
    if (absl::StartsWith(line, "wrong\t") || absl::StartsWith(line, "missing\t")) {
      return absl::InternalError(line.substr(line.find('\t') + 1));
    }
    std::cerr << "rank: " << line << "\n";
  }
}

// What NCCL says that it is.
absl::StatusOr<std::string> FindNccl(const RankOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Child> child, StartChild(options, {"nccl"}));
  const absl::StatusOr<std::string> found = HearWord(*child, "nccl", SteadyNow() + options.end);
  if (found.ok()) return found;
  return NotRun(found.status().message());
}

// Two processes that have found each other, rank 0 first.
struct Processes {
  std::unique_ptr<Child> ranks[2];
};

absl::StatusOr<Processes> StartProcesses(const RankOptions& options, const std::string& what,
                                         int second_gpu, absl::Time deadline) {
  Processes processes;
  std::string addresses;
  for (int rank = 0; rank < 2; ++rank) {
    ASSIGN_OR_RETURN(
        processes.ranks[rank],
        StartChild(options, {what, absl::StrCat(rank), absl::StrCat(rank == 0 ? 0 : second_gpu)}));
    ASSIGN_OR_RETURN(const std::string address,
                     HearWord(*processes.ranks[rank], "address", deadline));
    absl::StrAppend(&addresses, rank == 0 ? "" : ",", address);
  }
  // Whoever knows the key may join.
  const std::string key = absl::BytesToHexString(worker::RandomBytes(32));
  for (const auto& rank : processes.ranks) {
    RETURN_IF_ERROR(rank->Tell(absl::StrCat(key, " ", addresses)));
  }
  return processes;
}

// What goes wrong before the ranks are linked is wrong, but no error of this process's GPU.
void CompareProcesses(const RankOptions& options, const std::string& name, int second_gpu,
                      PartResult& result) {
  const absl::Time deadline = SteadyNow() + options.whole;
  const absl::StatusOr<Processes> processes =
      StartProcesses(options, "compare", second_gpu, deadline);
  if (!processes.ok()) {
    result.wrong.push_back(absl::StrCat(name, ": ", std::string(processes.status().message())));
    return;
  }
  PartResult own;
  TakeResult(*processes->ranks[1], "rank 1", deadline, own);
  TakeResult(*processes->ranks[0], "rank 0", deadline, own);
  for (Figure& figure : own.figures) figure.name = absl::StrCat(name, "_", figure.name);
  for (std::string& wrong : own.wrong) wrong = absl::StrCat(name, ": ", wrong);
  Append(own, result);
}

// Rank 1 gets `signal` while both decode; rank 0 is to notice within `limit`.
absl::Status LoseRank(const RankOptions& options, const std::string& name, int signal,
                      absl::Duration limit, PartResult& result) {
  const absl::Time deadline = SteadyNow() + options.whole;
  ASSIGN_OR_RETURN(const Processes processes, StartProcesses(options, "lose", 0, deadline));
  for (const auto& rank : processes.ranks)
    RETURN_IF_ERROR(HearWord(*rank, "steps", deadline).status());
  Child& left = *processes.ranks[0];
  const absl::Time lost = SteadyNow();
  processes.ranks[1]->Signal(signal);
  ASSIGN_OR_RETURN(const std::string why, HearWord(left, "lost", lost + limit + options.end));
  const absl::Duration noticed = SteadyNow() - lost;
  result.figures.push_back({name + "_noticed", absl::ToDoubleMilliseconds(noticed), "ms"});
  if (noticed > limit) {
    result.wrong.push_back(absl::StrCat(name, ": noticed after ", absl::FormatDuration(noticed),
                                        " instead of ", absl::FormatDuration(limit)));
  }
  ASSIGN_OR_RETURN(const std::string ended, left.Wait(SteadyNow() + options.end));
  const absl::Duration gone = SteadyNow() - lost;
  result.figures.push_back({name + "_ended", absl::ToDoubleMilliseconds(gone), "ms"});
  if (ended == kEndedWell) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("rank 0 ended with ", ended, " after: ", why));
}

void CheckLoss(const RankOptions& options, const std::string& name, int signal,
               absl::Duration limit, PartResult& result) {
  const absl::Status status = LoseRank(options, name, signal, limit, result);
  if (status.ok()) return;
  result.wrong.push_back(absl::StrCat(name, ": rank 0: ", std::string(status.message())));
}

void RunThreads(const RankOptions& options, const std::string& name, std::vector<std::string> words,
                PartResult& result) {
  const absl::StatusOr<std::unique_ptr<Child>> child = StartChild(options, std::move(words));
  if (child.ok()) return TakeResult(**child, name, SteadyNow() + options.whole, result);
  result.wrong.push_back(absl::StrCat(name, ": ", std::string(child.status().message())));
}

}  // namespace

absl::StatusOr<PartResult> CheckRanks(const RankOptions& options) {
  RETURN_IF_ERROR(FindNccl(options).status());
  PartResult result, threads;
  RunThreads(options, "threads", {"threads", "0", "0"}, threads);
  for (Figure& figure : threads.figures) figure.name = "threads_" + figure.name;
  Append(threads, result);
  CompareProcesses(options, "processes", 0, result);
  if (options.gpus > 1) CompareProcesses(options, "two_gpus", 1, result);
  CheckLoss(options, "killed", SIGKILL, options.notice, result);
  // It holds its connections, so only the deadline of the step tells.
  CheckLoss(options, "stopped", SIGSTOP, absl::FromChrono(options.step_timeout) + options.notice,
            result);
  return result;
}

absl::StatusOr<PartResult> MeasureAllReduce(const RankOptions& options,
                                            const std::vector<int64_t>& sizes_bytes) {
  RETURN_IF_ERROR(FindNccl(options).status());
  PartResult result;
  std::vector<std::string> words = {"all-reduce", "0", options.gpus > 1 ? "1" : "0"};
  for (const int64_t bytes : sizes_bytes) words.push_back(absl::StrCat(bytes));
  result.figures.push_back({"gpus", static_cast<double>(options.gpus > 1 ? 2 : 1), ""});
  RunThreads(options, "all-reduce", std::move(words), result);
  return result;
}

}  // namespace rempart::benchmarks
