// SPDX-License-Identifier: Apache-2.0
// Schedule together with the block ledger, over 10^5 steps of seeded random traffic: arrivals in
// bursts, long and short prompts with common prefixes, several continuations of one prompt,
// clients, priorities, cancellations, pools that are too small for the load. A memory of tokens
// stands for the KV cache. Some sequences await their token while the next step is planned. After
// each step: nothing is over-committed, no block is lost, every sequence reads its own tokens
// through its block table, and if there is work, some of it is done. At the end everything that was
// submitted has finished and no block is held.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "worker/cache/block_ledger.h"
#include "worker/engine/scheduler.h"

namespace rempart::worker {
namespace {

constexpr int32_t kClients = 3;
constexpr int32_t kNewToken = 1000;  // from here on tokens are generated ones

struct Simulated {
  ScheduledSequence view;
  SequenceBlocks page;
  std::vector<int32_t> tokens;
  size_t tokens_final = 0;
  int32_t forks = 0;  // to be made when the prompt is computed
  bool is_constrained = false;
};

class Simulation {
 public:
  Simulation(SchedulerLimits limits, const BlockLedgerOptions& options)
      : limits_(limits),
        ledger_(options),
        memory_(static_cast<size_t>(options.blocks_total * options.block_size), -1),
        service_(kClients, 0) {}

  uint64_t Submit(std::vector<int32_t> prompt, int32_t completion, int32_t priority,
                  int32_t client = 0, int32_t forks = 0) {
    Simulated s;
    s.view.priority = priority;
    s.view.client = client;
    s.tokens_final = prompt.size() + static_cast<size_t>(completion);
    s.tokens = std::move(prompt);
    s.forks = forks;
    s.page.salt = SaltKey(std::string(1, static_cast<char>('a' + client)));
    return AddLive(std::move(s));
  }

  void Cancel(uint64_t id) {
    ledger_.Release(live_.at(id).page);
    live_.erase(id);
  }

  // One engine step. Fails the test on a broken invariant.
  void Step() {
    StepPlan plan = Schedule(State());
    // Such a step is not begun ahead: the tokens are known first.
    if ((plan.slices.empty() || !plan.preempted.empty()) && LearnTokens()) plan = Schedule(State());
    if (!live_.empty()) {
      ASSERT_FALSE(plan.slices.empty()) << live_.size() << " sequences wait for nothing";
    }
    for (uint64_t id : plan.preempted) Preempt(live_.at(id));
    int32_t tokens = 0;
    std::set<uint64_t> planned;
    for (const PlannedSlice& slice : plan.slices) {
      ASSERT_TRUE(planned.insert(slice.sequence_id).second) << "planned twice";
      ASSERT_FALSE(live_.at(slice.sequence_id).view.awaits_token);
      ASSERT_GT(slice.token_count, 0);
      tokens += slice.token_count;
      Admit(live_.at(slice.sequence_id));
    }
    ASSERT_LE(tokens, limits_.max_step_tokens);
    for (const PlannedSlice& slice : plan.slices) {
      ASSERT_LE(slice.blocks_to_add, ledger_.pool().blocks_available()) << "over-committed";
      Extend(live_.at(slice.sequence_id), slice);
    }
    for (const PlannedSlice& slice : plan.slices) {
      ASSERT_NO_FATAL_FAILURE(Compute(live_.at(slice.sequence_id), slice));
    }
    LearnTokens();
    for (const PlannedSlice& slice : plan.slices) Sample(live_.at(slice.sequence_id));
    for (auto& [id, s] : live_) s.view.steps_waited += s.view.running ? 0 : 1;
    ASSERT_NO_FATAL_FAILURE(CheckBlocks());
    FinishDone();
  }

