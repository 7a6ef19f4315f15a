// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/ranks.h"

#include <algorithm>
#include <csignal>
#include <functional>
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/child.h"
#include "benchmarks/gpu/course.h"
#include "benchmarks/gpu/rank_pair.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "worker/comm/record_cipher.h"

namespace rempart::benchmarks {
namespace {

// Where the two ranks of a child's group are.
enum class RanksAre { kOnTwoGpus, kOnOneGpu, kInOneProcessAndGpu };

absl::StatusOr<std::unique_ptr<Child>> StartChild(const RankOptions& options, const char* sums,
                                                  std::vector<std::string> words, RanksAre ranks) {
  words.insert(words.begin(), {options.program, "--rank-child", options.nccl,
                               absl::StrCat(options.connect_timeout.count()),
                               absl::StrCat(options.step_timeout.count()), sums});
  std::vector<std::string> environment;
  // Ranks with a GPU each run as a worker's do.
  if (ranks != RanksAre::kOnTwoGpus) environment.push_back("NCCL_MULTI_RANK_GPU_ENABLE=1");
  // Loading a kernel may wait for those that run on the same GPU for the same process; one that is
  // loaded while the other rank's waits for it would wait for that one. Workers have no such ranks,
  // and load when they need to.
  if (ranks == RanksAre::kInOneProcessAndGpu) environment.push_back("CUDA_MODULE_LOADING=EAGER");
  return Child::Start(words, environment);
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
  ASSIGN_OR_RETURN(const std::unique_ptr<Child> child,
                   StartChild(options, kByLibrary, {"nccl"}, RanksAre::kOnTwoGpus));
  const absl::Time deadline = std::min(SteadyNow() + options.end, options.deadline);
  const absl::StatusOr<std::string> found = HearWord(*child, "nccl", deadline);
  if (found.ok()) return found;
  return NotRun(found.status().message());
}

// Two processes that have found each other, rank 0 first.
struct Processes {
  std::unique_ptr<Child> ranks[2];
};

// One group of two ranks.
struct Group {
  const RankOptions& options;
  std::string name;
  const char* sums = kByLibrary;
  int second_gpu = 0;
  absl::Time deadline = std::min(SteadyNow() + options.whole, options.deadline);

  RanksAre as_processes() const {
    return second_gpu == 0 ? RanksAre::kOnOneGpu : RanksAre::kOnTwoGpus;
  }
  RanksAre as_threads() const {
    return second_gpu == 0 ? RanksAre::kInOneProcessAndGpu : RanksAre::kOnTwoGpus;
  }
  bool has_one_shot() const { return second_gpu == 0 || options.gpus_reach_each_other; }
};

absl::StatusOr<Processes> StartProcesses(const Group& group, const std::string& what) {
  Processes processes;
  std::string addresses;
  for (int rank = 0; rank < 2; ++rank) {
    const int gpu = rank == 0 ? 0 : group.second_gpu;
    ASSIGN_OR_RETURN(
        processes.ranks[rank],
        StartChild(group.options, group.sums, {what, absl::StrCat(rank), absl::StrCat(gpu)},
                   group.as_processes()));
    ASSIGN_OR_RETURN(const std::string address,
                     HearWord(*processes.ranks[rank], "address", group.deadline));
    absl::StrAppend(&addresses, rank == 0 ? "" : ",", address);
  }
  // Whoever knows the key may join.
  const std::string key = absl::BytesToHexString(worker::RandomBytes(32));
  for (const auto& rank : processes.ranks) {
    RETURN_IF_ERROR(rank->Tell(absl::StrCat(key, " ", addresses)));
  }
  return processes;
}

// What a group has found. A note that there are no sums in one shot is wrong where there have to be
// some.
PartResult Judged(const Group& group, PartResult own) {
  std::vector<std::string> notes;
  for (const std::string& note : own.notes) {
    const bool is_wrong = absl::StartsWith(note, kNoOneShot) && group.has_one_shot();
    (is_wrong ? own.wrong : notes).push_back(note);
  }
  own.notes = std::move(notes);
  return own;
}

// The same under its name.
void Take(const Group& group, PartResult own, PartResult& result) {
  own = Judged(group, std::move(own));
  for (Figure& figure : own.figures) figure.name = absl::StrCat(group.name, "_", figure.name);
  for (std::string& note : own.notes) note = absl::StrCat(group.name, ": ", note);
  for (std::string& wrong : own.wrong) wrong = absl::StrCat(group.name, ": ", wrong);
  Append(own, result);
}

// What goes wrong before the ranks are linked is wrong, but no error of this process's GPU.
PartResult CompareProcesses(const Group& group) {
  PartResult own;
  const absl::StatusOr<Processes> processes = StartProcesses(group, "compare");
  if (!processes.ok()) {
    own.wrong.emplace_back(processes.status().message());
    return own;
  }
  TakeResult(*processes->ranks[1], "rank 1", group.deadline, own);
  TakeResult(*processes->ranks[0], "rank 0", group.deadline, own);
  return own;
}

PartResult RunThreads(const Group& group, std::vector<std::string> words) {
  PartResult own;
  const absl::StatusOr<std::unique_ptr<Child>> child =
      StartChild(group.options, group.sums, std::move(words), group.as_threads());
  if (child.ok()) {
    TakeResult(**child, "its ranks", group.deadline, own);
  } else {
    own.wrong.emplace_back(child.status().message());
  }
  return own;
}

// Rank 1 gets `signal` while both decode; rank 0 is to notice within `limit`.
absl::Status LoseRank(const Group& group, int signal, absl::Duration limit, PartResult& own) {
  ASSIGN_OR_RETURN(const Processes processes, StartProcesses(group, "lose"));
  for (const auto& rank : processes.ranks) {
    ASSIGN_OR_RETURN(const std::string absence, HearWord(*rank, "steps", group.deadline));
    if (!absence.empty()) own.notes.push_back(kNoOneShot + absence);
  }
  const auto by = [&](absl::Time time) { return std::min(time, group.options.deadline); };
  Child& left = *processes.ranks[0];
  const absl::Time lost = SteadyNow();
  processes.ranks[1]->Signal(signal);
  ASSIGN_OR_RETURN(const std::string why,
                   HearWord(left, "lost", by(lost + limit + group.options.end)));
  const absl::Duration noticed = SteadyNow() - lost;
  own.figures.push_back({"noticed", absl::ToDoubleMilliseconds(noticed), "ms"});
  if (noticed > limit) {
    own.wrong.push_back(absl::StrCat("noticed after ", absl::FormatDuration(noticed),
                                     " instead of ", absl::FormatDuration(limit)));
  }
  ASSIGN_OR_RETURN(const std::string ended, left.Wait(by(SteadyNow() + group.options.end)));
  const absl::Duration gone = SteadyNow() - lost;
  own.figures.push_back({"ended", absl::ToDoubleMilliseconds(gone), "ms"});
  if (ended == kEndedWell) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("ended with ", ended, " after: ", why));
}

PartResult CheckLoss(const Group& group, int signal, absl::Duration limit) {
  PartResult own;
  const absl::Status status = LoseRank(group, signal, limit, own);
  if (!status.ok()) own.wrong.push_back(absl::StrCat("rank 0: ", std::string(status.message())));
  return own;
}

}  // namespace

