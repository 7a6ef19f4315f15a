// SPDX-License-Identifier: Apache-2.0
#include "worker/device/numa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "worker/device/thread_pool.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<int32_t> From(int32_t first, int32_t count) {
  std::vector<int32_t> cpus(static_cast<size_t>(count));
  std::iota(cpus.begin(), cpus.end(), first);
  return cpus;
}

class ReadNumaNodesTest : public testing::Test {
 protected:
  ReadNumaNodesTest() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    root_ = testing::TempDir() + "numa_" + test->name();
    std::filesystem::remove_all(root_);
  }
  ~ReadNumaNodesTest() override { std::filesystem::remove_all(root_); }

  void Put(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + "/sys/devices/system/node" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  std::string root_;
};

TEST_F(ReadNumaNodesTest, NoneWhereTheSystemDoesNotTell) {
  EXPECT_THAT(ReadNumaNodes(root_, From(0, 4)), IsEmpty());
}

// Two sockets, whose second threads are counted after all first ones.
TEST_F(ReadNumaNodesTest, HaveTheCpusThatTheProcessMayUse) {
  Put("/online", "0-1\n");
  Put("/node0/cpulist", "0-3,8-11\n");
  Put("/node1/cpulist", "4-7,12-15\n");
  const std::vector<NumaNode> all = ReadNumaNodes(root_, From(0, 16));
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].id, 0);
  EXPECT_THAT(all[0].cpus, ElementsAre(0, 1, 2, 3, 8, 9, 10, 11));
  EXPECT_THAT(all[1].cpus, ElementsAre(4, 5, 6, 7, 12, 13, 14, 15));

  const std::vector<NumaNode> some = ReadNumaNodes(root_, std::vector<int32_t>{2, 3, 12});
  ASSERT_EQ(some.size(), 2u);
  EXPECT_THAT(some[0].cpus, ElementsAre(2, 3));
  EXPECT_THAT(some[1].cpus, ElementsAre(12));

  const std::vector<NumaNode> one = ReadNumaNodes(root_, From(4, 4));
  ASSERT_EQ(one.size(), 1u);
  EXPECT_EQ(one[0].id, 1);
}

TEST_F(ReadNumaNodesTest, LeavesOutNodesOfMemoryAlone) {
  Put("/online", "0,2\n");
  Put("/node0/cpulist", "0-1\n");
  Put("/node2/cpulist", "\n");
  EXPECT_EQ(ReadNumaNodes(root_, From(0, 2)).size(), 1u);
}

TEST_F(ReadNumaNodesTest, TakesNothingFromAFileThatItDoesNotUnderstand) {
  Put("/online", "0-1\n");
  Put("/node0/cpulist", "0-\n");
  for (const char* list : {"zero\n", "3-1\n", "0-99999999999\n", "-4\n", "1-2-3\n"}) {
    Put("/node1/cpulist", list);
    EXPECT_THAT(ReadNumaNodes(root_, From(1, 2)), IsEmpty()) << list;
  }
}

TEST(PlaceRanks, BindsRanksToNodesWhereEachHasRoom) {
  struct Row {
    std::string what;
    int32_t nodes, cpus_of_a_node, ranks, threads;
    std::vector<int32_t> placed;  // node of each rank
  };
  const std::vector<Row> rows = {
      {"one node", 1, 8, 2, 4, {}},
      {"one rank", 2, 8, 1, 16, {}},
      {"a rank for each node", 2, 8, 2, 8, {0, 1}},
      {"two ranks for each node", 2, 8, 4, 4, {0, 0, 1, 1}},
      {"more nodes than ranks", 4, 8, 2, 8, {0, 2}},
      {"ranks that no node holds", 2, 8, 2, 9, {}},
      {"an odd rank that finds no room", 2, 8, 3, 5, {}},
      {"an odd rank that does", 2, 8, 3, 4, {0, 0, 1}},
      {"no nodes known", 0, 0, 4, 1, {}},
  };
  for (const Row& row : rows) {
    std::vector<NumaNode> nodes;
    for (int32_t i = 0; i < row.nodes; ++i) {
      nodes.push_back({i, From(i * row.cpus_of_a_node, row.cpus_of_a_node)});
    }
    const std::vector<NumaNode> places = PlaceRanks(nodes, row.ranks, row.threads);
    std::vector<int32_t> ids;
    for (const NumaNode& place : places) {
      ids.push_back(place.id);
      EXPECT_EQ(place.cpus, nodes[static_cast<size_t>(place.id)].cpus) << row.what;
    }
    EXPECT_EQ(ids, row.placed) << row.what;
  }
}

TEST(BindThisThread, KeepsPoolAndCallerOnTheirCpus) {
  const std::vector<int32_t> all = AllowedCpus();
  ASSERT_FALSE(all.empty());
  const std::vector<int32_t> last = {all.back()};
  ThreadPool pool({.threads = 2, .cpus = last});
  std::vector<int32_t> seen[2], of_caller;
  RunBound(last, [&] {
    of_caller = AllowedCpus();
    // Both chunks wait for each other, so that each is of another thread.
    std::atomic<int> arrived = 0;
    pool.ParallelFor(2, 1, [&](int64_t begin, int64_t) {
      seen[begin] = AllowedCpus();
      arrived.fetch_add(1);
      while (arrived.load() < 2) std::this_thread::yield();
    });
  });
  EXPECT_EQ(of_caller, last);
  EXPECT_EQ(seen[0], last);
  EXPECT_EQ(seen[1], last);
  EXPECT_EQ(AllowedCpus(), all) << "the caller of RunBound stays where it was";
}

TEST(RunBound, WithoutCpusIsACall) {
  const auto caller = std::this_thread::get_id();
  std::thread::id ran;
  RunBound({}, [&] { ran = std::this_thread::get_id(); });
  EXPECT_EQ(ran, caller);
}

}  // namespace
}  // namespace rempart::worker
