// SPDX-License-Identifier: Apache-2.0
// A table of what fits into which limit, and what is said of what does not.
#include "worker/model/host_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "tests/worker/model/random_model.h"
#include "tests/worker/model/rank_group.h"
#include "worker/model/model_source.h"

namespace rempart::worker {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

// One sequence of 1024 tokens takes 64 blocks of 16, 32 MiB.
HostMemoryNeeds Needs() {
  HostMemoryNeeds needs;
  needs.weights.repacked = 90 * kMiB;
  needs.weights.in_file = 10 * kMiB;
  needs.workspace_bytes = 20 * kMiB;
  needs.kv_block_bytes = 32 * kMiB / (1024 / kernels::kKvBlockTokens);
  needs.context_length = 1024;
  needs.max_sequences = 4;
  return needs;
}

MemoryUse Limit(int64_t mib) { return {mib * kMiB, 10 * kMiB, "of a test"}; }

int64_t KvMib(const HostMemoryNeeds& needs, const MemoryUse& use) {
  const auto blocks = PlanKvBlocks(needs, use);
  EXPECT_TRUE(blocks.ok()) << blocks.status();
  return blocks.ok() ? *blocks * needs.kv_block_bytes / kMiB : -1;
}

// 10 in use + 90 + 10 + 20 + 64 + the cache, and the 512th part of it for page tables.
TEST(HostMemory, TheCacheIsForAllSequencesOrWhatIsLeftOrOneAtLeast) {
  EXPECT_EQ(KvMib(Needs(), Limit(10000)), 128);
  EXPECT_EQ(KvMib(Needs(), Limit(260)), 65);
  EXPECT_EQ(KvMib(Needs(), Limit(227)), 32);
  HostMemoryNeeds given = Needs();
  given.kv_bytes = 40 * kMiB;
  EXPECT_EQ(KvMib(given, Limit(10000)), 40);
  HostMemoryNeeds exact = Needs();
  exact.weights.repacked = 0;
  EXPECT_EQ(KvMib(exact, Limit(137)), 32);
}

TEST(HostMemory, SaysTheArithmeticOfWhatDoesNotFit) {
  const absl::Status status = PlanKvBlocks(Needs(), Limit(226)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "not enough memory: weights repacked 90 MiB + weights read from the file 10 MiB + KV "
            "cache 32 MiB for 1024 tokens + workspace 20 MiB + the process itself 65 MiB = 217 "
            "MiB, more than the 216 MiB that are left of 226 MiB (of a test): give the pod 1 MiB "
            "more (resources.limits.memory), or lower engine.contextLength, or "
            "engine.maxSequences");
  HostMemoryNeeds given = Needs();
  given.weights = {.in_file = 3 * kMiB, .expanded = 80 * kMiB};
  given.kv_bytes = 4000 * kMiB;
  EXPECT_THAT(std::string(PlanKvBlocks(given, Limit(1000)).status().message()),
              AllOf(HasSubstr("weights expanded 80 MiB + weights read from the file 3 MiB + KV "
                              "cache 4000 MiB"),
                    EndsWith("(resources.limits.memory), or lower engine.kvCacheMib to at most "
                             "821")));
  given.kv_bytes = 821 * kMiB;
  EXPECT_TRUE(PlanKvBlocks(given, Limit(1000)).ok());
  given.kv_bytes = 822 * kMiB;
  EXPECT_FALSE(PlanKvBlocks(given, Limit(1000)).ok());
  EXPECT_THAT(std::string(PlanKvBlocks(given, Limit(200)).status().message()),
              EndsWith(", or lower engine.contextLength and engine.kvCacheMib, or "
                       "engine.maxSequences"));
}

// There is no pod to give more to.
TEST(HostMemory, WhereTheMachineIsTheLimitThatIsSaid) {
  MemoryUse use = Limit(226);
  use.limit_of = MemoryUse::kTheMachine;
  EXPECT_THAT(std::string(PlanKvBlocks(Needs(), use).status().message()),
              HasSubstr("left of 226 MiB (the machine): this machine has 1 MiB too little: end "
                        "other processes, or lower engine.contextLength, or engine.maxSequences"));
}

// Products that an int64_t does not hold: a file and settings may say so.
TEST(HostMemory, WhatIsMoreThanANumberHoldsDoesNotFit) {
  HostMemoryNeeds needs = Needs();
  needs.kv_block_bytes = int64_t{1} << 43;
  needs.max_sequences = 4096;
  for (const int64_t context : {int64_t{1} << 24, int64_t{1} << 20}) {
    needs.context_length = context;
    EXPECT_THAT(std::string(PlanKvBlocks(needs, Limit(10000)).status().message()),
                HasSubstr(absl::StrCat(" MiB for ", context, " tokens + workspace 20 MiB")));
  }
}

TEST(HostMemory, BlocksAreNoMoreThanTheirNumbersHold) {
  HostMemoryNeeds needs = Needs();
  needs.kv_block_bytes = 512;
  needs.kv_bytes = int64_t{3} << 40;
  EXPECT_EQ(*PlanKvBlocks(needs, Limit(int64_t{4} << 20)), std::numeric_limits<int32_t>::max());
}

// Of 256 Ki tokens the tokenizer takes 75 MiB more than one of 64 Ki.
TEST(HostMemory, ALargeVocabularyCounts) {
  HostMemoryNeeds large = Needs();
  large.vocabulary = kTokensOfProcess;
  EXPECT_EQ(KvMib(large, Limit(227)), 32);
  large.vocabulary = 256 << 10;
  EXPECT_EQ(KvMib(large, Limit(302)), 32);
  EXPECT_THAT(std::string(PlanKvBlocks(large, Limit(301)).status().message()),
              HasSubstr("the process itself 140 MiB = 292 MiB"));
}

// What an earlier start has kept is read as often, so it takes as much; it is not made once more.
TEST(HostMemory, RepackedWeightsThatAreKeptCountOnceToo) {
  HostMemoryNeeds kept = Needs();
  kept.weights.repacked_is_kept = true;
  EXPECT_EQ(KvMib(kept, Limit(227)), 32);
  EXPECT_THAT(std::string(PlanKvBlocks(kept, Limit(226)).status().message()),
              HasSubstr("weights repacked 90 MiB (kept from an earlier start) + weights read"));
}

// Scratch is there before cache and workspace are; where it is more than they, it decides, and a
// smaller cache would not help.
TEST(HostMemory, TheLargestMatrixHasRoomWhileItIsRepacked) {
  HostMemoryNeeds needs = Needs();
  needs.weights.scratch = 52 * kMiB;
  EXPECT_EQ(KvMib(needs, Limit(227)), 32) << "as much as both";
  needs.weights.scratch = 100 * kMiB;
  EXPECT_EQ(KvMib(needs, Limit(275)), 80);
  EXPECT_EQ(PlanKvBlocks(needs, Limit(274)).status().message(),
            "not enough memory: weights repacked 90 MiB + weights read from the file 10 MiB + the "
            "largest matrix while it is repacked 100 MiB + the process itself 65 MiB = 265 MiB, "
            "more than the 264 MiB that are left of 274 MiB (of a test): give the pod 1 MiB more "
            "(resources.limits.memory)");
}

// With exactly what a refusal asks for, the next start is admitted.
TEST(HostMemory, WhatIsAskedForIsEnough) {
  HostMemoryNeeds needs = Needs();
  for (int i = 0; i < 200; ++i) {
    needs.weights.repacked += 7919 * 4099;
    needs.weights.in_file += 104729;
    needs.workspace_bytes += 15485;
    const MemoryUse small = {100 * kMiB + i * 12345, 10 * kMiB + i, "of a test"};
    const absl::Status refused = PlanKvBlocks(needs, small).status();
    const std::string message(refused.message());
    const size_t at = message.find("give the pod ");
    ASSERT_NE(at, std::string::npos) << message;
    const int64_t more = std::stoll(message.substr(at + 13));
    MemoryUse enough = small;
    enough.limit_bytes += more * kMiB;
    EXPECT_TRUE(PlanKvBlocks(needs, enough).ok()) << message;
    enough.limit_bytes -= 6 * kMiB;  // figures are rounded up
    EXPECT_FALSE(PlanKvBlocks(needs, enough).ok()) << message;
  }
}

TEST(HostMemory, ACacheTooSmallForOneSequenceIsAWrongSetting) {
  HostMemoryNeeds given = Needs();
  given.kv_bytes = 31 * kMiB;
  const absl::Status status = PlanKvBlocks(given, Limit(10000)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("engine.kvCacheMib is 31, but one sequence of 1024 tokens needs 32 MiB"));
}

// Both versions of the controller, with the file that sets the limit named.
TEST(HostMemory, ALimitOfTheContainerIsTheOneThatCounts) {
  const std::string root = testing::TempDir() + "host_memory";
  const auto put = [&](const std::string& path, const std::string& text) {
    const std::filesystem::path file = root + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  };
  for (const bool v2 : {true, false}) {
    std::filesystem::remove_all(root);
    put("/proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 15000000 kB\n");
    put("/proc/self/cgroup", v2 ? "0::/pod\n" : "8:memory:/pod\n");
    const std::string folder = v2 ? "/sys/fs/cgroup/pod/" : "/sys/fs/cgroup/memory/pod/";
    const std::string limit = v2 ? "memory.max" : "memory.limit_in_bytes";
    put(folder + limit, "209715200\n");
    put(folder + (v2 ? "memory.current" : "memory.usage_in_bytes"), "10485760\n");
    const absl::Status status = PlanKvBlocks(Needs(), ReadMemoryUse(root)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("= 217 MiB, more than the 190 MiB that are left of 200 MiB"),
                      HasSubstr(folder + limit), HasSubstr("give the pod 27 MiB more")));
  }
  std::filesystem::remove_all(root);
}

