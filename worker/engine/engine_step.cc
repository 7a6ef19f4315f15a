// SPDX-License-Identifier: Apache-2.0
// The part of the engine that plans a step, carries it out and turns logits into tokens.
#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/log.h"
#include "worker/engine/engine_sequence.h"
#include "worker/engine/scheduler.h"

namespace rempart::worker {
namespace {

// Weight of the newest value in a moving average.
constexpr double kAverageWeight = 0.1;

double Average(double average, double value) {
  return average == 0 ? value : average + kAverageWeight * (value - average);
}

}  // namespace

// What the scheduler sees of a sequence, with the cache as it is now.
void Engine::RefreshView(Sequence& sequence) {
  ScheduledSequence& view = sequence.view;
  SequenceBlocks& page = sequence.page;
  int32_t held = view.tokens_computed;
  if (!view.running) {
    ledger_.Match(page, sequence.tokens);
    held = static_cast<int32_t>(page.match.size()) * options_.limits.block_size;
  } else if (view.tokens_known - view.tokens_computed > 1) {
    held = view.tokens_computed = ledger_.CatchUp(page, sequence.tokens, held);
  }
  view.blocks = view.running ? page.blocks : page.match;
  view.copy_source = page.copy_source;
  view.next_block_label = ledger_.NextBlockLabel(page, sequence.tokens, held);
  view.client = sequence.client->index;
}

StepPlan Engine::MakePlan() {
  if (figures_.memory_short) {
    ledger_.HoldBackFresh();
  } else {
    ledger_.GiveOutFresh();
  }
  EngineState state;
  state.limits = options_.limits;
  figures_.prefill_budget = pace_.PrefillTokensBesideDecodes(options_.limits.max_step_tokens);
  state.prefill_tokens_beside_decodes = figures_.prefill_budget;
  state.references = ledger_.pool().references();
  for (auto& [name, client] : shares_.clients()) {
    client.index = static_cast<int32_t>(state.client_service.size());
    state.client_service.push_back(client.service);
  }
  // First, because it may take a block out of the cache.
  for (const auto& sequence : sequences_) ledger_.SettleFork(sequence->page);
  state.sequences.reserve(sequences_.size());
  for (const auto& sequence : sequences_) {
    if (sequence->awaits_fork) continue;
    RefreshView(*sequence);
    state.sequences.push_back(sequence->view);
  }
  // After the views, because catching up lets blocks go.
  state.blocks_available = ledger_.pool().blocks_available();
  return Schedule(state);
}

void Engine::ApplyPlan(const StepPlan& plan, StepBatch& batch) {
  for (uint64_t id : plan.preempted) {
    ReleaseBlocks(*by_id_.at(id));
    ++figures_.preemptions;
  }
  // Cached blocks are held before any block is added, which might evict them.
  for (const PlannedSlice& slice : plan.slices) {
    Sequence& sequence = *by_id_.at(slice.sequence_id);
    if (sequence.view.running) continue;
    sequence.view.tokens_computed = ledger_.TakeMatch(sequence.page);
    sequence.view.running = true;
  }
  for (const PlannedSlice& slice : plan.slices) {
    Sequence& sequence = *by_id_.at(slice.sequence_id);
    const size_t first_added = sequence.page.blocks.size();
    const BlockId source = ledger_.Add(sequence.page, slice.blocks_to_add);
    if (source != kNoBlock) {
      batch.copies.push_back({source, sequence.page.blocks[first_added]});
      ++figures_.blocks_copied;
    }
    sequence.client->service += slice.token_count;
  }
  for (auto& sequence : sequences_) {
    if (!sequence->view.running) ++sequence->view.steps_waited;
  }
}

void Engine::RunModel(const StepPlan& plan, StepBatch batch) {
  std::vector<Sequence*> wanting;
  int32_t prefill_tokens = 0;
  int32_t decodes = 0;
  for (const PlannedSlice& slice : plan.slices) {
    Sequence& sequence = *by_id_.at(slice.sequence_id);
    const int32_t first = sequence.view.tokens_computed;
    const bool last = first + slice.token_count == sequence.view.tokens_known;
    batch.slices.push_back({absl::MakeConstSpan(sequence.tokens).subspan(first, slice.token_count),
                            first, sequence.page.blocks, last});
    if (last) wanting.push_back(&sequence);
    if (last && slice.token_count == 1) {
      ++decodes;
    } else {
      prefill_tokens += slice.token_count;
    }
    const int32_t of_prompt = std::min(slice.token_count, sequence.prompt_count() - first);
    if (of_prompt > 0) figures_.prompt_tokens += static_cast<uint64_t>(of_prompt);
    if (!sequence.has_logits) sequence.prompt_computed += std::max(of_prompt, 0);
  }
  const size_t vocabulary_size = static_cast<size_t>(model_->vocabulary_size());
  logits_.resize(std::max(logits_.size(), wanting.size() * vocabulary_size));
  const absl::Time start = clock_->Now();
  const absl::Status status =
      model_->Forward(batch, absl::MakeSpan(logits_).subspan(0, wanting.size() * vocabulary_size));
  if (!status.ok()) {
    LogError("engine", "forward pass failed", {{"error", status.ToString()}});
    FailPlanned(plan);
    wanting.clear();
  } else {
    for (const PlannedSlice& slice : plan.slices) {
      Sequence& sequence = *by_id_.at(slice.sequence_id);
      sequence.view.tokens_computed += slice.token_count;
      ledger_.Publish(sequence.page, sequence.tokens, sequence.view.tokens_computed);
    }
  }
  for (size_t i = 0; i < wanting.size(); ++i) {
    const auto row = absl::MakeSpan(logits_).subspan(i * vocabulary_size, vocabulary_size);
    CountPrompt(*wanting[i]);
    if (!wanting[i]->forks.empty()) ForkFrom(*wanting[i], row);
    ConsumeLogits(*wanting[i], row);
  }
  const absl::Duration took = clock_->Now() - start;
  pace_.Observe(decodes, prefill_tokens, took);
  ++figures_.steps;
  figures_.step_ms = Average(figures_.step_ms, absl::ToDoubleMilliseconds(took));
  figures_.prefill_tokens_per_second = pace_.prefill_tokens_per_second();
  figures_.last_step = clock_->Now();
}

// What was planned was not computed: its sequences fail, and those that wait to be forked from
// them.
void Engine::FailPlanned(const StepPlan& plan) {
  const Failure failure{FailureCode::kInternal, "the model failed to compute this step", ""};
  for (const PlannedSlice& slice : plan.slices) {
    Sequence& sequence = *by_id_.at(slice.sequence_id);
    FailSequence(sequence, failure);
    for (Sequence* fork : std::exchange(sequence.forks, {})) FailSequence(*fork, failure);
  }
}

// At a sequence's first logits: what of its prompt the cache had.
void Engine::CountPrompt(Sequence& sequence) {
  if (std::exchange(sequence.has_logits, true)) return;
  sequence.prompt_cached = std::max(0, sequence.prompt_count() - sequence.prompt_computed);
  ++figures_.prefix_lookups;
  figures_.prefix_queried_tokens += static_cast<uint64_t>(sequence.prompt_count());
  figures_.prefix_hit_tokens += static_cast<uint64_t>(sequence.prompt_cached);
}

// The prompt of `leader` is computed, `logits` [vocabulary_size] follow it. Each fork draws its own
// first token from them. As many as there are slots for go on with the leader's blocks; the others
// wait and will find the prompt's full blocks in the cache.
void Engine::ForkFrom(Sequence& leader, absl::Span<const float> logits) {
  int32_t slots = options_.limits.max_sequences;
  for (const auto& sequence : sequences_) slots -= sequence->view.running ? 1 : 0;
  for (Sequence* fork : std::exchange(leader.forks, {})) {
    fork->awaits_fork = false;
    fork->has_logits = true;
    fork->prompt_cached = leader.prompt_cached;
    fork_logits_.assign(logits.begin(), logits.end());
    ConsumeLogits(*fork, absl::MakeSpan(fork_logits_));
    if (fork->ended || slots-- <= 0) continue;
    ledger_.Fork(leader.page, fork->page, leader.view.tokens_computed);
    fork->view.running = true;
    fork->view.tokens_computed = leader.view.tokens_computed;
    ++figures_.forks;
  }
}

void Engine::ConsumeLogits(Sequence& sequence, absl::Span<float> logits) {
  absl::StatusOr<Sampled> sampled =
      Sample(logits, sequence.sampling, sequence.counts, sequence.generated_count(), scratch_);
  if (!sampled.ok()) {
    return FailSequence(sequence,
                        {FailureCode::kInternal, std::string(sampled.status().message()), ""});
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

// Memory is short and nothing fits into the blocks that there are: the youngest request makes room.
void Engine::ShedYoungest() {
  const Request* youngest = sequences_.back()->request.get();
  for (auto& sequence : sequences_) {
    if (sequence->request.get() != youngest) continue;
    FailSequence(*sequence, {FailureCode::kOverloaded,
                             "the worker has reached its memory limit: try again later", ""});
  }
}

}  // namespace rempart::worker
