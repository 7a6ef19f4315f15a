// SPDX-License-Identifier: Apache-2.0
// The Watch streams of all routers. A stream gets the whole snapshot when it opens and whenever it
// changes; what changes while a snapshot is being written comes in one piece afterwards. Nothing is
// sent before the first snapshot is known: an empty one would make a router forget its groups.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "proto/topology/v1/topology.grpc.pb.h"

namespace rempart::op {

class TopologyStream;

class TopologyService : public topology::v1::Topology::CallbackService {
 public:
  // `required_caller`: the name that a router's certificate must carry; empty without TLS.
  explicit TopologyService(std::string required_caller)
      : required_caller_(std::move(required_caller)) {}

  // Gives it a version and sends it to all, if it differs from the last one. Any thread.
  void Publish(topology::v1::Snapshot snapshot);

  int streams() const;

  grpc::ServerBidiReactor<topology::v1::FromRouter, topology::v1::Snapshot>* Watch(
      grpc::CallbackServerContext* context) override;

 private:
  friend class TopologyStream;
  void Remove(TopologyStream* stream);

  const std::string required_caller_;
  // Lock order: this before a stream's.
  mutable Mutex mu_;
  std::shared_ptr<const topology::v1::Snapshot> latest_ ABSL_GUARDED_BY(mu_);
  std::set<TopologyStream*> streams_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::op
