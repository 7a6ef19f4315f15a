// SPDX-License-Identifier: Apache-2.0
// Where a worker process stands between start and end, as the Join stream, /readyz and /metrics
// tell it. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "common/printable.h"
#include "worker/comm/device_communicator.h"
#include "worker/group/epoch_fate.h"
#include "worker/group/fabric.h"
#include "worker/model/device_memory.h"

namespace rempart::worker {

enum class Phase {
  kStarting,    // waits for an epoch
  kConnecting,  // to the other pods of its epoch
  kLoading,
  kLoaded,  // waits until all are
  kWarmingUp,
  kReady,
  kDraining,
  kFailed,
};

const char* PhaseName(Phase phase);

// One part of a start. Parts overlap: the tokenizer is made while weights are repacked.
struct StartPart {
  std::string name;
  absl::Duration time;
};

struct StatusSnapshot {
  Phase phase = Phase::kStarting;
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
  std::string message = {};
  std::string reason = {};  // of kFailed, machine-readable
  std::string digest = {};
  std::vector<StartPart> start_parts = {};
  int32_t epoch = 0;  // that this process is in; 0: none
  // The last one that ended for it.
  int32_t ended_epoch = 0;
  std::string ended_reason = {};
  int32_t ended_blamed_rank = -1;
  int64_t epochs_ended = 0;
  int64_t weight_bytes_read = 0;  // since the process began
  FabricFigures fabric = {};
  int32_t fabric_microseconds_per_token = 0;
  OneShotFacts one_shot = {};  // of ranks on GPUs
  // That a stage of the model can be cut into, and its layers; empty and 0: not known yet.
  std::vector<int> tensor_sizes = {};
  int layers = 0;
  DeviceMemoryNeeds rank_memory = {};  // of the rank on a GPU that takes most; zeros: not known
  // Of the fullest of the node's disks that the pod lives on, 0 to 1; negative: not watched.
  double node_disk_free_share = -1;
};

// kFailed is the last phase: the process is about to end, whatever its other threads still do.
class WorkerStatus {
 public:
  // Of what Fail keeps: a condition of Kubernetes holds 4096 characters.
  static constexpr size_t kMaxMessageBytes = 2048;

  void SetPhase(Phase phase) {
    MutexLock lock(&mu_);
    GoTo(phase);
  }
  void SetLoaded(int64_t bytes_done, int64_t bytes_total) {
    MutexLock lock(&mu_);
    snapshot_.bytes_done = bytes_done;
    snapshot_.bytes_total = bytes_total;
  }
  void SetDigest(std::string digest) {
    MutexLock lock(&mu_);
    snapshot_.digest = std::move(digest);
  }
  void SetShape(std::vector<int> tensor_sizes, int layers) {
    MutexLock lock(&mu_);
    snapshot_.tensor_sizes = std::move(tensor_sizes);
    snapshot_.layers = layers;
  }
  void SetRankMemory(const DeviceMemoryNeeds& needs) {
    MutexLock lock(&mu_);
    snapshot_.rank_memory = needs;
  }
  void AddStartPart(std::string name, absl::Duration time) {
    MutexLock lock(&mu_);
    snapshot_.start_parts.push_back({std::move(name), time});
  }
  void AddBytesRead(int64_t bytes) {
    MutexLock lock(&mu_);
    snapshot_.weight_bytes_read += bytes;
  }
  void SetNodeDisk(double free_share) {
    MutexLock lock(&mu_);
    snapshot_.node_disk_free_share = free_share;
  }
  void BeginEpoch(int32_t epoch) {
    MutexLock lock(&mu_);
    GoTo(Phase::kConnecting);
    snapshot_.epoch = epoch;
  }
  void EndEpoch(const EpochEnd& end) {
    MutexLock lock(&mu_);
    GoTo(Phase::kStarting);
    snapshot_.ended_epoch = std::exchange(snapshot_.epoch, 0);
    snapshot_.ended_reason = end.reason;
    snapshot_.ended_blamed_rank = end.blamed_rank;
    ++snapshot_.epochs_ended;
  }
  void SetFabric(const FabricFigures& fabric) {
    MutexLock lock(&mu_);
    snapshot_.fabric = fabric;
  }
  void SetFabricCost(int32_t microseconds_per_token) {
    MutexLock lock(&mu_);
    snapshot_.fabric_microseconds_per_token = microseconds_per_token;
  }
  void SetOneShot(OneShotFacts one_shot) {
    MutexLock lock(&mu_);
    snapshot_.one_shot = std::move(one_shot);
  }
  // `message` may quote a file that nobody vouches for.
  void Fail(std::string reason, absl::string_view message) {
    MutexLock lock(&mu_);
    snapshot_.phase = Phase::kFailed;
    snapshot_.reason = std::move(reason);
    snapshot_.message = Printable(message, kMaxMessageBytes);
  }
  // Returns when the phase is another one, or after `timeout`.
  void AwaitPhaseAfter(Phase last, absl::Duration timeout) const {
    const auto changed = [&]()
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return snapshot_.phase != last; };
    MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&changed), timeout);
  }
  StatusSnapshot snapshot() const {
    MutexLock lock(&mu_);
    return snapshot_;
  }

 private:
  void GoTo(Phase phase) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (snapshot_.phase != Phase::kFailed) snapshot_.phase = phase;
  }

  mutable Mutex mu_;
  StatusSnapshot snapshot_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::worker
