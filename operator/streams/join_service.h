// SPDX-License-Identifier: Apache-2.0
// The Join streams of all workers: each introduces itself and reports progress to the JoinRegistry,
// whose orders it carries. One thread of its own lets the registry judge silence.
//
// Of several operators only the one that leads answers Join, so that the members of a group meet at
// one place: the others name the leader (Redirect) and end the stream.
#pragma once

#include <atomic>
#include <functional>
#include <set>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "common/mutex.h"
#include "operator/streams/join_registry.h"
#include "proto/group/v1/group.grpc.pb.h"

namespace rempart::op {

class JoinStream;

struct JoinOptions {
  // The name that a worker's certificate must carry; empty without TLS.
  std::string required_caller = {};
  // False: closed until Open.
  bool open = true;
  // Where the leader answers, while this process does not lead; empty: unknown.
  std::function<std::string()> leader_address = {};
  // Whether this process still has its place; why not is told to it.
  std::function<absl::Status(const group::v1::Identity&)> admit = {};
};

class JoinService : public group::v1::GroupControl::CallbackService {
 public:
  // The registry outlives the server.
  JoinService(JoinRegistry* registry, JoinOptions options);

  // From now on this process leads. Any thread.
  void Open();
  // It does not any more: ends every stream, so that the workers look for the leader, and redirects
  // those that come. What a group serves is not touched. Any thread.
  void Close();

  // Streams that were sent elsewhere.
  int64_t redirected() const { return redirected_; }

  grpc::ServerBidiReactor<group::v1::FromMember, group::v1::ToMember>* Join(
      grpc::CallbackServerContext* context) override;

 private:
  friend class JoinStream;
  void Remove(JoinStream* stream);
  absl::Status Admit(const group::v1::Identity& identity) const;

  JoinRegistry* const registry_;
  const JoinOptions options_;
  std::atomic<int64_t> streams_opened_ = 0;
  std::atomic<int64_t> redirected_ = 0;
  // Lock order: this before a stream's.
  Mutex mu_;
  bool open_ ABSL_GUARDED_BY(mu_);
  std::set<JoinStream*> streams_ ABSL_GUARDED_BY(mu_);
  std::jthread ticks_;
};

}  // namespace rempart::op
