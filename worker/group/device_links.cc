// SPDX-License-Identifier: Apache-2.0
#include "worker/group/device_links.h"

#include <string>
#include <thread>
#include <utility>

#include "common/log.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

// The first rank of the stage makes it. It is a secret of the stage, and so are the links that it
// crosses.
absl::StatusOr<std::string> ShareId(CollectiveLibrary& library, Communicator& stage) {
  std::string id;
  if (stage.rank() == 0) {
    ASSIGN_OR_RETURN(id, library.NewId());
  }
  auto bytes = static_cast<int64_t>(id.size());
  RETURN_IF_ERROR(stage.Broadcast(&bytes, sizeof(bytes), /*root=*/0));
  id.resize(static_cast<size_t>(bytes));
  RETURN_IF_ERROR(stage.Broadcast(id.data(), bytes, /*root=*/0));
  return id;
}

absl::Status LinkRank(CollectiveLibrary& library, int tensor, const LocalRank& rank,
                      const DeviceCommunicatorOptions& options, const std::stop_token& stop,
                      DeviceLink& link) {
  Communicator* stage = rank.communicator;
  if (stage->size() > tensor) {
    link.stage = stage->Part(rank.rank / tensor * tensor, tensor);
    stage = link.stage.get();
  }
  ASSIGN_OR_RETURN(const std::string id, ShareId(library, *stage));
  std::unique_ptr<DeviceCommunicator>& made = link.communicator;
  ASSIGN_OR_RETURN(made, library.Connect(*rank.model->device(), {id, stage}, options, stop));
  if (const CollectiveBuffer* exchange = rank.model->exchange(); exchange != nullptr) {
    ASSIGN_OR_RETURN(link.has_symmetric_memory,
                     made->Register(exchange->data(), exchange->bytes()));
    LogInfo("group", "linked a GPU",
            {{"rank", rank.rank}, {"symmetric_memory", link.has_symmetric_memory}});
  }
  rank.model->SetDeviceCommunicator(made.get());
  // A leader that went on earlier could send a step to a rank that has none yet.
  return rank.communicator->Barrier();
}

}  // namespace

absl::StatusOr<std::vector<DeviceLink>> LinkDevices(CollectiveLibrary& library, int tensor,
                                                    const std::vector<LocalRank>& ranks,
                                                    const DeviceCommunicatorOptions& options,
                                                    const std::stop_token& stop) {
  std::vector<DeviceLink> made(ranks.size());
  std::vector<absl::Status> results(ranks.size());
  // One that fails ends the wait of the others.
  std::stop_source give_up;
  const std::stop_callback forward(stop, [&] { give_up.request_stop(); });
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < ranks.size(); ++i) {
      threads.emplace_back([&, i] {
        results[i] = LinkRank(library, tensor, ranks[i], options, give_up.get_token(), made[i]);
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
