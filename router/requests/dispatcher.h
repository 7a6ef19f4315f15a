// SPDX-License-Identifier: Apache-2.0
// The requests of one shard, from the client's call to the last token: placed on a group, held
// while none is ready, moved when a group is lost. Owned and called by the shard's thread.
// 1. A ticket ends once: by its last finish, by on_error, or by Cancel; nothing comes after.
// 2. At most max_held tickets wait, none longer than held_timeout.
// 3. A ticket moves at most twice, the second time only to a group that is steady; what was
//    delivered is never delivered again. With n > 1 it moves only while nothing was delivered.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "proto/worker/v1/worker.pb.h"
#include "router/api/request.h"
#include "router/endpoints/endpoints.h"
#include "router/endpoints/topology_feed.h"

namespace rempart::router {

// What one continuation of a ticket gained.
struct TicketDelta {
  ChoiceDelta choice;  // its choice_index counts the continuations of this ticket
  // Of the first delta of a ticket; 0 in later ones.
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  // Of the delta that finishes a continuation; 0 in others.
  int32_t completion_tokens = 0;
};

struct TicketEvents {
  std::function<void(TicketDelta)> on_delta;
  std::function<void(ApiError)> on_error;
};

struct DispatcherOptions {
  std::string router_id;
  TlsConfig worker_tls = {};
  int32_t max_held = 1000;
  absl::Duration held_timeout = absl::Seconds(60);
  absl::Duration request_timeout = absl::Hours(1);
};

class Dispatcher {
 public:
  Dispatcher(boost::asio::io_context& shard, DispatcherOptions options, const Clock* clock);

  void SetTopology(TopologyPtr topology);
  // Never null; empty until the first topology has come.
  const TopologyPtr& topology() const { return topology_; }

  // Starts what `start` says for the model that `start.served_name()` names. Events may come within
  // the call.
  uint64_t Submit(worker::v1::Start start, TicketEvents events);
  void Cancel(uint64_t ticket_id);

  // Deadlines, back-off and silence; called a few times a second.
  void Tick();
  // Ends all tickets with an error, and all streams.
  void Close();

  // Figures per model, for the operator, added to what `figures` holds.
  void AddDemand(std::map<std::string, ModelDemandFigures>& figures) const;
  int32_t held_count() const { return static_cast<int32_t>(held_.size()); }
  int32_t ticket_count() const { return static_cast<int32_t>(tickets_.size()); }
  int64_t moves_total() const { return moves_total_; }
  const Endpoints& endpoints() const { return endpoints_; }

 private:
  struct Ticket {
    worker::v1::Start start;
    TicketEvents events;
    std::string model_name;
    std::string group_name;  // empty: held
    RequestTraits traits;
    absl::Time deadline;
    absl::Time held_until;
    std::vector<int32_t> delivered_ids;
    bool has_delivered = false;
    bool reported_prompt = false;
    int32_t endings_left = 1;
    int32_t moves = 0;
  };

  void Place(uint64_t ticket_id);
  void PlaceHeld();
  void HandleDelta(const worker::v1::Delta& delta);
  void HandleFailure(uint64_t ticket_id, const worker::v1::Failure& failure);
  void HandleLost(const std::string& group_name, const std::set<uint64_t>& ticket_ids);
  // Sends the ticket elsewhere, or fails it with `otherwise`.
  void Move(uint64_t ticket_id, ApiError otherwise);
  void Fail(uint64_t ticket_id, ApiError error);
  void End(uint64_t ticket_id);

  const DispatcherOptions options_;
  const Clock* const clock_;
  TopologyPtr topology_;
  std::map<uint64_t, Ticket> tickets_;
  std::map<uint64_t, absl::Time> held_;  // in the order of arrival: ids grow
  std::map<std::string, ModelDemandFigures> totals_;
  uint64_t last_ticket_id_ = 0;
  int64_t moves_total_ = 0;
  Endpoints endpoints_;
};

}  // namespace rempart::router
