// SPDX-License-Identifier: Apache-2.0
// The processes that ranks.cc starts: two ranks as threads, or one rank that is told where the
// other is.
#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "benchmarks/gpu/child.h"
#include "benchmarks/gpu/rank_pair.h"
#include "benchmarks/gpu/ranks.h"
#include "common/status_macros.h"
#include "worker/comm/connect.h"
#include "worker/comm/in_process.h"
#include "worker/comm/nccl_environment.h"
#include "worker/comm/nccl_library.h"
#include "worker/comm/one_shot.h"

namespace rempart::benchmarks {
namespace {

using std::chrono::milliseconds;
using worker::DeviceCommunicator;

// Rank 1 waits in it while rank 0 computes alone.
constexpr milliseconds kHostTimeout{60'000};
struct Asked {
  std::string nccl;
  worker::DeviceCommunicatorOptions link;
  bool in_one_shot = false;        // all sums that may be
  std::vector<std::string> words;  // what, and its arguments
};

absl::StatusOr<Asked> ParseWords(const std::vector<std::string>& words) {
  int64_t connect = 0, step = 0;
  if (words.size() < 5 || !absl::SimpleAtoi(words[1], &connect) ||
      !absl::SimpleAtoi(words[2], &step)) {
    return absl::InvalidArgumentError("--rank-child is for this program alone");
  }
  Asked asked;
  asked.nccl = words[0];
  asked.link = {milliseconds(connect), milliseconds(step)};
  asked.in_one_shot = words[3] == kInOneShot;
  asked.words.assign(words.begin() + 4, words.end());
  return asked;
}

absl::StatusOr<std::vector<int64_t>> Numbers(const Asked& asked) {
  std::vector<int64_t> numbers;
  for (size_t i = 1; i < asked.words.size(); ++i) {
    if (absl::SimpleAtoi(asked.words[i], &numbers.emplace_back())) continue;
    return absl::InvalidArgumentError(absl::StrCat(asked.words[i], " is no number"));
  }
  if (numbers.size() < 2) return absl::InvalidArgumentError("two GPUs, or a rank and its GPU");
  return numbers;
}

// As a worker loads it, but that sizes are not left to measurement.
absl::StatusOr<std::unique_ptr<worker::CollectiveLibrary>> LoadLibrary(const Asked& asked) {
  ASSIGN_OR_RETURN(std::unique_ptr<worker::CollectiveLibrary> nccl, worker::Nccl::Load(asked.nccl));
  if (!asked.in_one_shot) return nccl;
  worker::OneShotOptions options;
  options.use = worker::OneShotUse::kAlways;
  options.measure_time = milliseconds(0);
  return std::make_unique<worker::OneShot>(std::move(nccl), options);
}

using RankWork = std::function<absl::StatusOr<PartResult>(const RankPlace& place)>;

absl::StatusOr<PartResult> RunOneRank(const worker::GpuOpener& open,
                                      worker::CollectiveLibrary& library, int gpu,
                                      worker::Communicator& host,
                                      const worker::DeviceCommunicatorOptions& options,
                                      const RankWork& work) {
  ASSIGN_OR_RETURN(const std::unique_ptr<worker::Device> device, open(gpu));
  return work({&library, device.get(), &host, options});
}

// Both ranks as threads; what rank 0 has found.
absl::StatusOr<PartResult> RunThreads(const worker::GpuOpener& open, const Asked& asked,
                                      const RankWork& work) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> gpus, Numbers(asked));
  ASSIGN_OR_RETURN(const std::unique_ptr<worker::CollectiveLibrary> library, LoadLibrary(asked));
  worker::CommunicatorOptions options;
  options.timeout = kHostTimeout;
  const auto hosts = worker::CreateInProcess(2, options);
  std::vector<absl::StatusOr<PartResult>> found(2, absl::UnknownError("has not run"));
  {
    std::vector<std::jthread> threads;
    for (size_t rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        found[rank] = RunOneRank(open, *library, static_cast<int>(gpus[rank]), *hosts[rank],
                                 asked.link, work);
        if (!found[rank].ok()) hosts[rank]->Abort(found[rank].status(), static_cast<int>(rank));
      });
    }
  }
  RETURN_IF_ERROR(found[1].status());
  return found[0];
}

// One rank of two processes.
absl::StatusOr<PartResult> RunProcess(const worker::GpuOpener& open, const Asked& asked,
                                      const RankWork& work) {
  ASSIGN_OR_RETURN(const std::vector<int64_t> numbers, Numbers(asked));
  ASSIGN_OR_RETURN(const std::unique_ptr<worker::CollectiveLibrary> library, LoadLibrary(asked));
  ASSIGN_OR_RETURN(const auto listener, worker::LinkListener::Listen("127.0.0.1:0"));
  std::cout << "address\t" << listener->address() << std::endl;
  std::string key, addresses;
  std::cin >> key >> addresses;
  worker::GroupEpoch group;
  group.epoch = 1;
  group.key = absl::HexStringToBytes(key);
  group.pod_index = static_cast<int>(numbers[0]);
  group.data_addresses = absl::StrSplit(addresses, ',');
  worker::CommunicatorOptions options;
  options.timeout = kHostTimeout;
  ASSIGN_OR_RETURN(const auto hosts, worker::ConnectGroup(listener.get(), group, options,
                                                          asked.link.connect_timeout, {}));
  return RunOneRank(open, *library, static_cast<int>(numbers[1]), *hosts[0], asked.link, work);
}

