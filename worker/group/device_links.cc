// SPDX-License-Identifier: Apache-2.0
#include "worker/group/device_links.h"

#include <thread>
#include <utility>

#include "common/log.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

absl::Status LinkRank(CollectiveLibrary& library, const std::string& id, const LocalRank& rank,
                      const DeviceCommunicatorOptions& options, const std::stop_token& stop,
                      std::unique_ptr<DeviceCommunicator>& made) {
  ASSIGN_OR_RETURN(made,
                   library.Connect(*rank.model->device(), {id, rank.communicator}, options, stop));
  if (const CollectiveBuffer* exchange = rank.model->exchange(); exchange != nullptr) {
    ASSIGN_OR_RETURN(const bool is_symmetric, made->Register(exchange->data(), exchange->bytes()));
    LogInfo("group", "linked a GPU", {{"rank", rank.rank}, {"symmetric_memory", is_symmetric}});
  }
  rank.model->SetDeviceCommunicator(made.get());
  // A leader that went on earlier could send a step to a rank that has none yet.
  return rank.communicator->Barrier();
}

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<DeviceCommunicator>>> LinkDevices(
    CollectiveLibrary& library, const std::string& id, const std::vector<LocalRank>& ranks,
    const DeviceCommunicatorOptions& options, const std::stop_token& stop) {
  std::vector<std::unique_ptr<DeviceCommunicator>> made(ranks.size());
  std::vector<absl::Status> results(ranks.size());
  // One that fails ends the wait of the others.
  std::stop_source give_up;
  const std::stop_callback forward(stop, [&] { give_up.request_stop(); });
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < ranks.size(); ++i) {
      threads.emplace_back([&, i] {
        results[i] = LinkRank(library, id, ranks[i], options, give_up.get_token(), made[i]);
        if (results[i].ok()) return;
        give_up.request_stop();
        // Those of other pods wait for this one, too.
        ranks[i].communicator->Abort(results[i], -1);
      });
    }
  }
  // What failed, rather than what was given up because of it.
  absl::Status first;
  for (const absl::Status& result : results) {
    if (!result.ok() && (first.ok() || absl::IsCancelled(first))) first = result;
  }
  if (first.ok()) return made;
  for (const LocalRank& rank : ranks) rank.model->SetDeviceCommunicator(nullptr);
  return first;
}

}  // namespace rempart::worker
