// SPDX-License-Identifier: Apache-2.0
#include "worker/api/attach_service.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/check.h"
#include "common/log.h"
#include "common/tls/tls.h"
#include "worker/api/attach_stream.h"
#include "worker/api/frame_writer.h"

namespace rempart::worker {
namespace {

constexpr absl::Duration kBeat = absl::Milliseconds(50);
// Between heartbeats of an idle worker whose load does not change.
constexpr absl::Duration kIdleBeat = absl::Seconds(1);

// Refuses a call before a stream exists.
class RefusedStream : public grpc::ServerBidiReactor<v1::ToWorker, v1::FromWorker> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace

AttachService::AttachService(AttachOptions options, const Clock* clock)
    : options_(std::move(options)),
      clock_(clock),
      seeds_(std::random_device{}()),
      heartbeat_([this](std::stop_token stop) { RunHeartbeat(stop); }) {}

AttachService::~AttachService() {
  MutexLock lock(&mu_);
  CHECK(streams_.empty()) << "the server is shut down first";
}

void AttachService::Open(Engine* engine, const PromptEncoder* encoder,
                         const Vocabulary* vocabulary) {
  MutexLock lock(&mu_);
  engine_ = engine;
  encoder_ = encoder;
  vocabulary_ = vocabulary;
  context_length_ = engine->options().context_length;
  for (auto& [stream, entry] : streams_) SendStep(entry, {}, engine_->load());
}

void AttachService::LoseGroup() {
  MutexLock lock(&mu_);
  if (engine_ == nullptr) return;
  const EngineLoad load = engine_->load();
  engine_ = nullptr;
  const Failure failure = {FailureCode::kGroupLost, "the group that ran this request was lost", ""};
  for (auto& [stream, entry] : streams_) {
    v1::Step step;
    for (const auto& [request_id, engine_id] : entry.engine_ids) {
      v1::Delta* delta = step.add_deltas();
      delta->set_request_id(request_id);
      WriteFailure(failure, delta->mutable_error());
    }
    entry.engine_ids.clear();
    entry.starts_seen += entry.submissions.size();
    entry.submissions.clear();
    SendStep(entry, std::move(step), load);
  }
  routes_.clear();
}

void AttachService::SetEpoch(int32_t epoch) {
  MutexLock lock(&mu_);
  epoch_ = epoch;
}

grpc::ServerBidiReactor<v1::ToWorker, v1::FromWorker>* AttachService::Attach(
    grpc::CallbackServerContext* context) {
  if (!options_.required_caller.empty()) {
    const absl::Status caller = CheckCallerName(*context, options_.required_caller);
    if (!caller.ok()) {
      LogWarning("attach", "caller refused", {{"reason", caller.message()}});
      return new RefusedStream(grpc::Status(static_cast<grpc::StatusCode>(caller.code()),
                                            std::string(caller.message())));
    }
  }
  MutexLock lock(&mu_);
  if (engine_ == nullptr) {
    return new RefusedStream(
        grpc::Status(grpc::StatusCode::UNAVAILABLE, "the model is still loading"));
  }
  auto stream = std::make_shared<AttachStream>(this, context);
  Entry& entry = streams_[stream.get()];
  entry.stream = stream;
  entry.last_sent = clock_->Now();
  stream->Begin();
  return stream.get();
}

v1::FromWorker AttachService::WelcomeFrame() const {
  v1::FromWorker frame;
  v1::Welcome* welcome = frame.mutable_welcome();
  MutexLock lock(&mu_);
  welcome->set_protocol(kAttachProtocol);
  welcome->set_group_name(options_.group_name);
  welcome->set_epoch(epoch_);
  for (const std::string& name : options_.served_names) welcome->add_served_names(name);
  welcome->set_context_length(context_length_);
  welcome->set_vocabulary_size(encoder_->vocabulary_size());
  for (const char* feature : {"chat", "completions", "logprobs", "seed", "n", "resume"}) {
    welcome->add_features(feature);
  }
  return frame;
}

bool AttachService::HandleStart(AttachStream* stream, const v1::Start& start) {
  const PromptEncoder* encoder = nullptr;
  const Vocabulary* vocabulary = nullptr;
  uint64_t drawn_seed = 0;
  {
    MutexLock lock(&mu_);
    encoder = encoder_;
    vocabulary = vocabulary_;
    drawn_seed = seeds_() >> 1;  // positive as an int64
  }
  auto read = ReadStart(start, *encoder, *vocabulary, clock_->Now(), drawn_seed);
  MutexLock lock(&mu_);
  const auto found = streams_.find(stream);
  if (found == streams_.end()) return true;  // closed meanwhile
  Entry& entry = found->second;
  if (entry.engine_ids.count(start.request_id()) > 0) return false;
  if (engine_ == nullptr) {
    read = Failure{FailureCode::kGroupLost, "the group is forming again", ""};
  }
  if (absl::holds_alternative<SequenceRequest>(read) &&
      entry.engine_ids.size() >= kMaxRequestsPerStream) {
    read = Failure{FailureCode::kOverloaded, "this stream has too many requests", ""};
  }
  if (const Failure* failure = absl::get_if<Failure>(&read)) {
    ++entry.starts_seen;
    v1::Step step;
    const int32_t continuations = start.n() >= 1 && start.n() <= 128 ? start.n() : 1;
    for (int32_t index = 0; index < continuations; ++index) {
      v1::Delta* delta = step.add_deltas();
      delta->set_request_id(start.request_id());
      delta->set_index(index);
      WriteFailure(*failure, delta->mutable_error());
    }
    SendStep(entry, std::move(step), engine_ == nullptr ? EngineLoad{} : engine_->load());
    return true;
  }
  SequenceRequest request = absl::get<SequenceRequest>(std::move(read));
  request.request_id = ++last_engine_id_;
  routes_[request.request_id] = {stream, start.request_id(), request.n};
  entry.engine_ids[start.request_id()] = request.request_id;
  entry.submissions.push_back(engine_->Submit(std::move(request)));
  return true;
}

void AttachService::HandleCancel(AttachStream* stream, uint64_t request_id) {
  MutexLock lock(&mu_);
  const auto entry = streams_.find(stream);
  if (entry == streams_.end()) return;
  const auto found = entry->second.engine_ids.find(request_id);
  if (found != entry->second.engine_ids.end() && engine_ != nullptr) {
    engine_->Cancel(found->second);
  }
}

void AttachService::Forget(AttachStream* stream) {
  MutexLock lock(&mu_);
  const auto found = streams_.find(stream);
  if (found == streams_.end()) return;
  for (const auto& [request_id, engine_id] : found->second.engine_ids) {
    if (engine_ != nullptr) engine_->Cancel(engine_id);
    routes_.erase(engine_id);
  }
  found->second.engine_ids.clear();
}

void AttachService::Remove(AttachStream* stream) {
  std::shared_ptr<AttachStream> last;  // destroyed after the lock is released
  MutexLock lock(&mu_);
  const auto found = streams_.find(stream);
  if (found == streams_.end()) return;
  last = std::move(found->second.stream);
  streams_.erase(found);
}

void AttachService::SendStep(Entry& entry, v1::Step step, const EngineLoad& load) {
  while (!entry.submissions.empty() && entry.submissions.front() <= load.submissions_seen) {
    entry.submissions.pop_front();
    ++entry.starts_seen;
  }
  WriteLoad(load, step.mutable_load());
  step.mutable_load()->set_starts_seen(entry.starts_seen);
  if (engine_ == nullptr) step.mutable_load()->set_state(v1::Load::LOADING);
  entry.sent_since_beat = true;
  entry.last_sent = clock_->Now();
  entry.stream->SendStep(std::move(step));
}

void AttachService::Publish(const StepResult& result) {
  MutexLock lock(&mu_);
  std::map<AttachStream*, v1::Step> steps;
  for (const SequenceDelta& delta : result.deltas) {
    const auto found = routes_.find(delta.request_id);
    if (found == routes_.end()) continue;  // its stream is gone
    Route& route = found->second;
    WriteDelta(delta, route.request_id, *vocabulary_, steps[route.stream].add_deltas());
    if ((delta.finish || delta.failure) && --route.endings_left == 0) {
      streams_.at(route.stream).engine_ids.erase(route.request_id);
      routes_.erase(found);
    }
  }
  for (auto& [stream, step] : steps) {
    SendStep(streams_.at(stream), std::move(step), result.load);
  }
}

void AttachService::RunHeartbeat(std::stop_token stop) {
  EngineLoad last;
  while (!stop.stop_requested()) {
    absl::SleepFor(kBeat);
    MutexLock lock(&mu_);
    const EngineLoad load = engine_ == nullptr ? EngineLoad{} : engine_->load();
    const bool changed = load.running != last.running || load.waiting != last.waiting ||
                         load.draining != last.draining || load.blocks_used != last.blocks_used;
    last = load;
    const absl::Time now = clock_->Now();
    for (auto& [stream, entry] : streams_) {
      const bool due = changed || load.running > 0 || now - entry.last_sent >= kIdleBeat;
      if (!entry.sent_since_beat && due) SendStep(entry, {}, load);
      entry.sent_since_beat = false;
    }
  }
}

}  // namespace rempart::worker
