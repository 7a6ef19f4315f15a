// SPDX-License-Identifier: Apache-2.0
// The Join streams of all workers: each introduces itself, gets its epoch and reports progress to
// the JoinRegistry. A group is one pod, so its epoch is complete at once.
#pragma once

#include <atomic>
#include <string>

#include "operator/streams/join_registry.h"
#include "proto/group/v1/group.grpc.pb.h"

namespace rempart::op {

class JoinService : public group::v1::GroupControl::CallbackService {
 public:
  // The registry outlives the server. `required_caller`: the name that a worker's certificate must
  // carry; empty without TLS.
  JoinService(JoinRegistry* registry, std::string required_caller)
      : registry_(registry), required_caller_(std::move(required_caller)) {}

  grpc::ServerBidiReactor<group::v1::FromMember, group::v1::ToMember>* Join(
      grpc::CallbackServerContext* context) override;

 private:
  JoinRegistry* const registry_;
  const std::string required_caller_;
  std::atomic<int64_t> streams_opened_ = 0;
};

}  // namespace rempart::op
