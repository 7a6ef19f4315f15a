// SPDX-License-Identifier: Apache-2.0
// One rank of a group that measures its collectives; rank 0 prints the medians in microseconds as
// JSON. Every process is a pod of its own.
//   comm_bench RANK ADDRESS,ADDRESS,... plain|encrypted BYTES,BYTES,... ITERATIONS
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "worker/comm/connect.h"

namespace rempart::worker {
namespace {

using SteadyClock = std::chrono::steady_clock;

// As in the peer's program: large messages are repeated less often.
int Repeats(int64_t bytes, int iterations) {
  return std::max(20, bytes <= 65536 ? iterations : iterations / 10);
}

absl::StatusOr<double> Median(int repeats, const std::function<absl::Status()>& call) {
  for (int i = 0; i < repeats / 10 + 1; ++i) RETURN_IF_ERROR(call());
  std::vector<double> micros;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = SteadyClock::now();
    RETURN_IF_ERROR(call());
    micros.push_back(std::chrono::duration<double, std::micro>(SteadyClock::now() - begin).count());
  }
  std::nth_element(micros.begin(), micros.begin() + repeats / 2, micros.end());
  return micros[repeats / 2];
}

absl::Status Measure(int rank, GroupEpoch group, const std::vector<int64_t>& sizes,
                     int iterations) {
  ASSIGN_OR_RETURN(auto listener, LinkListener::Listen(group.data_addresses[rank]));
  group.epoch = 1;
  group.key = std::string(32, 'k');
  group.pod_index = rank;
  CommunicatorOptions options;
  ASSIGN_OR_RETURN(auto ranks,
                   ConnectGroup(listener.get(), group, options, std::chrono::seconds(30), {}));
  Communicator& communicator = *ranks[0];
  std::string reduce, gather;
  for (const int64_t bytes : sizes) {
    std::vector<float> values(bytes / 4, 1.0f);
    const int repeats = Repeats(bytes, iterations);
    ASSIGN_OR_RETURN(const double reduce_micros, Median(repeats, [&] {
                       return communicator.AllReduceSum(values.data(), bytes / 4);
                     }));
    std::vector<int64_t> offsets;
    for (int i = 0; i <= communicator.size(); ++i) {
      offsets.push_back(bytes * i / communicator.size());
    }
    const Shares shares = {values.data(), 1, bytes, offsets};
    ASSIGN_OR_RETURN(const double gather_micros,
                     Median(repeats, [&] { return communicator.AllGather(shares); }));
    const char* comma = reduce.empty() ? "" : ", ";
    absl::StrAppend(&reduce, comma, "\"", bytes, "\": ", reduce_micros);
    absl::StrAppend(&gather, comma, "\"", bytes, "\": ", gather_micros);
  }
  RETURN_IF_ERROR(communicator.Barrier());
  if (rank == 0) {
    std::printf("{\"all_reduce\": {%s}, \"all_gather\": {%s}}\n", reduce.c_str(), gather.c_str());
  }
  return absl::OkStatus();
}

absl::Status Main(int argc, char** argv) {
  GroupEpoch group;
  int rank = -1, iterations = 0;
  std::vector<int64_t> sizes;
  if (argc == 6) {
    group.data_addresses = absl::StrSplit(argv[2], ',');
    group.protection =
        std::string(argv[3]) == "plain" ? LinkProtection::kPlain : LinkProtection::kEncrypted;
    for (const absl::string_view size : absl::StrSplit(argv[4], ',')) {
      if (!absl::SimpleAtoi(size, &sizes.emplace_back())) sizes.clear();
    }
  }
  if (argc != 6 || !absl::SimpleAtoi(argv[1], &rank) || !absl::SimpleAtoi(argv[5], &iterations) ||
      sizes.empty() || rank < 0 || rank >= static_cast<int>(group.data_addresses.size())) {
    return absl::InvalidArgumentError(
        "comm_bench RANK ADDRESS,ADDRESS,... plain|encrypted BYTES,BYTES,... ITERATIONS");
  }
  return Measure(rank, group, sizes, iterations);
}

}  // namespace
}  // namespace rempart::worker

int main(int argc, char** argv) {
  const absl::Status status = rempart::worker::Main(argc, argv);
  if (status.ok()) return 0;
  std::fprintf(stderr, "comm_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
