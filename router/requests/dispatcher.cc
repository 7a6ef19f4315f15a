// SPDX-License-Identifier: Apache-2.0
#include "router/requests/dispatcher.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "router/requests/start_message.h"
#include "router/requests/worker_failure.h"

namespace rempart::router {
namespace {

namespace v1 = worker::v1;
constexpr int32_t kMaxMoves = 2;
// What a worker may take to end a request whose deadline has passed.
constexpr absl::Duration kDeadlineGrace = absl::Seconds(2);

}  // namespace

Dispatcher::Dispatcher(boost::asio::io_context& shard, DispatcherOptions options,
                       const Clock* clock)
    : options_(std::move(options)),
      clock_(clock),
      topology_(std::make_shared<const Topology>()),
      endpoints_(shard, {options_.router_id, options_.worker_tls},
                 {[this](const v1::Delta& delta) { HandleDelta(delta); },
                  [this](const std::string& group_name, const std::set<uint64_t>& ids) {
                    HandleLost(group_name, ids);
                  },
                  [this] { PlaceHeld(); }}) {}

void Dispatcher::SetTopology(TopologyPtr topology) {
  topology_ = std::move(topology);
  endpoints_.SetTopology(*topology_, clock_->Now());
}

uint64_t Dispatcher::Submit(v1::Start start, TicketEvents events) {
  const ModelEntry* model = topology_->FindServed(start.served_name());
  const uint64_t ticket_id = ++last_ticket_id_;
  if (model == nullptr) {
    events.on_error(ModelNotFound(start.served_name()));
    return ticket_id;
  }
  const absl::Time now = clock_->Now();
  Ticket& ticket = tickets_[ticket_id];
  ticket.start = std::move(start);
  ticket.start.set_request_id(ticket_id);
  ticket.events = std::move(events);
  ticket.model_name = model->model_name;
  ticket.deadline = now + options_.request_timeout;
  ticket.held_until = now + options_.held_timeout;
  ticket.endings_left = std::max(1, ticket.start.n());
  totals_[model->model_name].model_name = model->model_name;
  Place(ticket_id);
  return ticket_id;
}

void Dispatcher::Place(uint64_t ticket_id) {
  Ticket& ticket = tickets_.at(ticket_id);
  const std::string group = endpoints_.PickGroup(ticket.model_name, ticket.traits);
  if (group.empty()) {
    if (held_.count(ticket_id) > 0) return;
    if (held_count() >= options_.max_held) {
      return Fail(ticket_id, Unavailable("Too many requests are waiting for this model.", 5));
    }
    held_[ticket_id] = ticket.held_until;
    return;
  }
  held_.erase(ticket_id);
  ticket.group_name = group;
  v1::Start start = ticket.start;
  const absl::Duration left = ticket.deadline - clock_->Now();
  start.set_deadline_ms(
      static_cast<int32_t>(std::clamp<int64_t>(absl::ToInt64Milliseconds(left), 1, INT32_MAX)));
  start.mutable_resume_tokens()->Add(ticket.delivered_ids.begin(), ticket.delivered_ids.end());
  // The prompt's text came with the first delta.
  if (ticket.has_delivered) start.set_echo(false);
  endpoints_.Start(group, std::move(start));
}

void Dispatcher::PlaceHeld() {
  std::vector<uint64_t> ids;
  for (const auto& [ticket_id, until] : held_) ids.push_back(ticket_id);
  for (const uint64_t ticket_id : ids) {
    if (tickets_.count(ticket_id) > 0) Place(ticket_id);
  }
}

void Dispatcher::HandleDelta(const v1::Delta& delta) {
  const auto found = tickets_.find(delta.request_id());
  if (found == tickets_.end()) return;
  if (delta.has_error()) return HandleFailure(delta.request_id(), delta.error());
  const v1::Finish::Reason reason = delta.finish().reason();
  if (reason == v1::Finish::DEADLINE) return Fail(delta.request_id(), DeadlinePassed());
  if (reason == v1::Finish::CANCELLED) {
    return Fail(delta.request_id(), ServerError("The worker stopped this request."));
  }
  Ticket& ticket = found->second;
  ModelDemandFigures& totals = totals_[ticket.model_name];
  TicketDelta out;
  out.choice = ChoiceFrom(delta);
  if (delta.has_prompt()) {
    if (delta.prompt().seed() != 0 && !ticket.start.sampling().has_seed()) {
      ticket.start.mutable_sampling()->set_seed(delta.prompt().seed());
    }
    if (!std::exchange(ticket.reported_prompt, true)) {
      out.prompt_tokens = delta.prompt().prompt_tokens();
      out.cached_tokens = delta.prompt().cached_tokens();
      totals.prompt_tokens_total += out.prompt_tokens;
    }
  }
  totals.completion_tokens_total += delta.token_ids_size();
  if (ticket.endings_left == 1 && ticket.start.n() <= 1) {
    ticket.delivered_ids.insert(ticket.delivered_ids.end(), delta.token_ids().begin(),
                                delta.token_ids().end());
  }
  ticket.has_delivered = ticket.has_delivered || delta.token_ids_size() > 0 ||
                         !delta.text().empty() || delta.has_finish();
  // The handler may cancel the ticket, even from within.
  const auto on_delta = ticket.events.on_delta;
  if (delta.has_finish()) {
    out.completion_tokens = delta.finish().completion_tokens();
    if (--ticket.endings_left == 0) End(delta.request_id());
  }
  on_delta(std::move(out));
}

void Dispatcher::HandleFailure(uint64_t ticket_id, const v1::Failure& failure) {
  Ticket& ticket = tickets_.at(ticket_id);
  const bool draining = failure.code() == v1::Failure::DRAINING;
  const bool lost = failure.code() == v1::Failure::GROUP_LOST;
  if (draining) endpoints_.MarkDraining(ticket.group_name);
  if (lost) endpoints_.MarkLost(ticket.group_name);
  if (!draining && !lost && failure.code() != v1::Failure::OVERLOADED) {
    return Fail(ticket_id, ToHttp(failure));
  }
  const std::string group = ticket.group_name;
  ticket.traits.avoid.push_back(group);
  endpoints_.Forget(group, ticket_id);
  // An overloaded group is the answer unless another one can take the request.
  if (!draining && !lost && endpoints_.PickGroup(ticket.model_name, ticket.traits) == group) {
    return Fail(ticket_id, ToHttp(failure));
  }
  Move(ticket_id, ToHttp(failure));
}

void Dispatcher::HandleLost(const std::string& group_name, const std::set<uint64_t>& ticket_ids) {
  for (const uint64_t ticket_id : ticket_ids) {
    const auto found = tickets_.find(ticket_id);
    if (found == tickets_.end()) continue;
    found->second.traits.avoid.push_back(group_name);
    Move(ticket_id, ServerError("The worker that ran this request was lost, repeatedly."));
  }
}

void Dispatcher::Move(uint64_t ticket_id, ApiError otherwise) {
  Ticket& ticket = tickets_.at(ticket_id);
  if (ticket.has_delivered && ticket.start.n() > 1) {
    return Fail(ticket_id, ServerError("The worker was lost while it wrote several choices, which "
                                       "cannot be continued elsewhere."));
  }
  if (++ticket.moves > kMaxMoves) return Fail(ticket_id, std::move(otherwise));
  ticket.traits.last_chance = ticket.moves == kMaxMoves;
  ++moves_total_;
  LogInfo("dispatcher", "request moves",
          {{"request", ticket_id},
           {"from", ticket.group_name},
           {"tokens", ticket.delivered_ids.size()}});
  ticket.group_name.clear();
  ticket.held_until = clock_->Now() + options_.held_timeout;
  Place(ticket_id);
}

void Dispatcher::Fail(uint64_t ticket_id, ApiError error) {
  const auto on_error = tickets_.at(ticket_id).events.on_error;
  Cancel(ticket_id);
  on_error(std::move(error));
}

void Dispatcher::End(uint64_t ticket_id) {
  endpoints_.Forget(tickets_.at(ticket_id).group_name, ticket_id);
  tickets_.erase(ticket_id);
}

void Dispatcher::Cancel(uint64_t ticket_id) {
  const auto found = tickets_.find(ticket_id);
  if (found == tickets_.end()) return;
  held_.erase(ticket_id);
  endpoints_.Cancel(found->second.group_name, ticket_id);
  tickets_.erase(found);
}

void Dispatcher::Tick() {
  const absl::Time now = clock_->Now();
  endpoints_.Tick(now);
  std::vector<uint64_t> overdue, held_too_long;
  for (const auto& [ticket_id, until] : held_) {
    if (now >= until) held_too_long.push_back(ticket_id);
  }
  for (const auto& [ticket_id, ticket] : tickets_) {
    if (now >= ticket.deadline + kDeadlineGrace) overdue.push_back(ticket_id);
  }
  for (const uint64_t ticket_id : held_too_long) {
    if (tickets_.count(ticket_id) == 0) continue;
    Fail(ticket_id,
         Unavailable(absl::StrCat("No worker of the model '",
                                  tickets_.at(ticket_id).start.served_name(), "' is ready."),
                     10));
  }
  for (const uint64_t ticket_id : overdue) {
    if (tickets_.count(ticket_id) > 0) Fail(ticket_id, DeadlinePassed());
  }
}

void Dispatcher::Close() {
  while (!tickets_.empty()) {
    Fail(tickets_.begin()->first, Unavailable("This server is stopping.", 1));
  }
  endpoints_.Close();
}

void Dispatcher::AddDemand(std::map<std::string, ModelDemandFigures>& figures) const {
  for (const auto& [name, totals] : totals_) {
    ModelDemandFigures& sum = figures[name];
    sum.model_name = name;
    sum.prompt_tokens_total += totals.prompt_tokens_total;
    sum.completion_tokens_total += totals.completion_tokens_total;
  }
  for (const auto& [ticket_id, ticket] : tickets_) {
    ModelDemandFigures& sum = figures[ticket.model_name];
    ++(held_.count(ticket_id) > 0 ? sum.requests_held : sum.requests_running);
  }
}

}  // namespace rempart::router