  bool IsLive(uint64_t id) const { return live_.count(id) > 0; }
  size_t live_count() const { return live_.size(); }
  uint64_t AnyLive(uint64_t pick) const {
    return std::next(live_.begin(), static_cast<int64_t>(pick % live_.size()))->first;
  }
  const BlockPool& pool() const { return ledger_.pool(); }
  int64_t preemptions = 0, hits = 0, copies = 0, awaited = 0;
  uint64_t constrained_one_in = 0;  // 0: none is
  uint64_t evictions() const { return ledger_.evictions(); }

 private:
  uint64_t AddLive(Simulated s) {
    const uint64_t id = ++last_id_;
    s.view.sequence_id = s.view.arrival = id;
    s.is_constrained = constrained_one_in > 0 && id % constrained_one_in == 0;
    live_[id] = std::move(s);
    return id;
  }

  // Of those who awaited them; whether there were any.
  bool LearnTokens() {
    bool any = false;
    for (auto& [id, s] : live_) any |= std::exchange(s.view.awaits_token, false);
    return any;
  }

  EngineState State() {
    EngineState state;
    state.limits = limits_;
    state.client_service = service_;
    state.prefill_tokens_beside_decodes = std::max(1, limits_.max_step_tokens / 2);
    for (auto& [id, s] : live_) ledger_.SettleFork(s.page);
    for (auto& [id, s] : live_) {
      s.view.tokens_known = static_cast<int32_t>(s.tokens.size());
      int32_t held = s.view.tokens_computed;
      if (!s.view.running) {
        ledger_.Match(s.page, s.tokens);
        held = static_cast<int32_t>(s.page.match.size()) * limits_.block_size;
      } else if (s.view.tokens_known - held > 1) {
        held = s.view.tokens_computed = ledger_.CatchUp(s.page, s.tokens, held);
      }
      s.view.blocks = s.view.running ? s.page.blocks : s.page.match;
      s.view.copy_source = s.page.copy_source;
      s.view.next_block_label = ledger_.NextBlockLabel(s.page, s.tokens, held);
      state.sequences.push_back(s.view);
    }
    state.references = ledger_.pool().references();
    state.blocks_available = ledger_.pool().blocks_available();
    return state;
  }

  void Preempt(Simulated& s) {
    ++preemptions;
    ledger_.Release(s.page);
    s.view.running = false;
    s.view.tokens_computed = 0;
  }

  void Admit(Simulated& s) {
    if (s.view.running) return;
    s.view.tokens_computed = ledger_.TakeMatch(s.page);
    hits += s.view.tokens_computed;
    s.view.running = true;
  }

  void Extend(Simulated& s, const PlannedSlice& slice) {
    const size_t first = s.page.blocks.size();
    const BlockId source = ledger_.Add(s.page, slice.blocks_to_add);
    service_[s.view.client] += slice.token_count;
    if (source == kNoBlock) return;
    ++copies;
    std::copy_n(memory_.begin() + source * limits_.block_size, limits_.block_size,
                memory_.begin() + s.page.blocks[first] * limits_.block_size);
  }

  int32_t& Slot(const Simulated& s, int32_t position) {
    const auto block = s.page.blocks.at(static_cast<size_t>(position / limits_.block_size));
    return memory_.at(
        static_cast<size_t>(block * limits_.block_size + position % limits_.block_size));
  }

  void Compute(Simulated& s, const PlannedSlice& slice) {
    const int32_t end = s.view.tokens_computed + slice.token_count;
    ASSERT_LE(end, s.view.tokens_known);
    for (int32_t p = s.view.tokens_computed; p < end; ++p) Slot(s, p) = s.tokens[p];
    s.view.tokens_computed = end;
    ledger_.Publish(s.page, s.tokens, end);
    for (int32_t p = 0; p < end; ++p) ASSERT_EQ(Slot(s, p), s.tokens[p]) << "position " << p;
  }

