// SPDX-License-Identifier: Apache-2.0
// The groups that one shard can send requests to: one stream to each, opened again with back-off.
// Owned and called by the shard's thread alone; the handlers are called there too.
// 1. A group is sent nothing before its Welcome, and nothing new while it drains.
// 2. A group that left the topology keeps its stream until its last request has ended.
// 3. on_lost names a group at most once per Welcome; its requests are the caller's to move.
// 4. A group that has lost requests is steady again once it has been ready for five seconds.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/tls/tls.h"
#include "proto/worker/v1/worker.pb.h"
#include "router/endpoints/attach_stream.h"
#include "router/endpoints/topology.h"
#include "router/policy/pick.h"

namespace rempart::router {

struct EndpointHandlers {
  std::function<void(const worker::v1::Delta&)> on_delta;
  // The stream broke: these requests of it will get nothing more.
  std::function<void(const std::string& group_name, const std::set<uint64_t>& request_ids)> on_lost;
  // A group may take requests that could not be placed before.
  std::function<void()> on_capacity;
};

struct EndpointOptions {
  std::string router_id;  // of this shard
  TlsConfig tls = {};
};

class Endpoints {
 public:
  Endpoints(boost::asio::io_context& shard, EndpointOptions options, EndpointHandlers handlers);
  ~Endpoints();

  void SetTopology(const Topology& topology, absl::Time now);
  // Dials what is due and gives up streams that have gone silent; called a few times a second.
  void Tick(absl::Time now);
  // Closes every stream; on_lost is not called.
  void Close();

  // Name of the group that is to get a request for `model_name`; empty: none can.
  std::string PickGroup(absl::string_view model_name, const RequestTraits& traits) const;
  // The group must have been picked in the same pass.
  void Start(const std::string& group_name, worker::v1::Start start);
  // Asks the group to stop; deltas of the request are no longer handed on.
  void Cancel(const std::string& group_name, uint64_t request_id);
  // The request ended by the group's own word.
  void Forget(const std::string& group_name, uint64_t request_id);
  // No new requests for this group until it says otherwise.
  void MarkDraining(const std::string& group_name);
  // The group has lost a rank: nothing for it until it says that it is ready again.
  void MarkLost(const std::string& group_name);

  int32_t ready_count() const;

 private:
  struct Group {
    std::string model_name;
    GroupEntry entry;
    GroupView view;
    std::unique_ptr<AttachStream> stream;  // null: not dialled
    std::set<uint64_t> request_ids;
    uint64_t starts_sent = 0;
    bool in_topology = true;
    bool worker_draining = false;
    absl::Time next_dial = absl::InfinitePast();
    absl::Time last_frame = absl::InfinitePast();
    absl::Duration back_off = absl::ZeroDuration();
    absl::Time steady_at = absl::InfinitePast();  // in the infinite future: lost, and not ready yet
    uint64_t incarnation = 0;  // of the stream; frames of older ones are not ours
  };

  void Dial(Group& group, absl::Time now);
  void HandleFrame(Group& group, const worker::v1::FromWorker& frame);
  void HandleWelcome(Group& group, const worker::v1::Welcome& welcome);
  void HandleLoad(Group& group, const worker::v1::Load& load);
  void MarkReady(Group& group);
  void MarkUnsteady(Group& group);
  void Lose(Group& group, absl::Time now, absl::string_view reason);
  Group* Find(const std::string& group_name);

  boost::asio::io_context& shard_;
  const EndpointOptions options_;
  const EndpointHandlers handlers_;
  absl::Time now_ = absl::InfinitePast();  // of the last tick
  std::map<std::string, Group> groups_;
};

}  // namespace rempart::router
