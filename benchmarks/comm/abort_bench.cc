// SPDX-License-Identifier: Apache-2.0
// How long it takes until an abort of one rank has ended the calls of all others, and until a rank
// that is in no call knows of it. Ranks are threads of this process, linked as given; in
// milliseconds.
//   abort_bench memory|plain|encrypted RANKS ROUNDS
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/comm/connect.h"
#include "worker/comm/in_process.h"

namespace rempart::worker {
namespace {

using SteadyClock = std::chrono::steady_clock;
using Group = std::vector<std::unique_ptr<Communicator>>;

struct Round {
  double waiting_ms = 0;  // the slowest rank that was in a barrier
  double idle_ms = 0;     // a rank that was in no call
};

absl::StatusOr<Group> Connect(const std::string& kind, int size) {
  if (kind == "memory") return CreateInProcess(size, {});
  std::vector<std::unique_ptr<LinkListener>> listeners;
  GroupEpoch epoch;
  epoch.epoch = 1;
  epoch.key = std::string(32, 'k');
  epoch.protection = kind == "plain" ? LinkProtection::kPlain : LinkProtection::kEncrypted;
  for (int rank = 0; rank < size; ++rank) {
    ASSIGN_OR_RETURN(auto listener, LinkListener::Listen("127.0.0.1:0"));
    epoch.data_addresses.push_back(listener->address());
    listeners.push_back(std::move(listener));
  }
  Group group(size);
  std::vector<absl::Status> results(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank, own = epoch]() mutable {
      own.pod_index = rank;
      auto ranks = ConnectGroup(listeners[rank].get(), own, {}, std::chrono::seconds(30), {});
      results[rank] = ranks.status();
      if (ranks.ok()) group[rank] = std::move((*ranks)[0]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) RETURN_IF_ERROR(result);
  return group;
}

// Ranks 1 to n - 2 wait in a barrier, the last is in no call, and another thread aborts rank 0.
absl::StatusOr<Round> MeasureOnce(const std::string& kind, int size) {
  ASSIGN_OR_RETURN(Group group, Connect(kind, size));
  std::vector<SteadyClock::time_point> ended(size);
  std::vector<std::thread> threads;
  for (int rank = 1; rank < size - 1; ++rank) {
    threads.emplace_back([&, rank] {
      (void)group[rank]->Barrier();
      ended[rank] = SteadyClock::now();
    });
  }
  for (int rank = 1; rank < size - 1; ++rank) {
    while (group[rank]->progress().waiting_for_ranks.empty()) std::this_thread::yield();
  }
  // Long enough that all have parked.
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const auto begin = SteadyClock::now();
  group[0]->Abort(absl::CancelledError("measured"), -1);
  while (group[size - 1]->status().ok()) std::this_thread::yield();
  ended[size - 1] = SteadyClock::now();
  for (std::thread& thread : threads) thread.join();
  const auto since = [&](int rank) {
    return std::chrono::duration<double, std::milli>(ended[rank] - begin).count();
  };
  Round round;
  for (int rank = 1; rank < size - 1; ++rank) {
    round.waiting_ms = std::max(round.waiting_ms, since(rank));
  }
  round.idle_ms = since(size - 1);
  return round;
}

std::string Summary(std::vector<double> times) {
  std::sort(times.begin(), times.end());
  return absl::StrCat("{\"median\": ", times[times.size() / 2],
                      ", \"p99\": ", times[times.size() * 99 / 100], ", \"worst\": ", times.back(),
                      "}");
}

absl::Status Main(int argc, char** argv) {
  int size = 0, rounds = 0;
  const std::string kind = argc == 4 ? argv[1] : "";
  const bool known = kind == "memory" || kind == "plain" || kind == "encrypted";
  if (!known || !absl::SimpleAtoi(argv[2], &size) || !absl::SimpleAtoi(argv[3], &rounds) ||
      size < 3 || size > kMaxRanks || rounds < 1) {
    return absl::InvalidArgumentError("abort_bench memory|plain|encrypted RANKS ROUNDS");
  }
  std::vector<double> waiting, idle;
  for (int i = 0; i < rounds; ++i) {
    ASSIGN_OR_RETURN(const Round round, MeasureOnce(kind, size));
    waiting.push_back(round.waiting_ms);
    idle.push_back(round.idle_ms);
  }
  std::printf("{\"waiting_ms\": %s, \"idle_ms\": %s}\n", Summary(waiting).c_str(),
              Summary(idle).c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace rempart::worker

int main(int argc, char** argv) {
  const absl::Status status = rempart::worker::Main(argc, argv);
  if (status.ok()) return 0;
  std::fprintf(stderr, "abort_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
