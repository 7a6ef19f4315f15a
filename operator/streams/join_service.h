// SPDX-License-Identifier: Apache-2.0
// The Join streams of all workers: each introduces itself and reports progress to the JoinRegistry,
// whose orders it carries. One thread of its own lets the registry judge silence.
#pragma once

#include <atomic>
#include <string>
#include <thread>

#include "operator/streams/join_registry.h"
#include "proto/group/v1/group.grpc.pb.h"

namespace rempart::op {

class JoinService : public group::v1::GroupControl::CallbackService {
 public:
  // The registry outlives the server. `required_caller`: the name that a worker's certificate must
  // carry; empty without TLS.
  JoinService(JoinRegistry* registry, std::string required_caller);

  grpc::ServerBidiReactor<group::v1::FromMember, group::v1::ToMember>* Join(
      grpc::CallbackServerContext* context) override;

 private:
  JoinRegistry* const registry_;
  const std::string required_caller_;
  std::atomic<int64_t> streams_opened_ = 0;
  std::jthread ticks_;
};

}  // namespace rempart::op