  // Appends a token to a sequence that is computed, after forking it if that is due.
  void Sample(Simulated& s) {
    if (s.view.tokens_computed < s.view.tokens_known) return;
    for (; s.forks > 0; --s.forks) {
      Simulated fork;
      fork.view.priority = s.view.priority;
      fork.view.client = s.view.client;
      fork.tokens = s.tokens;
      fork.tokens_final = s.tokens_final;
      fork.page.salt = s.page.salt;
      int32_t running = 0;
      for (auto& [id, other] : live_) running += other.view.running ? 1 : 0;
      if (running < limits_.max_sequences) {
        ledger_.Fork(s.page, fork.page, s.view.tokens_computed);
        fork.view.running = true;
        fork.view.tokens_computed = s.view.tokens_computed;
      }
      fork.tokens.push_back(kNewToken + static_cast<int32_t>(++sampled_));
      AddLive(std::move(fork));
    }
    // Some continuations are equal to others'.
    ++sampled_;
    s.view.awaits_token = s.is_constrained;
    awaited += s.is_constrained ? 1 : 0;
    s.tokens.push_back(sampled_ % 3 == 0 ? kNewToken : kNewToken + static_cast<int32_t>(sampled_));
  }

  void CheckBlocks() {
    std::map<BlockId, int32_t> holders;
    int32_t running = 0;
    for (auto& [id, s] : live_) {
      running += s.view.running ? 1 : 0;
      ASSERT_TRUE(s.view.running || s.page.blocks.empty());
      const int32_t held = static_cast<int32_t>(s.page.blocks.size());
      ASSERT_GE((held + (s.page.copy_source == kNoBlock ? 0 : 1)) * limits_.block_size,
                s.view.tokens_computed);
      for (BlockId block : s.page.blocks) ++holders[block];
      if (s.page.copy_source != kNoBlock) ++holders[s.page.copy_source];
    }
    ASSERT_LE(running, limits_.max_sequences);
    for (BlockId block = 0; block < pool().blocks_total(); ++block) {
      const auto found = holders.find(block);
      ASSERT_EQ(pool().references(block), found == holders.end() ? 0 : found->second) << block;
    }
    ASSERT_EQ(pool().blocks_held(), static_cast<int32_t>(holders.size()));
    ASSERT_EQ(pool().blocks_held() + pool().blocks_available(), pool().blocks_total());
  }

  void FinishDone() {
    for (auto it = live_.begin(); it != live_.end();) {
      if (it->second.tokens.size() <= it->second.tokens_final) {
        ++it;
        continue;
      }
      ledger_.Release(it->second.page);
      it = live_.erase(it);
    }
  }

