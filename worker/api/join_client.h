// SPDX-License-Identifier: Apache-2.0
// The Join stream: tells the operator (or `rempart serve`) who this pod is and how far it has got,
// every 500 ms and at each change of phase; hears epochs and the orders to go on, to end one, to
// drain, to resume. A broken stream is dialled again with growing pauses and changes nothing for
// what is served. Of several operators only the leader answers: another names it, and is believed,
// because it has shown the operator's certificate and the leader must show it, too.
//
// Threads: one that dials and writes, one per stream that reads and calls the handlers.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "common/tls/tls.h"
#include "proto/group/v1/group.grpc.pb.h"
#include "worker/api/worker_status.h"
#include "worker/group/rank_progress.h"

namespace rempart::worker {

struct JoinIdentity {
  std::string group_name = {};
  int32_t pod_index = 0;
  std::string pod_name = {};
  std::string pod_uid = {};
  std::string node_name = {};
  std::string address = {};
  std::string version = {};
  std::map<std::string, std::string> facts = {};
  std::string data_address = {};
  std::string config_hash = {};
  int32_t pod_count = 1;
  int32_t ranks_per_pod = 1;
};

// Each may be empty.
struct JoinHandlers {
  std::function<void(const group::v1::Epoch&)> on_epoch = {};
  std::function<void(int32_t epoch)> on_go = {};
  std::function<void(const group::v1::Abort&)> on_abort = {};
  std::function<void(absl::Duration deadline)> on_drain = {};
  std::function<void()> on_resume = {};
  // What the ranks last did, as far as this pod knows; called with each progress.
  std::function<std::vector<RankStatus>()> ranks = {};
  // Requests that run or wait in this pod; called with each progress.
  std::function<int32_t()> requests = {};
  // What threatens this pod on its node; called with each progress, on one thread.
  std::function<std::string()> node_warning = {};
  // Of a member with GPUs: which version of their report there is (0: none yet), and the report,
  // which is sent when the version is another than the last one sent on the stream.
  std::function<int64_t()> gpu_version = {};
  std::function<group::v1::GpuReport()> gpus = {};
};

class JoinClient {
 public:
  // The status outlives the client.
  static absl::StatusOr<std::unique_ptr<JoinClient>> Start(const std::string& control_address,
                                                           const TlsConfig& tls,
                                                           JoinIdentity identity,
                                                           JoinHandlers handlers,
                                                           const WorkerStatus* status);
  ~JoinClient();

  // Returns when the operator's side has been handed the current phase, and what was to be said of
  // the GPUs before, or after `timeout`.
  void Flush(absl::Duration timeout);

 private:
  // How a stream ended.
  struct Outcome {
    bool carried = false;  // anything
    bool redirected = false;
    std::string leader_address = {};  // of a redirection; empty: the operator did not know
  };

  JoinClient(std::string control_address, TlsConfig tls, JoinIdentity identity,
             JoinHandlers handlers, const WorkerStatus* status);
  void Run(std::stop_token stop);
  // One stream to `address`, until it breaks.
  Outcome RunStream(const std::string& address, std::stop_token stop);
  // Returns when the stream has ended; fills the redirection.
  void HandleMessages(grpc::ClientReaderWriter<group::v1::FromMember, group::v1::ToMember>& stream,
                      Outcome& outcome);
  group::v1::FromMember ProgressFrame(const StatusSnapshot& snapshot) const;
  group::v1::FromMember IdentityFrame() const;
  int64_t GpuVersion() const { return handlers_.gpu_version ? handlers_.gpu_version() : 0; }

  const std::string control_address_;
  const TlsConfig tls_;
  const JoinIdentity identity_;
  const JoinHandlers handlers_;
  const WorkerStatus* const status_;

  Mutex mu_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mu_) = nullptr;  // of the stream in progress
  int32_t epoch_ ABSL_GUARDED_BY(mu_) = 0;
  Phase phase_sent_ ABSL_GUARDED_BY(mu_) = Phase::kStarting;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::jthread thread_;
};

}  // namespace rempart::worker
