// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"
#include "common/check.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/engine/engine_sequence.h"
#include "worker/engine/scheduler.h"

namespace rempart::worker {
namespace {

// Continuation i > 0 of a request draws from a stream of its own.
uint64_t SeedOf(uint64_t seed, int32_t index) {
  return seed + static_cast<uint64_t>(index) * 0xd1b54a32d192ed03u;
}

// Of each continuation its own, after what was generated elsewhere; null where there is none.
absl::StatusOr<std::vector<std::unique_ptr<TokenConstraint>>> ConstraintsOf(
    const SequenceRequest& request) {
  std::vector<std::unique_ptr<TokenConstraint>> constraints(static_cast<size_t>(request.n));
  if (request.constraint == nullptr) return constraints;
  const TokenConstraint* original = request.constraint.get();
  for (std::unique_ptr<TokenConstraint>& constraint : constraints) {
    ASSIGN_OR_RETURN(constraint, original->Copy());
    CHECK(constraint != nullptr);
    if (original != request.constraint.get()) continue;
    for (const int32_t id : request.resume_tokens) RETURN_IF_ERROR(constraint->Accept(id));
    original = constraint.get();
  }
  return constraints;
}

}  // namespace

Engine::Engine(const EngineOptions& options, ModelRunner* model, const Vocabulary* vocabulary,
               const Clock* clock, Sink sink)
    : options_(options),
      model_(model),
      pipeline_(model->pipeline()),
      vocabulary_(vocabulary),
      clock_(clock),
      sink_(std::move(sink)),
      ledger_({options.blocks_total, options.limits.block_size, options.prefix_cache}),
      pace_(options.max_step_time) {
  CHECK_GT(options.context_length, 1);
  CHECK_GT(options.limits.max_sequences, 0);
  CHECK_GE(options.limits.max_step_tokens, options.limits.max_sequences);
  CHECK_LE(BlocksFor(options.context_length, options.limits.block_size), options.blocks_total);
  figures_.blocks_total = options.blocks_total;
  published_ = figures_;
  // Addresses alone. Growing into other memory would hold both for a moment, which nobody counted.
  logits_.reserve(static_cast<size_t>(options.limits.max_sequences) *
                  static_cast<size_t>(model->vocabulary_size()));
}

Engine::~Engine() {
  // The step must not outlive what it writes to. Nobody is told any more.
  if (running_.has_value()) FinishStep(*running_);
}

uint64_t Engine::Submit(SequenceRequest request) {
  MutexLock lock(&mu_);
  inbox_.push_back(std::move(request));
  return ++submissions_;
}

void Engine::Cancel(uint64_t request_id) {
  MutexLock lock(&mu_);
  cancels_.push_back(request_id);
}

void Engine::Drain(absl::Time deadline) {
  MutexLock lock(&mu_);
  draining_ = true;
  drain_deadline_ = std::min(drain_deadline_, deadline);
  published_.draining = true;
  woken_ = true;
}

void Engine::Resume() {
  MutexLock lock(&mu_);
  draining_ = false;
  drain_deadline_ = absl::InfiniteFuture();
  published_.draining = false;
  woken_ = true;
}

void Engine::Wake() {
  MutexLock lock(&mu_);
  woken_ = true;
}

void Engine::SetMemoryShort(std::string reason) {
  MutexLock lock(&mu_);
  memory_short_ = std::move(reason);
  woken_ = true;
}

void Engine::WaitForWork(absl::Time until) {
  const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return woken_ || !inbox_.empty() || !cancels_.empty();
  };
  MutexLock lock(&mu_);
  mu_.AwaitWithDeadline(absl::Condition(&has_work), until);
  woken_ = false;
}

EngineLoad Engine::load() const {
  MutexLock lock(&mu_);
  return published_;
}

void Engine::DrainInbox() {
  std::vector<SequenceRequest> requests;
  std::vector<uint64_t> cancels;
  {
    MutexLock lock(&mu_);
    requests.swap(inbox_);
    cancels.swap(cancels_);
    figures_.submissions_seen = submissions_;
    figures_.draining = draining_;
    figures_.memory_short = !memory_short_.empty();
    memory_reason_ = memory_short_;
    unfinished_fail_at_ = drain_deadline_;
    if (published_.busy_since == absl::InfiniteFuture() &&
        (!requests.empty() || !sequences_.empty())) {
      published_.busy_since = clock_->Now();
    }
  }
  for (SequenceRequest& request : requests) Accept(std::move(request));
  for (uint64_t request_id : cancels) {
    for (auto& sequence : sequences_) {
      if (sequence->request->asked.request_id == request_id && !sequence->ended) {
        End(*sequence, FinishReason::kCancelled);
      }
    }
  }
}

