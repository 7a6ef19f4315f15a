// SPDX-License-Identifier: Apache-2.0
// The engine: drains its inbox, asks Schedule, runs one forward pass, samples, publishes; again.
// Nothing else touches scheduling state. On a model with a pipeline it begins the next step before
// it waits for the one that runs, where that does not depend on what this one draws.
//
// Threads: Submit, Cancel, Drain, Resume, Wake, SetMemoryShort and load() from any thread; Step()
// from one thread only (EngineThread in production, the test itself in tests), which also calls the
// sink and the model. Invariants:
//  1. Every submitted request ends with exactly one finish or failure per index.
//  2. A request that is cancelled or past its deadline holds no block after the next step.
//  3. The sink is called at most once per step, with everything that the step produced.
//  4. What a request gets is the same with and without steps that are begun ahead. These preempt
//     nobody; what they compute for a sequence that turns out to have ended is thrown away.
// It does not tokenise, render templates or know about streams: worker/api does.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "worker/cache/block_ledger.h"
#include "worker/engine/client_shares.h"
#include "worker/engine/model_runner.h"
#include "worker/engine/sampler.h"
#include "worker/engine/sequence.h"
#include "worker/engine/step_pace.h"
#include "worker/engine/step_plan.h"
#include "worker/engine/stop_conditions.h"

namespace rempart::worker {

struct EngineOptions {
  SchedulerLimits limits;
  int32_t context_length = 0;  // tokens of prompt and completion; must fit the pool
  int32_t blocks_total = 0;
  int32_t max_waiting = 1024;  // sequences; beyond it requests are refused as overload
  bool prefix_cache = true;
  // What a step with decodes is to take at most; prefill is cut to fit. Zero: no bound.
  absl::Duration max_step_time = absl::ZeroDuration();
};

// What /metrics and Load report; counters grow for the life of the process.
struct EngineLoad {
  bool draining = false;
  bool memory_short = false;
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t queued_prefill_tokens = 0;
  int32_t blocks_used = 0;    // held by sequences
  int32_t blocks_cached = 0;  // held by nobody, but with content for the prefix cache
  int32_t blocks_total = 0;
  double prefill_tokens_per_second = 0;  // moving average
  double step_ms = 0;                    // moving average
  int32_t prefill_budget = 0;            // tokens of prefill beside decodes
  uint64_t steps = 0;
  uint64_t prompt_tokens = 0;  // computed by forward passes, recomputation included
  uint64_t generated_tokens = 0;
  uint64_t preemptions = 0;
  // Each prompt is counted once, at its first token.
  uint64_t prefix_lookups = 0;
  uint64_t prefix_queried_tokens = 0;
  uint64_t prefix_hit_tokens = 0;
  uint64_t prefix_evictions = 0;  // blocks
  uint64_t forks = 0;             // continuations that went on with another's blocks
  uint64_t blocks_copied = 0;
  uint64_t memory_refusals = 0;
  uint64_t requests_finished = 0;
  uint64_t requests_failed = 0;
  // Submissions (in order of the numbers that Submit returned) that the figures above count.
  uint64_t submissions_seen = 0;
  absl::Time last_step = absl::InfinitePast();  // end of the last forward pass
  // Since when there has been work without a finished step; InfiniteFuture when idle.
  absl::Time busy_since = absl::InfiniteFuture();
};

struct StepResult {
  std::vector<SequenceDelta> deltas;
  EngineLoad load;
};

class Engine {
 public:
  using Sink = std::function<void(StepResult)>;

  // The model, vocabulary and clock outlive the engine.
  Engine(const EngineOptions& options, ModelRunner* model, const Vocabulary* vocabulary,
         const Clock* clock, Sink sink);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Hands a request over; its outcome comes through the sink. Returns the submission's number.
  uint64_t Submit(SequenceRequest request);
  // Ends what is left of the request with kCancelled; unknown ids are ignored.
  void Cancel(uint64_t request_id);
  // From now on new requests fail with kDraining; what runs, ends. What has not ended at the
  // deadline fails with kDraining too. Of several deadlines the earliest holds.
  void Drain(absl::Time deadline = absl::InfiniteFuture());
  // Takes requests again; no deadline holds any more.
  void Resume();