absl::StatusOr<PartResult> Lose(const RankPlace& place, const NamedConfig& decoder) {
  const absl::Status why = DecodeUntilLost(place, decoder, [](const std::string& absence) {
    std::cout << "steps\t" << OneField(absence) << std::endl;
  });
  std::cout << "lost\t" << OneField(std::string(why.message())) << std::endl;
  return PartResult{};
}

// What both ways work on is the library's memory, and registered, as a worker's.
absl::StatusOr<PartResult> TimeReduces(const Asked& asked, const RankPlace& place) {
  ASSIGN_OR_RETURN(std::vector<int64_t> sizes, Numbers(asked));
  if (sizes.size() < 4) return absl::InvalidArgumentError("two GPUs, a time, and sizes");
  worker::OneShotOptions options;
  options.measure_time = milliseconds(sizes[2]);
  sizes.erase(sizes.begin(), sizes.begin() + 3);
  const int64_t most =
      std::max(options.buffer_bytes, *std::max_element(sizes.begin(), sizes.end()));
  ASSIGN_OR_RETURN(const auto values,
                   worker::CollectiveBuffer::Make(place.library, *place.device, most));
  RETURN_IF_ERROR(place.host->Barrier());
  PartResult result;
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<DeviceCommunicator> link, LinkPair(place));
    ASSIGN_OR_RETURN(const bool is_symmetric, link->Register(values.data(), most));
    const std::vector<ReduceWay> ways = {{"nccl", [&](void* of, int64_t count) {
                                            return link->AllReduceSum(of, count,
                                                                      worker::DeviceNumber::kBF16);
                                          }}};
    ASSIGN_OR_RETURN(result, TimeAllReduces(place, *link, ways, sizes, values.data()));
    result.figures.push_back(
        {"symmetric_memory", is_symmetric ? 1.0 : 0.0, "1: NCCL adds up in registered windows"});
    RETURN_IF_ERROR(place.host->Barrier());
  }
  ASSIGN_OR_RETURN(std::unique_ptr<worker::Nccl> nccl, worker::Nccl::Load(asked.nccl));
  worker::OneShot library(std::move(nccl), options);
  ASSIGN_OR_RETURN(const std::unique_ptr<DeviceCommunicator> one_shot,
                   LinkPair({&library, place.device, place.host, place.link}));
  RETURN_IF_ERROR(one_shot->Register(values.data(), most).status());
  Append(OneShotResult(one_shot->one_shot(), options.buffer_bytes), result);
  RETURN_IF_ERROR(place.host->Barrier());
  return result;
}

// The result of what was asked for; nothing where it was said already.
absl::StatusOr<PartResult> Answer(const worker::GpuOpener& open,
                                  const std::vector<NamedConfig>& decoders, const Asked& asked) {
  RETURN_IF_ERROR(worker::CheckNcclSettings(worker::ReadNcclSettings()));
  const std::string& what = asked.words[0];
  const RankWork compare = [&](const RankPlace& place) {
    return ComparePairWithOne(place, decoders);
  };
  if (what == "threads") return RunThreads(open, asked, compare);
  if (what == "compare") return RunProcess(open, asked, compare);
  if (what == "lose") {
    return RunProcess(open, asked,
                      [&](const RankPlace& place) { return Lose(place, decoders[0]); });
  }
  if (what == "all-reduce") {
    return RunThreads(open, asked,
                      [&](const RankPlace& place) { return TimeReduces(asked, place); });
  }
  return absl::InvalidArgumentError(absl::StrCat("--rank-child does not know ", what));
}

void TellNccl(const std::string& library) {
  absl::Status status = worker::CheckNcclSettings(worker::ReadNcclSettings());
  if (status.ok()) {
    const auto nccl = worker::Nccl::Load(library);
    status = nccl.status();
    if (nccl.ok()) std::cout << "nccl\t" << (*nccl)->Describe() << std::endl;
  }
  if (!status.ok()) {
    std::cout << "missing\t" << OneField(std::string(status.message())) << std::endl;
  }
}

}  // namespace

int RunRankChild(const worker::GpuOpener& open, const std::vector<NamedConfig>& decoders,
                 const std::vector<std::string>& words) {
  EndWithParent();
  worker::TurnOffNcclPlugins();
  const absl::StatusOr<Asked> asked = ParseWords(words);
  if (asked.ok() && asked->words[0] == "nccl") {
    TellNccl(asked->nccl);
    return 0;
  }
  const absl::StatusOr<PartResult> result =
      asked.ok() ? Answer(open, decoders, *asked) : absl::StatusOr<PartResult>(asked.status());
  if (result.ok()) {
    std::cout << ResultLines(*result) << std::flush;
    return 0;
  }
  PartResult wrong;
  wrong.wrong.emplace_back(result.status().message());
  std::cout << ResultLines(wrong) << std::flush;
  return 1;
}

}  // namespace rempart::benchmarks