// Why the request cannot be taken, if so.
std::optional<Failure> Engine::ReasonToRefuse(const SequenceRequest& request) {
  const int64_t prompt_tokens = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t room = options_.context_length - prompt_tokens;
  if (figures_.draining) {
    return Failure{FailureCode::kDraining, "this worker is draining: send the request elsewhere",
                   ""};
  }
  if (figures_.memory_short) {
    ++figures_.memory_refusals;
    return Failure{FailureCode::kOverloaded,
                   absl::StrCat("the worker has reached its memory limit (", memory_reason_,
                                "): try again later"),
                   ""};
  }
  if (prompt_tokens == 0) {
    return Failure{FailureCode::kInvalidArgument, "the prompt has no tokens", "prompt"};
  }
  if (room < 1 || request.max_tokens > room) {
    const std::string completion = request.max_tokens > 0
                                       ? absl::StrCat(request.max_tokens, " for the completion")
                                       : std::string("at least 1 for the completion");
    return Failure{FailureCode::kContextOverflow,
                   absl::StrCat("This model's context holds ", options_.context_length,
                                " tokens, but the request needs ",
                                prompt_tokens + std::max(request.max_tokens, 1), ": ",
                                prompt_tokens, " in the prompt and ", completion,
                                ". Shorten the prompt or lower max_tokens."),
                   room < 1 ? "prompt" : "max_tokens"};
  }
  if (static_cast<int64_t>(sequences_.size()) + request.n >
      options_.max_waiting + options_.limits.max_sequences) {
    return Failure{FailureCode::kOverloaded,
                   absl::StrCat("the worker's queue is full: ", sequences_.size(), " sequences"),
                   ""};
  }
  return std::nullopt;
}

void Engine::Accept(SequenceRequest request) {
  if (const std::optional<Failure> refusal = ReasonToRefuse(request)) {
    for (int32_t i = 0; i < request.n; ++i) Fail(request.request_id, i, *refusal);
    return;
  }
  auto constraints = ConstraintsOf(request);
  if (!constraints.ok()) {
    const Failure failure = FailureOf(constraints.status());
    for (int32_t i = 0; i < request.n; ++i) Fail(request.request_id, i, failure);
    return;
  }
  request.constraint = nullptr;  // it has served
  auto shared = std::make_shared<Request>();
  shared->max_new_tokens =
      request.max_tokens > 0
          ? request.max_tokens
          : options_.context_length - static_cast<int32_t>(request.prompt_ids.size());
  shared->asked = std::move(request);
  Sequence* leader = nullptr;
  for (int32_t i = 0; i < shared->asked.n; ++i) {
    Sequence& sequence = AddSequence(shared, i);
    sequence.constraint = std::move((*constraints)[static_cast<size_t>(i)]);
    if (leader == nullptr) {
      leader = &sequence;
    } else {
      sequence.awaits_fork = true;
      leader->forks.push_back(&sequence);
    }
    if (sequence.is_complete()) {
      End(sequence, FinishReason::kStop);
    } else if (sequence.may_generate() < 1) {
      End(sequence, FinishReason::kLength);
    }
  }
}

Engine::Sequence& Engine::AddSequence(const std::shared_ptr<const Request>& request,
                                      int32_t index) {
  const SequenceRequest& asked = request->asked;
  auto sequence = std::make_unique<Sequence>(request, index);
  sequence->view.sequence_id = sequence->view.arrival = ++last_sequence_id_;
  sequence->view.priority = asked.priority;
  sequence->sampling = asked.sampling;
  sequence->sampling.seed = SeedOf(asked.sampling.seed, index);
  MergeBiases(sequence->sampling);
  sequence->tokens = asked.prompt_ids;
  sequence->view.tokens_known = static_cast<int32_t>(asked.prompt_ids.size());
  // The length goes first, so that no two pairs spell the same salt.
  sequence->page.salt =
      SaltKey(absl::StrCat(asked.client.size(), ":", asked.client, asked.cache_salt));
  sequence->client = shares_.Join(asked.client);
  if (sequence->sampling.has_penalties()) {
    for (int32_t id : asked.prompt_ids) sequence->counts.AddPrompt(id);
  }
  // Their text was sent by whoever generated them; the same bytes bring the stop conditions to the
  // state they had there.
  for (int32_t id : asked.resume_tokens) {
    sequence->Append(id);
    sequence->text.Append(vocabulary_->TokenBytes(id));
  }
  by_id_[sequence->view.sequence_id] = sequence.get();
  sequences_.push_back(std::move(sequence));
  return *sequences_.back();
}