  // One turn. False when there was nothing to do.
  bool Step();
  // Blocks until Step has something to do, or `until`, or Wake().
  void WaitForWork(absl::Time until);
  void Wake();
  // Memory is short, for the reason given: from now on requests are refused, and the KV pool takes
  // no memory that it does not have. An empty reason ends this.
  void SetMemoryShort(std::string reason);

  EngineLoad load() const;
  const EngineOptions& options() const { return options_; }

 private:
  struct Request;
  struct Sequence;
  // A step that was begun. Its sequences may have gone before it ends.
  struct RunningStep {
    struct Part {
      uint64_t sequence_id = 0;
      int32_t computed = 0;  // tokens in its blocks after the step
      bool wants_token = false;
    };
    std::vector<Part> parts;
    std::vector<uint64_t> labels;  // of the blocks that they began to fill
    int32_t wanting = 0;           // of the parts
    int32_t decodes = 0;
    int32_t prefill_tokens = 0;
    bool draws_all = false;  // the model draws what is wanted
    absl::Time begun;
  };

  void DrainInbox();
  std::optional<Failure> ReasonToRefuse(const SequenceRequest& request);
  void Accept(SequenceRequest request);
  Sequence& AddSequence(const std::shared_ptr<const Request>& request, int32_t index);
  void ExpireDeadlines();
  void RefreshView(Sequence& sequence);
  StepPlan MakePlan();
  void ApplyPlan(const StepPlan& plan, StepBatch& batch);
  std::optional<RunningStep> BeginAhead();
  std::optional<RunningStep> Begin(const StepPlan& plan);
  absl::Status StartModel(const StepBatch& batch, RunningStep& step);
  void Advance(const StepBatch& batch, RunningStep& step);
  void FinishStep(const RunningStep& step);
  void FailStep(const RunningStep& step, const absl::Status& status);
  Sequence* Find(uint64_t sequence_id);
  void CountPrompt(Sequence& sequence);
  void FillBatch(const StepPlan& plan, StepBatch& batch, RunningStep& step);
  bool FillMask(Sequence& sequence);
  void Draw(Sequence& sequence, absl::Span<float> logits, const DrawnToken& drawn);
  void ForkFrom(Sequence& leader, absl::Span<const float> logits);
  void Consume(Sequence& sequence, absl::StatusOr<Sampled> sampled);
  void AppendToken(Sequence& sequence, int32_t token_id, SequenceDelta& delta);
  void ShedYoungest();
  void End(Sequence& sequence, FinishReason reason, std::string matched_stop = "");
  void Fail(uint64_t request_id, int32_t index, Failure failure);
  void FailSequence(Sequence& sequence, Failure failure);
  void FailWithForks(Sequence& sequence, const Failure& failure);
  void ReleaseBlocks(Sequence& sequence);
  void RemoveEnded();
  SequenceDelta& DeltaOf(Sequence& sequence);
  void CountSequences();

  // Constant after construction.
  const EngineOptions options_;
  ModelRunner* const model_;
  StepPipeline* const pipeline_;  // of the model, or null
  const Vocabulary* const vocabulary_;
  const Clock* const clock_;
  const Sink sink_;

  // Owned by the thread that calls Step.
  BlockLedger ledger_;
  ClientShares shares_;
  StepPace pace_;
  std::vector<std::unique_ptr<Sequence>> sequences_;  // in order of arrival
  absl::flat_hash_map<uint64_t, Sequence*> by_id_;
  uint64_t last_sequence_id_ = 0;
  std::optional<RunningStep> running_;    // between two turns, with a pipeline alone
  std::vector<float> logits_;             // [max_sequences, vocabulary_size]
  std::vector<float> fork_logits_;        // [vocabulary_size]
  std::vector<SliceSampling> samplings_;  // of the step's slices that want logits
  std::vector<DrawnToken> drawn_;
  SamplerScratch scratch_;
  std::vector<SequenceDelta> deltas_;
  EngineLoad figures_;
  std::string memory_reason_;
  absl::Time unfinished_fail_at_ = absl::InfiniteFuture();  // while draining

  mutable Mutex mu_;
  std::vector<SequenceRequest> inbox_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t> cancels_ ABSL_GUARDED_BY(mu_);
  uint64_t submissions_ ABSL_GUARDED_BY(mu_) = 0;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time drain_deadline_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  std::string memory_short_ ABSL_GUARDED_BY(mu_);
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  EngineLoad published_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::worker