absl::StatusOr<PartResult> CheckRanks(const RankOptions& options) {
  RETURN_IF_ERROR(FindNccl(options).status());
  PartResult result;
  const auto run = [&](const std::string& name, const char* sums, int second_gpu,
                       const std::function<PartResult(const Group& group)>& check) {
    const std::vector<std::string>& only = options.only;
    if (!only.empty() && std::find(only.begin(), only.end(), name) == only.end()) return;
    const Group group = {options, name, sums, second_gpu};
    Take(group, check(group), result);
  };
  for (const auto& [sums, suffix] :
       {std::pair(kByLibrary, ""), std::pair(kInOneShot, "_one_shot")}) {
    run(absl::StrCat("threads", suffix), sums, 0, [](const Group& group) {
      return RunThreads(group, {"threads", "0", "0"});
    });
    run(absl::StrCat("processes", suffix), sums, 0, CompareProcesses);
    if (options.gpus > 1) run(absl::StrCat("two_gpus", suffix), sums, 1, CompareProcesses);
    run(absl::StrCat("killed", suffix), sums, 0,
        [&](const Group& group) { return CheckLoss(group, SIGKILL, options.notice); });
    // It holds its connections, so only the deadline of the step tells.
    run(absl::StrCat("stopped", suffix), sums, 0, [&](const Group& group) {
      return CheckLoss(group, SIGSTOP, absl::FromChrono(options.step_timeout) + options.notice);
    });
  }
  return result;
}

absl::StatusOr<PartResult> MeasureAllReduce(const RankOptions& options,
                                            const std::vector<int64_t>& sizes_bytes) {
  RETURN_IF_ERROR(FindNccl(options).status());
  const int second_gpu = options.gpus > 1 ? 1 : 0;
  const Group group = {options, "all-reduce", kByLibrary, second_gpu};
  std::vector<std::string> words = {"all-reduce", "0", absl::StrCat(second_gpu),
                                    absl::StrCat(options.one_shot_time.count())};
  for (const int64_t bytes : sizes_bytes) words.push_back(absl::StrCat(bytes));
  PartResult result;
  result.figures.push_back({"gpus", static_cast<double>(second_gpu + 1), ""});
  Append(Judged(group, RunThreads(group, std::move(words))), result);
  return result;
}

}  // namespace rempart::benchmarks
