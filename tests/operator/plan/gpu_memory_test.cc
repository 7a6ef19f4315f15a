// SPDX-License-Identifier: Apache-2.0
// A model that does not fit its nodes' GPUs: what a worker has told of it once is enough to keep
// later pods off GPUs that are too small, with the numbers.
#include "operator/plan/gpu_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "operator/plan/group_objects.h"
#include "operator/plan/placement.h"
#include "tests/operator/plan/observations.h"

namespace rempart::op {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;

// A model of 40 GiB a rank on two ranks.
ModelStatus Known() {
  ModelStatus status;
  auto& memory = *status.mutable_rank_memory();
  memory.set_weights_mib(40'000);
  memory.set_workspace_mib(1000);
  memory.set_kv_cache_mib(500);
  memory.set_reserve_mib(2048);
  memory.set_source("pvc://models/a/smollm2.gguf");
  memory.set_tensor(2);
  memory.set_engine("contextLength 0, maxSequences 0, kvCacheType auto, kvCacheMib 0");
  return status;
}
Observed OnGpus(int32_t tensor, int32_t ranks_per_pod) {
  Observed observed = OneModel();
  auto& spec = *observed.model.mutable_spec();
  spec.set_device("gpu");
  spec.mutable_parallelism()->set_tensor(tensor);
  spec.mutable_parallelism()->set_ranks_per_pod(ranks_per_pod);
  return observed;
}
// MiB of each GPU; 0: the node does not tell.
NodeObservation NodeWith(const std::string& name, int64_t mib, int64_t gpus = 8) {
  NodeObservation node = Nodes(1)[0];
  node.name = name;
  node.labels[kHostnameLabel] = name;
  if (mib > 0) node.labels["nvidia.com/gpu.memory"] = absl::StrCat(mib);
  node.allocatable["nvidia.com/gpu"] = gpus;
  return node;
}
k8s::v1::PodSpec PodOf(const Observed& observed) {
  return MakeGroupObjects(observed, MakePlan(observed).groups.at(0))
      .stateful_set.spec()
      .template_()
      .spec();
}
std::vector<std::string> KeptOff(const k8s::v1::PodSpec& pod) {
  std::vector<std::string> nodes;
  for (const auto& term : pod.affinity().node_affinity().required().node_selector_terms()) {
    for (const auto& one : term.match_expressions()) {
      if (one.key() != kHostnameLabel) continue;
      EXPECT_EQ(one.operator_(), "NotIn");
      nodes.insert(nodes.end(), one.values().begin(), one.values().end());
    }
  }
  return nodes;
}

TEST(GpuMemory, ARankNeedsWhatAWorkerHasTold) {
  const Observed observed = OnGpus(2, 2);
  const auto need = NeedOfRank(Known(), observed.model.spec());
  ASSERT_TRUE(need.has_value());
  EXPECT_EQ(need->mib, 40'000 + 1000 + 500 + 2048);
  EXPECT_EQ(need->words,
            "a rank takes at least 43548 MiB: 40000 for weights, 1000 for workspaces, 500 for the "
            "KV cache and 2048 in reserve");
}

TEST(GpuMemory, OfOtherSettingsOnlyWhatIsSureCounts) {
  Observed longer = OnGpus(2, 2);
  longer.model.mutable_spec()->mutable_engine()->set_context_length(1024);
  EXPECT_EQ(NeedOfRank(Known(), longer.model.spec())->mib, 40'000 + 2048);
  // Half the weights each, about.
  EXPECT_EQ(NeedOfRank(Known(), OnGpus(4, 4).model.spec())->mib, 18'000 + 2048);
  EXPECT_EQ(NeedOfRank(Known(), OnGpus(1, 1).model.spec())->mib, 72'000 + 2048);
}

TEST(GpuMemory, NothingIsKnownOfAnotherSourceOfTheCpuOfClaimsAndOfStages) {
  Observed other = OnGpus(2, 2);
  other.model.mutable_spec()->mutable_source()->set_uri("pvc://models/b");
  EXPECT_FALSE(NeedOfRank(Known(), other.model.spec()).has_value());
  Observed on_cpu = OnGpus(2, 2);
  on_cpu.model.mutable_spec()->set_device("cpu");
  EXPECT_FALSE(NeedOfRank(Known(), on_cpu.model.spec()).has_value());
  Observed claims = OnGpus(2, 2);
  claims.model.mutable_spec()->mutable_resources()->add_claims()->set_name("gpus");
  EXPECT_FALSE(NeedOfRank(Known(), claims.model.spec()).has_value());
  Observed stages = OnGpus(2, 2);
  stages.model.mutable_spec()->mutable_parallelism()->set_pipeline(2);
  EXPECT_FALSE(NeedOfRank(Known(), stages.model.spec()).has_value());
  EXPECT_FALSE(NeedOfRank({}, OnGpus(2, 2).model.spec()).has_value());
}

TEST(GpuMemory, NodesThatTellLessAreTooSmall) {
  Observed observed = OnGpus(2, 2);
  RankNeed need;
  need.mib = 43'548;
  NodeObservation odd = NodeWith("odd", 0);
  odd.labels["nvidia.com/gpu.memory"] = "plenty";
  const std::vector<NodeObservation> nodes = {NodeWith("a", 24'576), NodeWith("b", 81'559),
                                              NodeWith("c", 0), NodeWith("d", 43'548), odd};
  EXPECT_THAT(SmallNodes(nodes, observed.model.spec(), need), ElementsAre(Pair("a", 24'576)));
  // Of slices, the slices' own.
  (*observed.model.mutable_spec()
        ->mutable_resources()
        ->mutable_limits())["nvidia.com/mig-3g.40gb"] = "2";
  NodeObservation sliced = NodeWith("s", 81'559);
  sliced.labels["nvidia.com/mig-3g.40gb.memory"] = "40320";
  EXPECT_THAT(SmallNodes({sliced}, observed.model.spec(), need), ElementsAre(Pair("s", 40'320)));
}

// Two pods of one rank: the operator places them.
TEST(GpuMemory, AGroupWaitsForGpusThatAreLargeEnoughAndSaysWhatTheyHave) {
  Observed observed = OnGpus(2, 1);
  observed.groups = {Serving(observed, 0)};
  *observed.model.mutable_status()->mutable_rank_memory() = Known().rank_memory();
  GroupObservation& group = observed.groups[0];
  group.progress = {};
  group.members = {};
  for (PodObservation& pod : group.pods) {
    pod.gated = true;
    pod.ready = false;
    pod.node = "";
    pod.phase = "Pending";
  }
  observed.nodes = {NodeWith("a", 24'576), NodeWith("b", 40'960)};
  const Plan waits = MakePlan(observed);
  EXPECT_THAT(waits.releases, IsEmpty());
  const auto& fits = ConditionOf(waits, "Fits");
  EXPECT_EQ(fits.status(), "False");
  EXPECT_THAT(fits.message(), HasSubstr("a: its GPUs have 24576 MiB each, and a rank takes at "
                                        "least 43548 MiB: 40000 for weights"));
  EXPECT_THAT(fits.message(), HasSubstr("b: its GPUs have 40960 MiB each"));
  observed.nodes.push_back(NodeWith("c", 81'559));
  const Plan placed = MakePlan(observed);
  ASSERT_EQ(placed.releases.size(), 2u);
  for (const PodRelease& release : placed.releases) EXPECT_EQ(release.node, "c");
}

// One pod: the scheduler places it, and learns from the template where not.
TEST(GpuMemory, ASinglePodIsKeptOffNodesWithSmallGpus) {
  Observed observed = OnGpus(2, 2);
  observed.nodes = {NodeWith("a", 24'576), NodeWith("b", 81'559)};
  EXPECT_THAT(KeptOff(PodOf(observed)), IsEmpty()) << "nothing is known yet";
  const std::string before = MakePlan(observed).groups.at(0).config_hash;
  *observed.model.mutable_status()->mutable_rank_memory() = Known().rank_memory();
  EXPECT_THAT(KeptOff(PodOf(observed)), ElementsAre("a"));
  EXPECT_EQ(MakePlan(observed).groups.at(0).config_hash, before) << "no reason to replace pods";
  (*observed.model.mutable_metadata()->mutable_labels())[kQueueLabel] = "gpus";
  EXPECT_THAT(KeptOff(PodOf(observed)), ElementsAre("a")) << "whoever admits it";
}

TEST(GpuMemory, APodThatCannotRunWhereItIsGoesAndItsGroupSaysWhy) {
  Observed observed = OnGpus(2, 2);
  observed.model.mutable_spec()->mutable_rollout()->set_drain_seconds(0);
  observed.groups = {Serving(observed, 0)};
  *observed.model.mutable_status()->mutable_rank_memory() = Known().rank_memory();
  observed.nodes = {NodeWith("node-0", 24'576)};
  EXPECT_THAT(MakePlan(observed).deletions, IsEmpty()) << "what serves is left alone";
  GroupObservation& group = observed.groups[0];
  group.pods[0].ready = false;
  group.progress.phase = WorkerPhase::kFailed;
  group.progress.reason = "InsufficientMemory";
  group.progress.message = "the GPU has 24000 MiB free, and needs 40000 for weights";
  group.progress.config_hash = group.config_hash;
  const Plan goes = MakePlan(observed);
  ASSERT_EQ(goes.deletions.size(), 1u);
  EXPECT_EQ(goes.deletions[0].pod, "smollm2-0-0");
  EXPECT_THAT(goes.deletions[0].why, HasSubstr("node-0 has too small GPUs: a rank takes at least"));
  // Its successor finds no node, and nobody starts it in vain.
  group.progress = {};
  group.members = {};
  group.pods[0].uid = "uid-new";
  group.pods[0].node = "";
  group.pods[0].phase = "Pending";
  group.pods[0].unschedulable = "0/1 nodes are available: 1 node(s) didn't match affinity";
  const Plan waits = MakePlan(observed);
  EXPECT_THAT(waits.deletions, IsEmpty());
  EXPECT_EQ(ConditionOf(waits, "Fits").status(), "False");
  EXPECT_THAT(waits.status.message(),
              HasSubstr("GPUs have too little memory, of node-0 24576 MiB: a rank takes at least "
                        "43548 MiB"));
  EXPECT_THAT(waits.status.message(), HasSubstr("Raise spec.parallelism.tensor"));
}

TEST(GpuMemory, IsKeptInTheStatusForTheSourceThatItHoldsFor) {
  Observed observed = OnGpus(2, 2);
  observed.groups = {Serving(observed, 0)};
  WorkerProgress& progress = observed.groups[0].progress;
  progress.config_hash = observed.groups[0].config_hash;
  progress.rank_memory = {40'000, 1000, 500, 2048};
  const Plan told = MakePlan(observed);
  EXPECT_EQ(told.status.rank_memory().SerializeAsString(),
            Known().rank_memory().SerializeAsString());
  *observed.model.mutable_status() = told.status;
  progress.rank_memory = {};  // its stream is down
  EXPECT_EQ(MakePlan(observed).status.rank_memory().weights_mib(), 40'000);
  progress.rank_memory = {7, 7, 7, 7};
  progress.config_hash = "another";
  EXPECT_EQ(MakePlan(observed).status.rank_memory().weights_mib(), 40'000);
  observed.model.mutable_spec()->mutable_source()->set_uri("pvc://models/b");
  EXPECT_FALSE(MakePlan(observed).status.has_rank_memory());
}

TEST(GpuMemory, NoMoreNodesAreNamedThanOneReads) {
  GroupPlan group;
  group.rank_need = "a rank takes much";
  EXPECT_EQ(SmallNodesInWords(group), "");
  for (int i = 0; i < 6; ++i) group.small_nodes[absl::StrCat("n", i)] = 100 + i;
  EXPECT_THAT(
      SmallNodesInWords(group),
      HasSubstr("of n0 100 MiB, of n1 101 MiB, of n2 102 MiB, of n3 103 MiB, and of 2 more: "
                "a rank takes much"));
  EXPECT_THAT(SmallNodesInWords(group), Not(HasSubstr("n4")));
}

}  // namespace
}  // namespace rempart::op