  SchedulerLimits limits_;
  BlockLedger ledger_;
  std::vector<int32_t> memory_;  // [blocks, block_size]
  std::vector<int64_t> service_;
  std::map<uint64_t, Simulated> live_;
  uint64_t last_id_ = 0;
  uint64_t sampled_ = 0;
};

class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}
  int operator()(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  // Starts like others of the same family, for some way.
  std::vector<int32_t> Prompt(int length) {
    const int family = (*this)(0, 3);
    const int common = (*this)(0, length);
    std::vector<int32_t> tokens;
    for (int i = 0; i < length; ++i) tokens.push_back(i < common ? family : (*this)(0, 900));
    return tokens;
  }

 private:
  std::mt19937_64 random_;
};

TEST(SchedulerSimulation, KeepsItsPromisesUnderRandomTraffic) {
  constexpr int kSeeds = 50;
  constexpr int kSteps = 2000;  // 10^5 in all
  int64_t preemptions = 0, hits = 0, copies = 0, awaited = 0;
  uint64_t evictions = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Draw draw(seed);
    SchedulerLimits limits;
    limits.max_sequences = draw(1, 12);
    limits.max_step_tokens = draw(limits.max_sequences, 96);
    limits.block_size = draw(1, 16);
    limits.aging_steps = draw(1, 200);
    const int32_t longest = draw(20, 150);
    const int32_t blocks = BlocksFor(longest + 1, limits.block_size) + draw(0, 30);
    Simulation simulation(limits, {blocks, limits.block_size, draw(0, 4) > 0});
    simulation.constrained_one_in = seed % 4;
    for (int step = 0; step < kSteps; ++step) {
      for (int burst = draw(0, 20) == 0 ? draw(1, 8) : 0; burst > 0; --burst) {
        const int prompt = draw(1, longest - 1);
        if (simulation.live_count() < 40) {
          simulation.Submit(draw.Prompt(prompt), draw(1, longest - prompt), draw(-2, 2),
                            draw(0, kClients - 1), draw(0, 3) == 0 ? draw(1, 4) : 0);
        }
      }
      if (simulation.live_count() > 0 && draw(0, 50) == 0) {
        simulation.Cancel(simulation.AnyLive(static_cast<uint64_t>(draw(0, 1000))));
      }
      ASSERT_NO_FATAL_FAILURE(simulation.Step()) << "step " << step;
    }
    for (int step = 0; simulation.live_count() > 0; ++step) {
      ASSERT_LT(step, 200'000) << "what was submitted never ends";
      ASSERT_NO_FATAL_FAILURE(simulation.Step());
    }
    ASSERT_EQ(simulation.pool().blocks_held(), 0);
    preemptions += simulation.preemptions;
    hits += simulation.hits;
    copies += simulation.copies;
    awaited += simulation.awaited;
    evictions += simulation.evictions();
  }
  // The traffic must be hard enough to mean something.
  EXPECT_GT(preemptions, 1000);
  EXPECT_GT(hits, 10'000);
  EXPECT_GT(copies, 300);
  EXPECT_GT(awaited, 10'000);
  EXPECT_GT(evictions, 1000u);
}

TEST(SchedulerSimulation, ALowPriorityEndsUnderAnEndlessFloodOfHigherOnes) {
  SchedulerLimits limits{.max_step_tokens = 32, .max_sequences = 4, .block_size = 4};
  limits.aging_steps = 64;
  Simulation simulation(limits, {40, 4, true});
  Draw draw(7);
  for (int i = 0; i < 8; ++i) simulation.Submit(draw.Prompt(20), 10, 3);
  const uint64_t low = simulation.Submit(draw.Prompt(20), 10, 0);
  int step = 0;
  while (simulation.IsLive(low)) {
    while (simulation.live_count() < 9) simulation.Submit(draw.Prompt(draw(1, 30)), draw(1, 20), 3);
    ASSERT_NO_FATAL_FAILURE(simulation.Step());
    // Three points of priority, then at most one flood of requests that aged as well, then itself.
    ASSERT_LT(++step, 8 * limits.aging_steps) << "starved";
  }
  EXPECT_GT(step, limits.aging_steps) << "the flood did have the higher priority";
}

TEST(SchedulerSimulation, ClientsShareWhateverTheyAskFor) {
  SchedulerLimits limits{.max_step_tokens = 32, .max_sequences = 4, .block_size = 4};
  Simulation simulation(limits, {60, 4, true});
  Draw draw(11);
  std::map<uint64_t, int> client_of;
  int finished[2] = {0, 0};
  for (int step = 0; step < 4000; ++step) {
    // One client keeps thirty requests waiting, the other one at a time.
    int live[2] = {0, 0};
    for (auto it = client_of.begin(); it != client_of.end();) {
      const bool is_live = simulation.IsLive(it->first);
      ++(is_live ? live : finished)[it->second];
      it = is_live ? std::next(it) : client_of.erase(it);
    }
    for (; live[0] < 30; ++live[0]) client_of[simulation.Submit(draw.Prompt(20), 20, 0, 0)] = 0;
    for (; live[1] < 1; ++live[1]) client_of[simulation.Submit(draw.Prompt(20), 20, 0, 1)] = 1;
    ASSERT_NO_FATAL_FAILURE(simulation.Step());
  }
  // It has one of four slots all the time: it never waits for more than the one that ends next.
  EXPECT_GT(finished[1], finished[0] / 6) << "of " << finished[0] << " of the other";
  EXPECT_GT(finished[1], 4000 / 40);
}

}  // namespace
}  // namespace rempart::worker
