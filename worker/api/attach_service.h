// SPDX-License-Identifier: Apache-2.0
// Attach: one stream per router shard. Requests come down and go to the engine; one Step frame per
// engine step goes up with everything that the step produced for that shard.
//
// Threads: gRPC's threads read streams (and render and encode prompts there); the engine thread
// calls Publish; one thread of its own sends heartbeats.
// Invariants:
//  1. A stream that ends, for whatever reason, cancels its requests at once.
//  2. At most one frame of a stream is being written; what comes meanwhile is merged into one Step.
//     A router that lets more than kMaxPendingDeltas gather loses its stream.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "proto/worker/v1/worker.grpc.pb.h"
#include "worker/api/request_reader.h"
#include "worker/engine/engine.h"

namespace rempart::worker {

constexpr int32_t kAttachProtocol = 1;
constexpr int kMaxPendingDeltas = 16384;
constexpr size_t kMaxRequestsPerStream = 4096;

struct AttachOptions {
  std::string group_name = {};
  std::vector<std::string> served_names = {};
  // The name that a router's certificate must carry; empty without TLS.
  std::string required_caller = {};
};

class AttachStream;

class AttachService : public v1::Worker::CallbackService {
 public:
  AttachService(AttachOptions options, const Clock* clock);
  ~AttachService() override;

  // Streams are refused as UNAVAILABLE before this, and while the group is lost. The encoder and
  // the vocabulary outlive the server, the engine lives until LoseGroup.
  void Open(Engine* engine, const PromptEncoder* encoder, const Vocabulary* vocabulary);
  // The engine is going: every request that it has ends with GROUP_LOST, so that the router sends
  // it elsewhere or waits for Open; new ones are answered the same. Streams stay. The engine is not
  // used any more when this returns. Any thread; a second call does nothing.
  void LoseGroup();
  // The epoch that Welcome names from now on.
  void SetEpoch(int32_t epoch);
  // The engine's sink.
  void Publish(const StepResult& result);

  grpc::ServerBidiReactor<v1::ToWorker, v1::FromWorker>* Attach(
      grpc::CallbackServerContext* context) override;

 private:
  friend class AttachStream;

  // One request that the engine has.
  struct Route {
    AttachStream* stream;
    uint64_t request_id;  // the router's
    int32_t endings_left;
  };
  // What the service knows of a stream.
  struct Entry {
    std::shared_ptr<AttachStream> stream;
    std::map<uint64_t, uint64_t> engine_ids;  // by the router's request id
    std::deque<uint64_t> submissions;         // not yet seen by the engine
    uint64_t starts_seen = 0;
    bool sent_since_beat = false;
    absl::Time last_sent;
  };

  // Calls of a stream's reads; false when the stream broke the protocol.
  bool HandleStart(AttachStream* stream, const v1::Start& start);
  void HandleCancel(AttachStream* stream, uint64_t request_id);
  v1::FromWorker WelcomeFrame() const;
  // The stream is gone or going: its requests are cancelled, its figures forgotten.
  void Forget(AttachStream* stream);
  // gRPC is done with the stream.
  void Remove(AttachStream* stream);

  void SendStep(Entry& entry, v1::Step step, const EngineLoad& load)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RunHeartbeat(std::stop_token stop);

  const AttachOptions options_;
  const Clock* const clock_;

  mutable Mutex mu_;
  Engine* engine_ ABSL_GUARDED_BY(mu_) = nullptr;
  const PromptEncoder* encoder_ ABSL_GUARDED_BY(mu_) = nullptr;
  const Vocabulary* vocabulary_ ABSL_GUARDED_BY(mu_) = nullptr;
  int32_t context_length_ ABSL_GUARDED_BY(mu_) = 0;
  int32_t epoch_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t last_engine_id_ ABSL_GUARDED_BY(mu_) = 0;
  std::mt19937_64 seeds_ ABSL_GUARDED_BY(mu_);
  std::map<AttachStream*, Entry> streams_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint64_t, Route> routes_ ABSL_GUARDED_BY(mu_);

  std::jthread heartbeat_;  // last: starts when all is constructed
};

}  // namespace rempart::worker
