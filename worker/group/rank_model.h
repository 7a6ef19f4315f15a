// SPDX-License-Identifier: Apache-2.0
// One rank's share of a model. Its weights are read once and stay over the epochs of its group;
// what belongs to one epoch, the KV cache first of all, is made anew by Begin.
#pragma once

#include "absl/status/status.h"
#include "worker/comm/communicator.h"
#include "worker/comm/device_communicator.h"
#include "worker/engine/model_runner.h"

namespace rempart::worker {

class RankModel : public ModelRunner {
 public:
  // Takes part in an epoch, with a KV cache of so many blocks. `communicator` outlives the epoch;
  // null in a group of one rank. ResourceExhausted when memory is short.
  virtual absl::Status Begin(Communicator* communicator, int32_t kv_blocks) = 0;
  // Of a rank on a device: where it computes. Null: on the CPU.
  virtual Device* device() { return nullptr; }
  // Of a rank on a device in a group of several: what its collectives work on. Null: nothing.
  virtual const CollectiveBuffer* exchange() { return nullptr; }
  // Of a rank on a device in a group of several: through which it adds up with the others, from
  // before the first Forward of an epoch on; null at its end. It outlives its use.
  virtual void SetDeviceCommunicator(DeviceCommunicator*) {}
  // Forward, and Finish of the pipeline: of rank 0 alone are `logits` and `drawn` asked for;
  // elsewhere they are empty, and what Start returns says nothing. All ranks of the group run the
  // same batches in the same order, where slices may follow tokens that rank 0 alone has drawn. The
  // thread that calls it is always the same one in an epoch.
};

}  // namespace rempart::worker
