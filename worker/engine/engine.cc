// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"
#include "common/check.h"
#include "common/log.h"
#include "worker/engine/scheduler.h"

namespace rempart::worker {
namespace {

// Weight of the newest value in a moving average.
constexpr double kAverageWeight = 0.1;

double Average(double average, double value) {
  return average == 0 ? value : average + kAverageWeight * (value - average);
}

// Continuation i > 0 of a request draws from a stream of its own.
uint64_t SeedOf(uint64_t seed, int32_t index) {
  return seed + static_cast<uint64_t>(index) * 0xd1b54a32d192ed03u;
}

}  // namespace

// The part that the n continuations of one request share. Constant after Accept.
struct Engine::Request {
  SequenceRequest asked;
  int32_t max_new_tokens;
};

struct Engine::Sequence {
  Sequence(std::shared_ptr<const Request> r, int32_t i)
      : request(std::move(r)), index(i), text(request->asked.stop) {}

  const std::shared_ptr<const Request> request;
  const int32_t index;
  ScheduledSequence view;
  SamplingParams sampling;
  std::vector<int32_t> tokens;  // prompt, resumed, generated
  std::vector<BlockId> blocks;
  TokenCounts counts;
  TextStream text;
  bool reported_prompt = false;
  bool ended = false;
  int64_t delta_index = -1;  // into deltas_, in this step

