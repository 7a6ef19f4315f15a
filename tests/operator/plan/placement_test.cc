// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "operator/plan/quantity.h"
#include "tests/operator/plan/observations.h"

namespace rempart::op {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

PlacementRequest Three() {
  PlacementRequest request;
  request.pods = {"a-0", "a-1", "a-2"};
  request.each = {{"cpu", 1000}, {"memory", int64_t{2} << 30}};
  return request;
}

std::set<std::string> NodesOf(const PlacementAnswer& answer) {
  std::set<std::string> nodes;
  for (const auto& [pod, node] : answer.nodes) nodes.insert(node);
  return nodes;
}

TEST(PlaceGroup, SpreadsOverNodes) {
  const PlacementAnswer answer = PlaceGroup(Three(), Nodes(3));
  EXPECT_EQ(answer.nodes.size(), 3u);
  EXPECT_EQ(NodesOf(answer).size(), 3u);
}

TEST(PlaceGroup, SharesNodesWhenThereAreFewer) {
  EXPECT_EQ(PlaceGroup(Three(), Nodes(2)).nodes.size(), 3u);
  EXPECT_EQ(PlaceGroup(Three(), Nodes(1)).nodes.size(), 3u);
}

TEST(PlaceGroup, AllOrNoneAndSaysWhatIsMissingNodeByNode) {
  std::vector<NodeObservation> nodes = Nodes(4);
  nodes[0].requested = {{"memory", int64_t{7} << 30}};
  nodes[1].cordoned = true;
  nodes[2].ready = false;
  nodes[3].requested = {{"cpu", 2500}};
  const PlacementAnswer answer = PlaceGroup(Three(), nodes);
  EXPECT_THAT(answer.nodes, IsEmpty());
  EXPECT_THAT(answer.missing, HasSubstr("3 places with 1 CPU and 2048 MiB of memory each"));
  EXPECT_THAT(answer.missing,
              HasSubstr("node-0: 1024 MiB of memory free, 1024 MiB of memory missing"));
  EXPECT_THAT(answer.missing, HasSubstr("node-1: cordoned"));
  EXPECT_THAT(answer.missing, HasSubstr("node-2: not ready"));
  EXPECT_THAT(answer.missing, HasSubstr("node-3: has room, but not for all"));
}

struct ForbiddenRow {
  std::string words;
  void (*change)(NodeObservation&, PlacementRequest&);
};

TEST(PlaceGroup, NamesWhatForbidsANode) {
  const std::vector<ForbiddenRow> rows = {
      {"has the taint gpu:NoSchedule",
       [](NodeObservation& n, PlacementRequest&) {
         n.taints = {{"gpu", "", "NoSchedule"}};
       }},
      {"lacks the label disk=ssd",
       [](NodeObservation&, PlacementRequest& r) { r.node_selector["disk"] = "ssd"; }},
      {"\"DE\", not one of FR",
       [](NodeObservation& n, PlacementRequest& r) {
         n.labels[kJurisdictionLabel] = "DE";
         r.jurisdictions = {"FR"};
       }},
      {"lacks the label rack",
       [](NodeObservation&, PlacementRequest& r) { r.topology_key = "rack"; }},
      {"excluded", [](NodeObservation&, PlacementRequest& r) { r.excluded_nodes = {"node-0"}; }},
      {"it runs 110 pods", [](NodeObservation& n, PlacementRequest&) { n.pods = 110; }},
      {"0 nvidia.com/gpu free, 2 nvidia.com/gpu missing",
       [](NodeObservation&, PlacementRequest& r) { r.each["nvidia.com/gpu"] = 2; }},
  };
  for (const ForbiddenRow& row : rows) {
    std::vector<NodeObservation> nodes = Nodes(1);
    PlacementRequest request = Three();
    row.change(nodes[0], request);
    EXPECT_THAT(PlaceGroup(request, nodes).missing, HasSubstr(row.words));
  }
}

TEST(PlaceGroup, KeepsAGroupWithinOneValueOfTheTopologyKey) {
  std::vector<NodeObservation> nodes = Nodes(5);
  for (int i = 0; i < 5; ++i) nodes[i].labels["rack"] = i < 2 ? "a" : "b";
  for (int i = 0; i < 2; ++i) nodes[i].requested = {{"cpu", 3000}};
  PlacementRequest request = Three();
  request.topology_key = "rack";
  EXPECT_EQ(NodesOf(PlaceGroup(request, nodes)),
            (std::set<std::string>{"node-2", "node-3", "node-4"}));
  // A replacement follows those that stayed.
  request.pods = {"a-1"};
  request.kept_nodes = {"node-0"};
  EXPECT_EQ(NodesOf(PlaceGroup(request, nodes)), (std::set<std::string>{"node-1"}));
}

TEST(PlaceGroup, UsesSuspectNodesLast) {
  PlacementRequest request = Three();
  request.pods = {"a-0"};
  request.suspect_nodes = {"node-0"};
  EXPECT_EQ(PlaceGroup(request, Nodes(2)).nodes.at("a-0"), "node-1");
  EXPECT_EQ(PlaceGroup(request, Nodes(1)).nodes.at("a-0"), "node-0");
}

TEST(PlaceGroup, WhatWasPromisedIsTaken) {
  std::vector<NodeObservation> nodes = Nodes(3);
  for (int i = 0; i < 4; ++i) {
    const PlacementAnswer answer = PlaceGroup(Three(), nodes);
    ASSERT_EQ(answer.nodes.size(), 3u) << i;
    TakePlaces(answer, Three().each, nodes);
  }
  EXPECT_THAT(PlaceGroup(Three(), nodes).nodes, IsEmpty());
}

TEST(Quantity, ReadsWhatKubernetesWrites) {
  EXPECT_EQ(ParseMilli("100m"), 100);
  EXPECT_EQ(ParseMilli("2"), 2000);
  EXPECT_EQ(ParseMilli("0.5"), 500);
  EXPECT_EQ(ParseMilli("1e3"), 1000000);
  EXPECT_EQ(ParseMilli("2Gi"), (int64_t{2} << 30) * 1000);
  EXPECT_EQ(ParseMilli("128974848000m"), 128974848000);
  EXPECT_EQ(ParseMilli("1E"), int64_t{9000000000000000000});
  for (const char* nonsense : {"", "x", "1x", "-1", "1..2", "Gi"}) {
    EXPECT_FALSE(ParseMilli(nonsense).has_value()) << nonsense;
  }
  const Amounts amounts = ParseAmounts({{"cpu", "1500m"}, {"memory", "1Mi"}, {"x", "?"}});
  EXPECT_EQ(amounts, (Amounts{{"cpu", 1500}, {"memory", 1 << 20}}));
}

}  // namespace
}  // namespace rempart::op
