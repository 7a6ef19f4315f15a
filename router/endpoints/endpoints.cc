// SPDX-License-Identifier: Apache-2.0
#include "router/endpoints/endpoints.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <utility>
#include <vector>

#include "common/log.h"

namespace rempart::router {
namespace {

namespace v1 = worker::v1;
constexpr absl::Duration kFirstBackOff = absl::Milliseconds(50);
constexpr absl::Duration kMaxBackOff = absl::Seconds(2);
// An idle worker sends a frame every second.
constexpr absl::Duration kSilence = absl::Seconds(5);
// The same when the operator, too, says that the group does not serve: its leader hangs.
constexpr absl::Duration kSilenceOfLost = absl::Seconds(2);
// What a group must have served since it lost requests before it counts as steady: longer than a
// rank in a crash loop stays up.
constexpr absl::Duration kSteadyAfter = absl::Seconds(5);
// A stream may take this long until Welcome.
constexpr absl::Duration kConnectTimeout = absl::Seconds(20);

}  // namespace

Endpoints::Endpoints(boost::asio::io_context& shard, EndpointOptions options,
                     EndpointHandlers handlers)
    : shard_(shard), options_(std::move(options)), handlers_(std::move(handlers)) {}

Endpoints::~Endpoints() = default;

Endpoints::Group* Endpoints::Find(const std::string& group_name) {
  const auto found = groups_.find(group_name);
  return found == groups_.end() ? nullptr : &found->second;
}

void Endpoints::SetTopology(const Topology& topology, absl::Time now) {
  for (auto& [name, group] : groups_) group.in_topology = false;
  std::vector<std::string> moved;
  for (const ModelEntry& model : topology.models) {
    for (const GroupEntry& entry : model.groups) {
      Group& group = groups_[entry.group_name];
      if (group.stream != nullptr && group.entry.address != entry.address) {
        moved.push_back(entry.group_name);
      }
      // It has just come back: what failed before says nothing.
      if (entry.ready && !group.entry.ready) group.next_dial = now;
      group.model_name = model.model_name;
      group.entry = entry;
      group.in_topology = true;
      group.view.group_name = entry.group_name;
    }
  }
  for (const std::string& name : moved) Lose(groups_.at(name), now, "the group has moved");
  for (auto& [name, group] : groups_) {
    group.view.draining = group.worker_draining || group.entry.draining || !group.in_topology;
  }
  Tick(now);
  handlers_.on_capacity();
}

void Endpoints::Tick(absl::Time now) {
  now_ = now;
  bool gained = false;
  for (auto it = groups_.begin(); it != groups_.end();) {
    Group& group = it->second;
    if (!group.in_topology && group.request_ids.empty()) {
      it = groups_.erase(it);
      continue;
    }
    ++it;
    const absl::Duration silence = group.entry.ready ? kSilence : kSilenceOfLost;
    const absl::Duration limit = group.view.connected ? silence : kConnectTimeout;
    if (group.stream != nullptr && now - group.last_frame > limit) {
      Lose(group, now, "the worker has gone silent");
    }
    const bool wanted = group.in_topology && group.entry.ready;
    if (group.stream == nullptr && wanted && now >= group.next_dial) Dial(group, now);
    if (!group.view.steady && now >= group.steady_at) group.view.steady = gained = true;
  }
  if (gained) handlers_.on_capacity();
}

void Endpoints::Dial(Group& group, absl::Time now) {
  group.last_frame = now;
  const uint64_t incarnation = ++group.incarnation;
  const std::string name = group.entry.group_name;
  const auto current = [this, name, incarnation]() -> Group* {
    Group* found = Find(name);
    return found != nullptr && found->incarnation == incarnation ? found : nullptr;
  };
  AttachEvents events;
  events.on_frame = [this, current](const v1::FromWorker& frame) {
    if (Group* found = current()) HandleFrame(*found, frame);
  };
  events.on_closed = [this, current](const absl::Status& status) {
    if (Group* found = current()) Lose(*found, now_, status.message());
  };
  group.stream = std::make_unique<AttachStream>(shard_, options_.tls, group.entry.address,
                                                options_.router_id, std::move(events));
}

void Endpoints::HandleFrame(Group& group, const v1::FromWorker& frame) {
  group.last_frame = now_;
  if (frame.has_welcome()) return HandleWelcome(group, frame.welcome());
  if (!frame.has_step()) return;
  if (frame.step().has_load()) HandleLoad(group, frame.step().load());
  for (const v1::Delta& delta : frame.step().deltas()) {
    if (group.request_ids.count(delta.request_id()) > 0) handlers_.on_delta(delta);
  }
}

void Endpoints::HandleWelcome(Group& group, const v1::Welcome& welcome) {
  if (!welcome.group_name().empty() && welcome.group_name() != group.entry.group_name) {
    LogWarning("endpoints", "another group answers at this address",
               {{"group", group.entry.group_name},
                {"address", group.entry.address},
                {"answers", welcome.group_name()}});
    return Lose(group, now_, "another group answers");
  }
  LogInfo("endpoints", "attached",
          {{"group", group.entry.group_name}, {"address", group.entry.address}});
  group.view.connected = true;
  MarkReady(group);  // a worker that loads does not welcome
  group.back_off = absl::ZeroDuration();
  handlers_.on_capacity();
}

void Endpoints::HandleLoad(Group& group, const v1::Load& load) {
  const bool took = group.view.ready && !group.view.draining;
  if (load.state() == v1::Load::READY) {
    MarkReady(group);
  } else {
    group.view.ready = false;
  }
  group.worker_draining = load.state() == v1::Load::DRAINING;
  group.view.draining = group.worker_draining || group.entry.draining || !group.in_topology;
  group.view.running = load.running();
  group.view.waiting = load.waiting();
  group.view.queued_prefill_tokens = load.queued_prefill_tokens();
  const uint64_t seen = std::min<uint64_t>(load.starts_seen(), group.starts_sent);
  group.view.starts_unseen = static_cast<int32_t>(group.starts_sent - seen);
  if (!took && group.view.ready && !group.view.draining) handlers_.on_capacity();
}

void Endpoints::MarkReady(Group& group) {
  group.view.ready = true;
  if (group.steady_at == absl::InfiniteFuture()) group.steady_at = now_ + kSteadyAfter;
}

void Endpoints::MarkUnsteady(Group& group) {
  group.steady_at = absl::InfiniteFuture();
  group.view.steady = false;
}

void Endpoints::Lose(Group& group, absl::Time now, absl::string_view reason) {
  if (group.view.connected || group.back_off == absl::ZeroDuration()) {
    LogWarning("endpoints", "not attached",
               {{"group", group.entry.group_name},
                {"address", group.entry.address},
                {"requests", group.request_ids.size()},
                {"reason", reason}});
  }
  ++group.incarnation;
  // Destroyed later: this may be a call of the stream itself.
  if (group.stream != nullptr) {
    boost::asio::post(
        shard_, [old = std::shared_ptr<AttachStream>(std::move(group.stream))] { old->Close(); });
  }
  const std::set<uint64_t> lost = std::exchange(group.request_ids, {});
  group.view = {};
  group.view.group_name = group.entry.group_name;
  if (!lost.empty() || group.steady_at > now) MarkUnsteady(group);
  group.worker_draining = false;
  group.starts_sent = 0;
  group.back_off = std::clamp(group.back_off * 2, kFirstBackOff, kMaxBackOff);
  group.next_dial = now + group.back_off;
  if (!lost.empty()) handlers_.on_lost(group.entry.group_name, lost);
}

void Endpoints::Close() {
  for (auto& [name, group] : groups_) {
    ++group.incarnation;
    if (group.stream != nullptr) group.stream->Close();
  }
  groups_.clear();
}

std::string Endpoints::PickGroup(absl::string_view model_name, const RequestTraits& traits) const {
  EndpointSnapshot snapshot;
  for (const auto& [name, group] : groups_) {
    if (group.model_name == model_name) snapshot.groups.push_back(group.view);
  }
  const Decision decision = Pick(snapshot, traits);
  return decision.group_index ? snapshot.groups[*decision.group_index].group_name : "";
}

void Endpoints::Start(const std::string& group_name, v1::Start start) {
  Group& group = groups_.at(group_name);
  group.request_ids.insert(start.request_id());
  ++group.starts_sent;
  ++group.view.starts_unseen;
  v1::ToWorker message;
  *message.mutable_start() = std::move(start);
  group.stream->Send(std::move(message));
}

void Endpoints::Cancel(const std::string& group_name, uint64_t request_id) {
  Group* group = Find(group_name);
  if (group == nullptr || group->request_ids.erase(request_id) == 0) return;
  v1::ToWorker message;
  message.mutable_cancel()->set_request_id(request_id);
  group->stream->Send(std::move(message));
}

void Endpoints::Forget(const std::string& group_name, uint64_t request_id) {
  if (Group* group = Find(group_name)) group->request_ids.erase(request_id);
}

void Endpoints::MarkDraining(const std::string& group_name) {
  Group* group = Find(group_name);
  if (group == nullptr) return;
  group->worker_draining = true;
  group->view.draining = true;
}

void Endpoints::MarkLost(const std::string& group_name) {
  Group* group = Find(group_name);
  if (group == nullptr) return;
  group->view.ready = false;
  MarkUnsteady(*group);
}

int32_t Endpoints::ready_count() const {
  int32_t count = 0;
  for (const auto& [name, group] : groups_) {
    if (group.view.connected && group.view.ready && !group.view.draining) ++count;
  }
  return count;
}

}  // namespace rempart::router