void Engine::ExpireDeadlines() {
  const absl::Time now = clock_->Now();
  for (auto& sequence : sequences_) {
    if (!sequence->ended && sequence->request->asked.deadline <= now) {
      End(*sequence, FinishReason::kDeadline);
    } else if (!sequence->ended && unfinished_fail_at_ <= now) {
      FailSequence(*sequence, {FailureCode::kDraining,
                               "this worker has stopped: send the request elsewhere", ""});
    }
  }
}

void Engine::End(Sequence& sequence, FinishReason reason, std::string matched_stop) {
  SequenceDelta& delta = DeltaOf(sequence);
  delta.text += sequence.text.Flush();
  delta.finish = Finish{reason, std::move(matched_stop), sequence.generated_count()};
  sequence.ended = true;
  ++figures_.requests_finished;
}

void Engine::Fail(uint64_t request_id, int32_t index, Failure failure) {
  SequenceDelta delta;
  delta.request_id = request_id;
  delta.index = index;
  delta.failure = std::move(failure);
  deltas_.push_back(std::move(delta));
  ++figures_.requests_failed;
}

void Engine::FailSequence(Sequence& sequence, Failure failure) {
  Fail(sequence.request->asked.request_id, sequence.index, std::move(failure));
  sequence.ended = true;
}

// Those that wait to be forked from it fail with it.
void Engine::FailWithForks(Sequence& sequence, const Failure& failure) {
  FailSequence(sequence, failure);
  for (Sequence* fork : std::exchange(sequence.forks, {})) FailSequence(*fork, failure);
}

void Engine::ReleaseBlocks(Sequence& sequence) {
  ledger_.Release(sequence.page);
  sequence.view.tokens_computed = 0;
  sequence.view.running = false;
}

void Engine::RemoveEnded() {
  std::erase_if(sequences_, [this](const std::unique_ptr<Sequence>& sequence) {
    if (!sequence->ended) return false;
    ReleaseBlocks(*sequence);
    shares_.Leave(sequence->client);
    by_id_.erase(sequence->view.sequence_id);
    return true;
  });
}

// The delta of this step for the sequence; the first one of a sequence carries the prompt's facts.
SequenceDelta& Engine::DeltaOf(Sequence& sequence) {
  if (sequence.delta_index < 0) {
    sequence.delta_index = static_cast<int64_t>(deltas_.size());
    SequenceDelta delta;
    delta.request_id = sequence.request->asked.request_id;
    delta.index = sequence.index;
    deltas_.push_back(std::move(delta));
  }
  SequenceDelta& delta = deltas_[sequence.delta_index];
  if (!sequence.reported_prompt) {
    sequence.reported_prompt = true;
    const SequenceRequest& asked = sequence.request->asked;
    delta.prompt = PromptFacts{sequence.prompt_count(), sequence.prompt_cached, std::nullopt};
    if (asked.seed_was_drawn) delta.prompt->seed = asked.sampling.seed;
    delta.text = asked.echo_text;
  }
  return delta;
}

void Engine::CountSequences() {
  figures_.running = figures_.waiting = 0;
  figures_.queued_prefill_tokens = 0;
  for (auto& sequence : sequences_) {
    sequence->delta_index = -1;
    ++(sequence->view.running ? figures_.running : figures_.waiting);
    if (sequence->awaits_fork) continue;
    const int32_t left = sequence->view.tokens_known - sequence->view.tokens_computed;
    if (left > 1) figures_.queued_prefill_tokens += left;
  }
  figures_.blocks_used = ledger_.pool().blocks_held();
  figures_.blocks_cached = ledger_.pool().blocks_cached();
  figures_.prefix_evictions = ledger_.evictions();
  figures_.busy_since = sequences_.empty() ? absl::InfiniteFuture() : figures_.last_step;
}

bool Engine::Step() {
  DrainInbox();
  ExpireDeadlines();
  RemoveEnded();
  bool did_something = running_.has_value();
  if (!running_.has_value()) {
    const StepPlan plan = MakePlan();
    did_something = !plan.slices.empty();
    if (did_something) {
      running_ = Begin(plan);
    } else if (figures_.memory_short && !sequences_.empty()) {
      ShedYoungest();
    }
  }
  if (running_.has_value()) {
    std::optional<RunningStep> next;
    if (running_->draws_all) next = BeginAhead();
    FinishStep(*running_);
    running_ = std::move(next);
  }
  RemoveEnded();
  CountSequences();
  {
    MutexLock lock(&mu_);
    figures_.draining = draining_;
    published_ = figures_;
  }
  did_something |= !deltas_.empty();
  if (did_something) sink_({std::exchange(deltas_, {}), figures_});
  return did_something;
}

}  // namespace rempart::worker
