// SPDX-License-Identifier: Apache-2.0
// Schedule together with the block pool, over 10^5 steps of seeded random traffic: arrivals in
// bursts, long and short prompts, priorities, cancellations, pools that are too small for the load.
// After each step: nothing is over-committed, no block is lost or held twice, and if there is work,
// some of it is done. At the end everything that was submitted has finished.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "worker/cache/block_pool.h"
#include "worker/engine/scheduler.h"

namespace rempart::worker {
namespace {

struct Simulated {
  ScheduledSequence view;
  std::vector<BlockId> blocks;
  int32_t tokens_final = 0;
};

class Simulation {
 public:
  Simulation(SchedulerLimits limits, int32_t blocks) : limits_(limits), pool_(blocks) {}

  uint64_t Submit(int32_t prompt, int32_t completion, int32_t priority) {
    const uint64_t id = ++last_id_;
    Simulated s;
    s.view.sequence_id = s.view.arrival = id;
    s.view.priority = priority;
    s.view.tokens_known = prompt;
    s.tokens_final = prompt + completion;
    live_[id] = s;
    return id;
  }

  void Cancel(uint64_t id) { Free(live_.at(id)), live_.erase(id); }

  // One engine step. Fails the test on a broken invariant.
  void Step() {
    EngineState state{limits_, pool_.blocks_free(), {}};
    for (auto& [id, s] : live_) state.sequences.push_back(s.view);
    const StepPlan plan = Schedule(state);
    if (!live_.empty()) {
      ASSERT_FALSE(plan.slices.empty()) << live_.size() << " sequences wait for nothing";
    }
    for (uint64_t id : plan.preempted) Preempt(live_.at(id));
    int32_t tokens = 0;
    std::set<uint64_t> planned;
    for (const PlannedSlice& slice : plan.slices) {
      ASSERT_TRUE(planned.insert(slice.sequence_id).second) << "planned twice";
      ASSERT_GT(slice.token_count, 0);
      tokens += slice.token_count;
      ASSERT_NO_FATAL_FAILURE(Run(live_.at(slice.sequence_id), slice));
    }
    ASSERT_LE(tokens, limits_.max_step_tokens);
    for (auto& [id, s] : live_) s.view.steps_waited += s.view.running ? 0 : 1;
    CheckBlocks();
    FinishDone();
  }

  bool IsLive(uint64_t id) const { return live_.count(id) > 0; }
  size_t live_count() const { return live_.size(); }
  uint64_t AnyLive(uint64_t pick) const {
    return std::next(live_.begin(), pick % live_.size())->first;
  }
  int32_t blocks_free() const { return pool_.blocks_free(); }
  int64_t preemptions = 0;

 private:
  void Free(Simulated& s) {
    for (BlockId block : s.blocks) pool_.Release(block);
    s.blocks.clear();
  }

  void Preempt(Simulated& s) {
    ++preemptions;
    Free(s);
    s.view.running = false;
    s.view.tokens_computed = s.view.blocks_held = 0;
  }

  void Run(Simulated& s, const PlannedSlice& slice) {
    ASSERT_TRUE(pool_.Allocate(slice.blocks_to_add, s.blocks)) << "more blocks than there are";
    s.view.running = true;
    s.view.blocks_held = static_cast<int32_t>(s.blocks.size());
    s.view.tokens_computed += slice.token_count;
    ASSERT_LE(s.view.tokens_computed, s.view.tokens_known);
    ASSERT_GE(s.view.blocks_held * limits_.block_size, s.view.tokens_computed);
    if (s.view.tokens_computed == s.view.tokens_known) ++s.view.tokens_known;  // sampled
  }

  void CheckBlocks() {
    std::set<BlockId> seen;
    int32_t running = 0;
    for (auto& [id, s] : live_) {
      running += s.view.running ? 1 : 0;
      ASSERT_TRUE(s.view.running || s.blocks.empty());
      for (BlockId block : s.blocks) ASSERT_TRUE(seen.insert(block).second) << "held twice";
    }
    ASSERT_LE(running, limits_.max_sequences);
    ASSERT_EQ(static_cast<int32_t>(seen.size()) + pool_.blocks_free(), pool_.blocks_total());
  }

  void FinishDone() {
    for (auto it = live_.begin(); it != live_.end();) {
      if (it->second.view.tokens_known <= it->second.tokens_final) {
        ++it;
        continue;
      }
      Free(it->second);
      it = live_.erase(it);
    }
  }

  SchedulerLimits limits_;
  BlockPool pool_;
  std::map<uint64_t, Simulated> live_;
  uint64_t last_id_ = 0;
};

TEST(SchedulerSimulation, KeepsItsPromisesUnderRandomTraffic) {
  constexpr int kSeeds = 50;
  constexpr int kSteps = 2000;  // 10^5 in all
  int64_t preemptions = 0;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    auto draw = [&](int low, int high) {
      return low + static_cast<int>(random() % (high - low + 1));
    };
    SchedulerLimits limits;
    limits.max_sequences = draw(1, 12);
    limits.max_step_tokens = draw(limits.max_sequences, 96);
    limits.block_size = draw(1, 16);
    limits.aging_steps = draw(1, 200);
    const int32_t longest = draw(20, 150);
    Simulation simulation(limits, BlocksFor(longest + 1, limits.block_size) + draw(0, 30));
    for (int step = 0; step < kSteps; ++step) {
      for (int burst = draw(0, 20) == 0 ? draw(1, 8) : 0; burst > 0; --burst) {
        const int prompt = draw(1, longest - 1);
        if (simulation.live_count() < 40) {
          simulation.Submit(prompt, draw(1, longest - prompt), draw(-2, 2));
        }
      }
      if (simulation.live_count() > 0 && draw(0, 50) == 0) {
        simulation.Cancel(simulation.AnyLive(random()));
      }
      ASSERT_NO_FATAL_FAILURE(simulation.Step()) << "step " << step;
    }
    for (int step = 0; simulation.live_count() > 0; ++step) {
      ASSERT_LT(step, 200'000) << "what was submitted never ends";
      ASSERT_NO_FATAL_FAILURE(simulation.Step());
    }
    preemptions += simulation.preemptions;
  }
  EXPECT_GT(preemptions, 1000) << "the traffic must be hard enough to mean something";
}

TEST(SchedulerSimulation, ALowPriorityEndsUnderAnEndlessFloodOfHigherOnes) {
  SchedulerLimits limits{.max_step_tokens = 32, .max_sequences = 4, .block_size = 4};
  limits.aging_steps = 64;
  Simulation simulation(limits, 40);
  std::mt19937_64 random(7);
  for (int i = 0; i < 8; ++i) simulation.Submit(20, 10, 3);
  const uint64_t low = simulation.Submit(20, 10, 0);
  int step = 0;
  while (simulation.IsLive(low)) {
    while (simulation.live_count() < 9) simulation.Submit(1 + random() % 30, 1 + random() % 20, 3);
    ASSERT_NO_FATAL_FAILURE(simulation.Step());
    // Three points of priority, then at most one flood of requests that aged as well, then itself.
    ASSERT_LT(++step, 8 * limits.aging_steps) << "starved";
  }
  EXPECT_GT(step, limits.aging_steps) << "the flood did have the higher priority";
}

}  // namespace
}  // namespace rempart::worker
