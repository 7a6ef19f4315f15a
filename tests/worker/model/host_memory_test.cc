// SPDX-License-Identifier: Apache-2.0
// A table of what fits into which limit, and what is said of what does not.
#include "worker/model/host_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "worker/model/model_source.h"

namespace rempart::worker {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

// One sequence of 1024 tokens takes 64 blocks of 16, 32 MiB.
HostMemoryNeeds Needs() {
  HostMemoryNeeds needs;
  needs.weight_bytes = 100 * kMiB;
  needs.repacked_bytes = 90 * kMiB;
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

// 10 in use + 100 + 90 + 20 + 64 + the cache.
TEST(HostMemory, TheCacheIsForAllSequencesOrWhatIsLeftOrOneAtLeast) {
  EXPECT_EQ(KvMib(Needs(), Limit(10000)), 128);
  EXPECT_EQ(KvMib(Needs(), Limit(360)), 76);
  EXPECT_EQ(KvMib(Needs(), Limit(316)), 32);
  HostMemoryNeeds given = Needs();
  given.kv_bytes = 40 * kMiB;
  EXPECT_EQ(KvMib(given, Limit(10000)), 40);
  HostMemoryNeeds exact = Needs();
  exact.repacked_bytes = 0;
  EXPECT_EQ(KvMib(exact, Limit(226)), 32);
}

TEST(HostMemory, SaysTheArithmeticOfWhatDoesNotFit) {
  const absl::Status status = PlanKvBlocks(Needs(), Limit(315)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "not enough memory: weights 100 MiB + weights repacked 90 MiB + KV cache 32 MiB for "
            "1024 tokens + workspace 20 MiB + the process itself 64 MiB = 306 MiB, more than the "
            "305 MiB that are left of 315 MiB (of a test): give the pod 1 MiB more "
            "(resources.limits.memory), or lower engine.contextLength, or engine.maxSequences");
  HostMemoryNeeds given = Needs();
  given.kv_bytes = 4000 * kMiB;
  EXPECT_THAT(std::string(PlanKvBlocks(given, Limit(1000)).status().message()),
              AllOf(HasSubstr("KV cache 4000 MiB"), HasSubstr("and engine.kvCacheMib")));
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
                AllOf(HasSubstr("= 306 MiB, more than the 190 MiB that are left of 200 MiB"),
                      HasSubstr(folder + limit), HasSubstr("give the pod 116 MiB more")));
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

}  // namespace
}  // namespace rempart::worker
