// SPDX-License-Identifier: Apache-2.0
// One epoch in one process, from its links to its end: connects the ranks, measures the links, has
// the weights loaded if they are not, waits until all are ready, then leads or follows until the
// epoch is over. The weights stay for the next one; the engine, the KV cache and the links do not.
//
// Owned and called by the process's main thread; Ranks and Load by any.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "worker/api/attach_service.h"
#include "worker/api/epoch_orders.h"
#include "worker/api/follow_client.h"
#include "worker/api/follow_service.h"
#include "worker/api/worker_process.h"
#include "worker/comm/connect.h"
#include "worker/config/worker_config.h"
#include "worker/engine/engine_thread.h"
#include "worker/group/device_links.h"
#include "worker/group/group_runner.h"
#include "worker/group/rank_threads.h"

namespace rempart::worker {

// What outlives every epoch.
struct EpochContext {
  const WorkerSettings* settings = nullptr;
  const Clock* clock = nullptr;
  WorkerStatus* status = nullptr;
  EpochOrders* orders = nullptr;
  AttachService* attach = nullptr;
  FollowService* follow = nullptr;
  LinkListener* listener = nullptr;  // null in a group of one pod
  // Loads the model unless it is loaded; returns the same one each time.
  std::function<absl::StatusOr<LoadedModel*>()> load;
  // True when the process shall stop waiting and serving.
  std::function<bool()> stopping;
};

class EpochRun {
 public:
  EpochRun(const EpochContext& context, EpochOrder order, EpochFate* fate);
  // Ends what runs: aborts the communicators, gives back the requests, joins the threads. A thread
  // that does not come back within a few seconds ends the process: its weights are not worth a
  // group that hangs.
  ~EpochRun();

  // Until this process may serve. An error is one of the model and ends the process; a broken group
  // is told to the fate, and OK.
  absl::Status Form();
  // As leader: with its first token computed. As follower: once the leader has let it in.
  absl::Status Begin();
  // Notices links that are lost; called a few times a second while it serves.
  void Look();

  bool is_leader() const { return context_.settings->pod_index == 0; }
  Engine* engine() const { return engine_.get(); }
  // No new requests from now on, and an end for those that run at `deadline`. Any thread.
  void Drain(absl::Time deadline);
  // Takes back Drain. Any thread.
  void Resume();
  // Why this pod's memory is short; empty: it is not. A leader then admits no requests, nor while
  // it is told the same by a follower. After Begin.
  void SetMemoryShort(const std::string& reason);
  EngineLoad Load() const;
  std::vector<RankStatus> Ranks() const;

 private:
  bool over() const { return fate_->end().has_value() || context_.stopping(); }
  // Of the start of the process: in its first epoch alone.
  void NotePart(const char* name, absl::Duration time);
  bool Connect();
  // Of ranks that share a stage on GPUs, in this pod or in several.
  void LinkDevicesOfRanks();
  absl::Status BeginRanks(LoadedModel& model);
  absl::Status WarmUp();
  absl::Status BeginLeading();
  void EndThreads(const EpochEnd& end);

  const EpochContext context_;
  const EpochOrder order_;
  EpochFate* const fate_;
  LoadedModel* model_ = nullptr;

  std::vector<std::unique_ptr<Communicator>> communicators_;  // of this pod's ranks
  std::vector<std::unique_ptr<RankProgress>> progress_;
  std::vector<LocalRank> ranks_;          // of this pod
  std::vector<DeviceLink> device_links_;  // of ranks_
  std::unique_ptr<RankThreads> threads_;
  std::unique_ptr<FollowClient> client_;
  std::unique_ptr<GroupRunner> runner_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineThread> engine_thread_;

  // Guards against Ranks and Load while the pointers above change.
  mutable Mutex mu_;
  bool shows_ranks_ ABSL_GUARDED_BY(mu_) = false;
  bool shows_engine_ ABSL_GUARDED_BY(mu_) = false;
  bool shows_client_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace rempart::worker