// Gemma's vocabulary makes logits the largest part: 64 rows of 262,144 floats are 64 MiB.
TEST(HostMemory, TheWorkspaceGrowsWithTokensAndLogits) {
  auto source = OpenModel("tests/goldens/families/llama3");
  ASSERT_TRUE(source.ok()) << source.status();
  ModelConfig config = source->config;
  config.vocabulary = 262144;
  TransformerOptions options;
  options.max_step_logits = 64;
  const int64_t bytes = WorkspaceBytes(config, options);
  EXPECT_GT(bytes, 64 * kMiB);
  EXPECT_LT(bytes, 72 * kMiB);
  options.max_step_tokens *= 2;
  EXPECT_GT(WorkspaceBytes(config, options), bytes + 512 * 4 * 3 * config.hidden);
}

// Of one rank, and of each of several that cut rows or layers.
TEST(HostMemory, TheWorkspaceIsWhatATransformerAllocates) {
  const ModelConfig config = SmallConfig(4, 4, 32, 128, 256, 4096);
  const RandomModel model(config, kernels::DType::kQ8_0, 7);
  for (const GroupShape& shape : std::vector<GroupShape>{{1, 1, 0}, {2, 1, 0}, {1, 2, 0}}) {
    for (const bool exact : {false, true}) {
      const auto ranks = MakeRanks(model.tensors(), config, exact, shape);
      for (const auto& rank : ranks) {
        ASSERT_NE(rank->transformer, nullptr);
        const int64_t made = rank->transformer->workspace_bytes();
        const int64_t planned = WorkspaceBytes(config, Options(exact), rank->weights.partition.of);
        EXPECT_LE(made, planned) << shape.tensor << " " << shape.stages;
        EXPECT_GT(made, planned / 2) << shape.tensor << " " << shape.stages;
      }
    }
  }
}

}  // namespace
}  // namespace rempart::worker