  int32_t prompt_count() const { return static_cast<int32_t>(request->asked.prompt_ids.size()); }
  int32_t generated_count() const { return static_cast<int32_t>(tokens.size()) - prompt_count(); }
  void Append(int32_t token_id) {
    tokens.push_back(token_id);
    view.tokens_known = static_cast<int32_t>(tokens.size());
    if (!UsesPenalties(sampling)) return;
    ++counts.generated[token_id];
    counts.seen[token_id] = true;
  }
};

Engine::Engine(const EngineOptions& options, ModelRunner* model, const Vocabulary* vocabulary,
               const Clock* clock, Sink sink)
    : options_(options),
      model_(model),
      vocabulary_(vocabulary),
      clock_(clock),
      sink_(std::move(sink)),
      pool_(options.blocks_total) {
  CHECK_GT(options.context_length, 1);
  CHECK_GT(options.limits.max_sequences, 0);
  CHECK_GE(options.limits.max_step_tokens, options.limits.max_sequences);
  CHECK_LE(BlocksFor(options.context_length, options.limits.block_size), options.blocks_total);
  figures_.blocks_total = options.blocks_total;
  published_ = figures_;
}

Engine::~Engine() = default;

uint64_t Engine::Submit(SequenceRequest request) {
  MutexLock lock(&mu_);
  inbox_.push_back(std::move(request));
  return ++submissions_;
}

void Engine::Cancel(uint64_t request_id) {
  MutexLock lock(&mu_);
  cancels_.push_back(request_id);
}

void Engine::Drain() {
  MutexLock lock(&mu_);
  draining_ = true;
  published_.draining = true;
  woken_ = true;
}

void Engine::Wake() {
  MutexLock lock(&mu_);
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

void Engine::Accept(SequenceRequest request) {
  const auto refuse = [&](FailureCode code, std::string message, std::string field) {
    for (int32_t i = 0; i < request.n; ++i) Fail(request.request_id, i, {code, message, field});
  };
  const int64_t prompt_tokens = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t resumed = static_cast<int64_t>(request.resume_tokens.size());
  const int64_t room = options_.context_length - prompt_tokens;
  if (figures_.draining) {
    return refuse(FailureCode::kDraining, "this worker is draining: send the request elsewhere",
                  "");
  }
  if (prompt_tokens == 0) {
    return refuse(FailureCode::kInvalidArgument, "the prompt has no tokens", "prompt");
  }
  if (room < 1 || request.max_tokens > room) {
    const std::string completion = request.max_tokens > 0
                                       ? absl::StrCat(request.max_tokens, " for the completion")
                                       : std::string("at least 1 for the completion");
    return refuse(FailureCode::kContextOverflow,
                  absl::StrCat("This model's context holds ", options_.context_length,
                               " tokens, but the request needs ",
                               prompt_tokens + std::max(request.max_tokens, 1), ": ", prompt_tokens,
                               " in the prompt and ", completion,
                               ". Shorten the prompt or lower max_tokens."),
                  room < 1 ? "prompt" : "max_tokens");
  }
  if (static_cast<int64_t>(sequences_.size()) + request.n >
      options_.max_waiting + options_.limits.max_sequences) {
    return refuse(FailureCode::kOverloaded,
                  absl::StrCat("the worker's queue is full: ", sequences_.size(), " sequences"),
                  "");
  }
  auto shared = std::make_shared<Request>();
  shared->max_new_tokens = request.max_tokens > 0 ? request.max_tokens : static_cast<int32_t>(room);
  shared->asked = std::move(request);
  const SequenceRequest& asked = shared->asked;
  for (int32_t i = 0; i < asked.n; ++i) {
    auto sequence = std::make_unique<Sequence>(shared, i);
    sequence->view.sequence_id = sequence->view.arrival = ++last_sequence_id_;
    sequence->view.priority = asked.priority;
    sequence->sampling = asked.sampling;
    sequence->sampling.seed = SeedOf(asked.sampling.seed, i);
    sequence->tokens = asked.prompt_ids;
    sequence->view.tokens_known = static_cast<int32_t>(prompt_tokens);
    if (UsesPenalties(sequence->sampling)) {
      for (int32_t id : asked.prompt_ids) sequence->counts.seen[id] = true;
    }
    // Their text was sent by whoever generated them; the same bytes bring the stop conditions to
    // the state they had there.
    for (int32_t id : asked.resume_tokens) {
      sequence->Append(id);
      sequence->text.Append(vocabulary_->TokenBytes(id));
    }
    by_id_[sequence->view.sequence_id] = sequence.get();
    sequences_.push_back(std::move(sequence));
    if (resumed >= shared->max_new_tokens) End(*sequences_.back(), FinishReason::kLength);
  }
}

void Engine::ExpireDeadlines() {
  const absl::Time now = clock_->Now();
  for (auto& sequence : sequences_) {
    if (!sequence->ended && sequence->request->asked.deadline <= now) {
      End(*sequence, FinishReason::kDeadline);
    }
  }
}

StepPlan Engine::MakePlan() {
  EngineState state;
  state.limits = options_.limits;
  state.blocks_free = pool_.blocks_free();
  state.sequences.reserve(sequences_.size());
  for (const auto& sequence : sequences_) state.sequences.push_back(sequence->view);
  return Schedule(state);
}

void Engine::ApplyPlan(const StepPlan& plan) {
  for (uint64_t id : plan.preempted) {
    ReleaseBlocks(*by_id_.at(id));
    ++figures_.preemptions;
  }
  for (const PlannedSlice& slice : plan.slices) {
    Sequence& sequence = *by_id_.at(slice.sequence_id);
    CHECK(pool_.Allocate(slice.blocks_to_add, sequence.blocks)) << slice.blocks_to_add;
    sequence.view.blocks_held = static_cast<int32_t>(sequence.blocks.size());
    sequence.view.running = true;
  }
  for (auto& sequence : sequences_) {
    if (!sequence->view.running) ++sequence->view.steps_waited;
  }
}

void Engine::RunModel(const StepPlan& plan) {
  StepBatch batch;
  std::vector<Sequence*> wanting;
  int64_t prefill_tokens = 0;
  for (const PlannedSlice& slice : plan.slices) {
    Sequence& sequence = *by_id_.at(slice.sequence_id);
    const int32_t first = sequence.view.tokens_computed;
    const bool last = first + slice.token_count == sequence.view.tokens_known;
    batch.slices.push_back({absl::MakeConstSpan(sequence.tokens).subspan(first, slice.token_count),
                            first, sequence.blocks, last});
    if (last) wanting.push_back(&sequence);
    if (first < sequence.prompt_count()) prefill_tokens += slice.token_count;
  }
  const size_t vocabulary_size = static_cast<size_t>(model_->vocabulary_size());
  logits_.resize(std::max(logits_.size(), wanting.size() * vocabulary_size));
  const absl::Time start = clock_->Now();
  const absl::Status status =
      model_->Forward(batch, absl::MakeSpan(logits_).subspan(0, wanting.size() * vocabulary_size));
  for (const PlannedSlice& slice : plan.slices) {
    by_id_.at(slice.sequence_id)->view.tokens_computed += slice.token_count;
  }
  if (!status.ok()) {
    LogError("engine", "forward pass failed", {{"error", status.ToString()}});
    for (const PlannedSlice& slice : plan.slices) {
      Sequence& sequence = *by_id_.at(slice.sequence_id);
      Fail(sequence.request->asked.request_id, sequence.index,
           {FailureCode::kInternal, "the model failed to compute this step", ""});
      sequence.ended = true;
    }
    wanting.clear();
  }
  for (size_t i = 0; i < wanting.size(); ++i) {
    ConsumeLogits(*wanting[i],
                  absl::MakeSpan(logits_).subspan(i * vocabulary_size, vocabulary_size));
  }
  figures_.prompt_tokens += prefill_tokens;
  PublishStep(clock_->Now() - start, prefill_tokens);
}

void Engine::ConsumeLogits(Sequence& sequence, absl::Span<float> logits) {
  absl::StatusOr<Sampled> sampled =
      Sample(logits, sequence.sampling, sequence.counts, sequence.generated_count(), scratch_);
  if (!sampled.ok()) {
    Fail(sequence.request->asked.request_id, sequence.index,
         {FailureCode::kInternal, std::string(sampled.status().message()), ""});
    sequence.ended = true;
    return;
  }
  ++figures_.generated_tokens;
  SequenceDelta& delta = DeltaOf(sequence);
  if (sampled->logprob) delta.logprobs.push_back(*std::move(sampled->logprob));
  AppendToken(sequence, sampled->token_id, delta);
}

void Engine::AppendToken(Sequence& sequence, int32_t token_id, SequenceDelta& delta) {
  sequence.Append(token_id);
  delta.token_ids.push_back(token_id);
  if (vocabulary_->EndsGeneration(token_id) && !sequence.sampling.ignore_eos) {
    return End(sequence, FinishReason::kStop);
  }
  delta.text += sequence.text.Append(vocabulary_->TokenBytes(token_id));
  if (sequence.text.stopped()) {
    return End(sequence, FinishReason::kStop, sequence.text.matched_stop());
  }
  if (sequence.generated_count() >= sequence.request->max_new_tokens) {
    End(sequence, FinishReason::kLength);
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

void Engine::ReleaseBlocks(Sequence& sequence) {
  for (BlockId block : sequence.blocks) pool_.Release(block);
  sequence.blocks.clear();
  sequence.view.blocks_held = sequence.view.tokens_computed = 0;
  sequence.view.running = false;
}

void Engine::RemoveEnded() {
  std::erase_if(sequences_, [this](const std::unique_ptr<Sequence>& sequence) {
    if (!sequence->ended) return false;
    ReleaseBlocks(*sequence);
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
    delta.prompt = PromptFacts{sequence.prompt_count(), std::nullopt};
    if (asked.seed_was_drawn) delta.prompt->seed = asked.sampling.seed;
    delta.text = asked.echo_text;
  }
  return delta;
}

void Engine::PublishStep(absl::Duration step_time, int64_t prefill_tokens) {
  ++figures_.steps;
  figures_.step_ms = Average(figures_.step_ms, absl::ToDoubleMilliseconds(step_time));
  if (prefill_tokens > 0 && step_time > absl::ZeroDuration()) {
    figures_.prefill_tokens_per_second =
        Average(figures_.prefill_tokens_per_second,
                static_cast<double>(prefill_tokens) / absl::ToDoubleSeconds(step_time));
  }
  figures_.last_step = clock_->Now();
}

bool Engine::Step() {
  DrainInbox();
  ExpireDeadlines();
  RemoveEnded();
  const StepPlan plan = MakePlan();
  if (!plan.slices.empty()) {
    ApplyPlan(plan);
    RunModel(plan);
    RemoveEnded();
  }
  figures_.running = figures_.waiting = 0;
  figures_.queued_prefill_tokens = 0;
  for (auto& sequence : sequences_) {
    sequence->delta_index = -1;
    ++(sequence->view.running ? figures_.running : figures_.waiting);
    const int32_t left = sequence->view.tokens_known - sequence->view.tokens_computed;
    if (left > 1) figures_.queued_prefill_tokens += left;
  }
  figures_.blocks_used = pool_.blocks_total() - pool_.blocks_free();
  figures_.busy_since = sequences_.empty() ? absl::InfiniteFuture() : figures_.last_step;
  {
    MutexLock lock(&mu_);
    figures_.draining = draining_;
    published_ = figures_;
  }
  const bool did_something = !plan.slices.empty() || !deltas_.empty();
  if (did_something) sink_({std::exchange(deltas_, {}), figures_});
  return did_something;
}

}  // namespace rempart::worker
