// SPDX-License-Identifier: Apache-2.0
// What a strike is told, and whom it finds. That it strikes and mends: tests/groups/test_drill.py.
#include "worker/strike/strike.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "worker/strike/routing_rules.h"

namespace rempart::worker {
namespace {

const std::string kId(64, 'a');

TEST(ParseStrike, TakesEachKind) {
  const auto kill = ParseStrike({"kill", kId});
  ASSERT_TRUE(kill.ok()) << kill.status();
  EXPECT_EQ(kill->kind, Strike::Kind::kKill);
  EXPECT_EQ(kill->container_id, kId);
  const auto freeze = ParseStrike({"freeze", "30", kId});
  ASSERT_TRUE(freeze.ok()) << freeze.status();
  EXPECT_EQ(freeze->lasts, absl::Seconds(30));
  const auto cut = ParseStrike({"cut", "20", "10.244.1.0/24", "fd00::/64"});
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->kept_networks.size(), 2u);
}

TEST(ParseStrike, NamesWhatIsWrong) {
  const std::string shorter(12, 'a');
  for (const auto& [words, named] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"kill", shorter}, shorter},
           {{"kill", "../../etc/passwd"}, "64 hex digits"},
           {{"kill"}, "none of"},
           {{"freeze", "0", kId}, "from 1 to 600"},
           {{"freeze", "soon", kId}, "\"soon\""},
           {{"cut", "601"}, "from 1 to 600"},
           {{"cut", "20", "10.244.1.0"}, "10.244.1.0"},
           {{"cut", "20", "10.244.1.0/33"}, "no network"},
           {{"burn", kId}, "burn"}}) {
    const auto parsed = ParseStrike(words);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(parsed.status().message().find(named), std::string::npos) << parsed.status();
  }
}

TEST(ParseNetwork, ReadsBytesAndLength) {
  const auto network = ParseNetwork("10.244.1.0/24");
  ASSERT_TRUE(network.ok()) << network.status();
  EXPECT_EQ(network->address, std::string("\x0a\xf4\x01\x00", 4));
  EXPECT_EQ(network->prefix_length, 24);
  // Everything is not a network to keep: the cut would cut nothing.
  EXPECT_FALSE(ParseNetwork("0.0.0.0/0").ok());
}

// /proc/PID/cgroup of both versions, and of a container that is another's.
TEST(ProcessesOf, FindsThoseOfTheContainer) {
  const std::filesystem::path proc = std::filesystem::path(testing::TempDir()) / "proc";
  std::filesystem::remove_all(proc);
  const auto add = [&](const std::string& name, const std::string& cgroup) {
    std::filesystem::create_directories(proc / name);
    std::ofstream(proc / name / "cgroup") << cgroup;
  };
  add("41", "0::/../../pod1/cri-containerd-" + kId + ".scope\n");
  add("7", "3:cpu:/node-1/kubepods/pod1/" + kId + "\n2:memory:/node-1/kubepods/pod1/" + kId + "\n");
  add("8", "0::/kubepods/pod2/" + std::string(64, 'b') + "\n");
  add("self", "0::/kubepods/pod1/" + kId + "\n");
  EXPECT_EQ(ProcessesOf(kId, proc.string()), (std::vector<int>{7, 41}));
}

TEST(RunStrike, SaysThatThereIsNoSuchContainer) {
  EXPECT_EQ(RunStrike({Strike::Kind::kKill, std::string(64, '0'), {}, {}}).code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace rempart::worker
