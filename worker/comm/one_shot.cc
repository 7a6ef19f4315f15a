// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/one_shot.h"

#include <utility>

#include "common/status_macros.h"
#include "worker/comm/one_shot_communicator.h"

namespace rempart::worker {
int64_t Crossover(const std::vector<SumTime>& times) {
  int64_t bytes = 0;
  for (const SumTime& time : times) {
    if (time.one_shot_microseconds >= time.library_microseconds) break;
    bytes = time.bytes;
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<DeviceCommunicator>> OneShot::Connect(
    Device& device, const DevicePlace& place, const DeviceCommunicatorOptions& options,
    const std::stop_token& stop) {
  ASSIGN_OR_RETURN(auto library, library_->Connect(device, place, options, stop));
  auto made = std::make_unique<OneShotCommunicator>(device, *place.group, std::move(library),
                                                    options.timeout, options_);
  const std::stop_callback give_up(
      stop, [&] { made->Abort(absl::CancelledError("the group is given up")); });
  const absl::Status linked = made->Link();
  if (!linked.ok()) {
    // The others wait for this rank.
    place.group->Abort(linked, -1);
    return linked;
  }
  return std::unique_ptr<DeviceCommunicator>(std::move(made));
}

}  // namespace rempart::worker
