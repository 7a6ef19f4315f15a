// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "operator/plan/group_objects.h"
#include "tests/operator/plan/observations.h"

namespace rempart::op {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(MakePlan, AnAcceptedModelGetsOneGroup) {
  const Plan plan = MakePlan(OneModel());
  ASSERT_EQ(plan.groups.size(), 1u);
  const GroupPlan& group = plan.groups[0];
  EXPECT_EQ(group.name, "smollm2-0");
  EXPECT_EQ(group.config.model_path(), "/models/a/smollm2.gguf");
  EXPECT_EQ(group.config.group_name(), "ia/smollm2-0");
  EXPECT_THAT(group.config.served_names(), ElementsAre("smollm2"));
  EXPECT_EQ(group.volume.claim, "models");
  EXPECT_TRUE(group.apply);
  EXPECT_EQ(ConditionOf(plan, "Accepted").status(), "True");
}

TEST(MakePlan, IsTheSameForTheSameSnapshot) {
  Observed observed = OneModel();
  (*observed.model.mutable_spec()->mutable_placement()->mutable_node_selector())["b"] = "1";
  (*observed.model.mutable_spec()->mutable_placement()->mutable_node_selector())["a"] = "2";
  EXPECT_EQ(MakePlan(observed).groups[0].config_hash, MakePlan(observed).groups[0].config_hash);
}

TEST(MakePlan, ScalingUpAddsGroupsAndLeavesTheFirstAsItIs) {
  Observed observed = OneModel();
  observed.groups = {Serving(observed, 0)};
  observed.model.mutable_spec()->set_replicas(3);
  const Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.groups.size(), 3u);
  EXPECT_EQ(plan.groups[0].config_hash, observed.groups[0].config_hash);
  for (const GroupPlan& group : plan.groups) EXPECT_TRUE(group.apply);
  EXPECT_THAT(plan.removed_groups, IsEmpty());
  EXPECT_EQ(ConditionOf(plan, "Ready").status(), "True");
  EXPECT_EQ(ConditionOf(plan, "Progressing").status(), "True");
  EXPECT_EQ(plan.status.groups_summary(), "1/3");
}

TEST(MakePlan, ScalingDownRemovesTheLastGroups) {
  Observed observed = OneModel();
  observed.model.mutable_spec()->mutable_rollout()->set_drain_seconds(0);
  observed.groups = {Serving(observed, 0), Serving(observed, 1), Serving(observed, 2)};
  EXPECT_THAT(MakePlan(observed).removed_groups, ElementsAre("smollm2-1", "smollm2-2"));
  observed.model.mutable_spec()->set_replicas(0);
  const Plan asleep = MakePlan(observed);
  EXPECT_EQ(asleep.removed_groups.size(), 3u);
  EXPECT_EQ(asleep.status.phase(), "Sleeping");
}

TEST(MakePlan, AnEditReplacesOneServingGroupAtATime) {
  Observed observed = OneModel();
  observed.model.mutable_spec()->set_replicas(2);
  observed.groups = {Serving(observed, 0), Serving(observed, 1)};
  observed.model.mutable_spec()->mutable_engine()->set_context_length(4096);
  Plan plan = MakePlan(observed);
  EXPECT_TRUE(plan.groups[0].apply);
  EXPECT_FALSE(plan.groups[1].apply);

  // The first has its new template and loads: the second waits.
  observed.groups[0].config_hash = plan.groups[0].config_hash;
  observed.groups[0].progress.phase = WorkerPhase::kLoading;
  EXPECT_FALSE(MakePlan(observed).groups[1].apply);

  // The first serves again: it is the second's turn.
  observed.groups[0].progress.phase = WorkerPhase::kReady;
  EXPECT_TRUE(MakePlan(observed).groups[1].apply);
}

TEST(MakePlan, AnEditReachesAGroupThatDoesNotServeAtOnce) {
  Observed observed = OneModel();
  observed.model.mutable_spec()->set_replicas(2);
  observed.groups = {Serving(observed, 0), Serving(observed, 1)};
  observed.groups[1].progress.phase = WorkerPhase::kFailed;
  observed.model.mutable_spec()->mutable_engine()->set_context_length(4096);
  const Plan plan = MakePlan(observed);
  EXPECT_FALSE(plan.groups[0].apply);
  EXPECT_TRUE(plan.groups[1].apply);
}

TEST(MakePlan, ARefusedEditStopsNothingThatServes) {
  Observed observed = OneModel();
  observed.groups = {Serving(observed, 0)};
  observed.model.mutable_spec()->mutable_autoscaling()->set_max(2);
  const Plan plan = MakePlan(observed);
  EXPECT_THAT(plan.groups, IsEmpty());
  EXPECT_THAT(plan.removed_groups, IsEmpty());
  EXPECT_EQ(ConditionOf(plan, "Accepted").status(), "False");
  EXPECT_EQ(ConditionOf(plan, "Ready").status(), "True");
}

struct RefusedRow {
  std::string what;
  void (*change)(Observed&);
  std::string reason;
  std::string words;
};

TEST(MakePlan, RefusesWhatThisVersionDoesNotDo) {
  const std::vector<RefusedRow> rows = {
      {"autoscaling",
       [](Observed& o) { o.model.mutable_spec()->mutable_autoscaling()->set_max(2); },
       "NotSupported", "set replicas instead of autoscaling"},
      {"too many ranks for a group",
       [](Observed& o) {
         o.model.mutable_spec()->mutable_parallelism()->set_tensor(8);
         o.model.mutable_spec()->mutable_parallelism()->set_pipeline(9);
       },
       "InvalidParallelism", "tensor: 8 times pipeline: 9 are 72 ranks; a group has at most 64"},
      {"ranks that do not divide",
       [](Observed& o) {
         o.model.mutable_spec()->mutable_parallelism()->set_tensor(6);
         o.model.mutable_spec()->mutable_parallelism()->set_ranks_per_pod(4);
       },
       "InvalidParallelism", "choose one of 1, 2, 3, 6"},
      {"steps shorter than the default of sequences",
       [](Observed& o) { o.model.mutable_spec()->mutable_engine()->set_max_step_tokens(31); },
       "InvalidEngine", "spec.engine.maxStepTokens: 31 is less than maxSequences, 32"},
      {"steps shorter than sequences",
       [](Observed& o) {
         o.model.mutable_spec()->mutable_engine()->set_max_sequences(100);
         o.model.mutable_spec()->mutable_engine()->set_max_step_tokens(99);
       },
       "InvalidEngine", "spec.engine.maxStepTokens: 99 is less than maxSequences, 100"},
      {"too many ranks for a pod",
       [](Observed& o) { o.model.mutable_spec()->mutable_parallelism()->set_tensor(32); },
       "InvalidParallelism", "ranksPerPod is missing"},
      {"oci", [](Observed& o) { o.model.mutable_spec()->mutable_source()->set_uri("oci://r/m:1"); },
       "NotSupported", "oci:// cannot be fetched yet"},
      {"node path",
       [](Observed& o) { o.model.mutable_spec()->mutable_source()->set_uri("file:///m.gguf"); },
       "NodePathsDisabled", "models.allowNodePaths=true"},
      {"pvc without path",
       [](Observed& o) { o.model.mutable_spec()->mutable_source()->set_uri("pvc://models"); },
       "InvalidSource", "pvc://claim/path"},
      {"pvc out of the claim",
       [](Observed& o) { o.model.mutable_spec()->mutable_source()->set_uri("pvc://m/../x"); },
       "InvalidSource", "without \"..\""},
      {"long name", [](Observed& o) { o.model.mutable_metadata()->set_name(std::string(47, 'a')); },
       "NameTooLong", "the limit is 46"},
      {"name of an older Model",
       [](Observed& o) {
         o.others = {{"ia/first", {"smollm2"}, "2026-01-01T00:00:00Z"}};
       },
       "ServedNameTaken", "\"smollm2\" is already served by Model ia/first"},
      {"name of the same second",
       [](Observed& o) {
         o.others = {{"ia/a", {"smollm2"}, "2026-01-02T00:00:00Z"}};
       },
       "ServedNameTaken", "ia/a"},
  };
  for (const RefusedRow& row : rows) {
    Observed observed = OneModel();
    row.change(observed);
    const Plan plan = MakePlan(observed);
    EXPECT_THAT(plan.groups, IsEmpty()) << row.what;
    EXPECT_EQ(ConditionOf(plan, "Accepted").status(), "False") << row.what;
    EXPECT_EQ(ConditionOf(plan, "Accepted").reason(), row.reason) << row.what;
    EXPECT_THAT(plan.status.message(), HasSubstr(row.words)) << row.what;
    EXPECT_EQ(plan.status.phase(), "Failed") << row.what;
  }
}

TEST(MakePlan, RefusesACacheOfRepackedWeightsThatIsNotMeantToBeOne) {
  const auto cached = [](Observed& o) -> serving::v1alpha1::EngineSpec& {
    o.model.mutable_spec()->mutable_engine()->set_repack_cache_claim("repacked");
    o.cache_claim = ClaimState::kFound;
    return *o.model.mutable_spec()->mutable_engine();
  };
  struct Row {
    std::function<void(Observed&)> change;
    std::string reason, words;
  };
  const std::vector<Row> rows = {
      {[&](Observed& o) { o.cache_claim = ClaimState::kMissing; }, "CacheClaimNotFound",
       "repackCacheClaim: repacked: there is no such PersistentVolumeClaim in namespace ia"},
      {[&](Observed& o) { o.cache_claim = ClaimState::kUnmarked; }, "CacheClaimNotMarked",
       "kubectl -n ia label pvc repacked rempart.dev/repack-cache=true"},
      {[&](Observed& o) { cached(o).set_repack_cache_claim("models"); }, "InvalidCacheClaim",
       "make another one for repacked weights"},
      {[&](Observed& o) { o.model.mutable_spec()->set_device("gpu"); }, "NotSupported",
       "a GPU reads weights as they are in the file"},
      {[&](Observed& o) { cached(o).set_arithmetic("exact"); }, "NotSupported",
       "exact arithmetic repacks nothing"},
      {[&](Observed& o) {
         o.settings.local = true;
         o.model.mutable_spec()->mutable_source()->set_uri("file:///srv/a.gguf");
       },
       "NotSupported", "there are no claims outside Kubernetes"},
  };
  for (const Row& row : rows) {
    Observed observed = OneModel();
    cached(observed);
    row.change(observed);
    const Plan plan = MakePlan(observed);
    EXPECT_THAT(plan.groups, IsEmpty()) << row.words;
    EXPECT_EQ(ConditionOf(plan, "Accepted").reason(), row.reason) << row.words;
    EXPECT_THAT(plan.status.message(), HasSubstr(row.words));
  }
}

TEST(MakePlan, KeepsItsNameAgainstAYoungerModel) {
  Observed observed = OneModel();
  observed.others = {{"ia/second", {"smollm2"}, "2026-01-05T00:00:00Z"}};
  EXPECT_EQ(ConditionOf(MakePlan(observed), "Accepted").status(), "True");
}

TEST(MakePlan, ServesNodePathsWhereTheChartAllowsThem) {
  Observed observed = OneModel();
  observed.settings.allow_node_paths = true;
  observed.claim = ClaimState::kNotNeeded;
  observed.model.mutable_spec()->mutable_source()->set_uri("file:///srv/models/a.gguf");
  const Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.groups.size(), 1u);
  EXPECT_THAT(plan.groups[0].volume.node_paths, ElementsAre("/srv/models/a.gguf"));
  EXPECT_EQ(plan.groups[0].config.model_path(), "/models/a.gguf");
}

TEST(MakePlan, MountsEachPartOfAModelInSeveralFiles) {
  Observed observed = OneModel();
  observed.settings.allow_node_paths = true;
  observed.claim = ClaimState::kNotNeeded;
  auto& source = *observed.model.mutable_spec()->mutable_source();
  source.set_uri("file:///srv/a-00001-of-00002.gguf");
  const Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.groups.size(), 1u);
  EXPECT_EQ(plan.groups[0].config.model_path(), "/models/a-00001-of-00002.gguf");
  const auto pod =
      MakeGroupObjects(observed, plan.groups[0]).stateful_set.spec().template_().spec();
  std::map<std::string, std::string> mounted;
  for (const auto& volume : pod.volumes()) {
    if (volume.has_host_path()) mounted[volume.name()] = volume.host_path().path();
  }
  EXPECT_THAT(mounted, ElementsAre(Pair("weights", "/srv/a-00001-of-00002.gguf"),
                                   Pair("weights-2", "/srv/a-00002-of-00002.gguf")));
  for (const auto& mount : pod.containers(0).volume_mounts()) {
    const auto path = mounted.find(mount.name());
    if (path == mounted.end()) continue;
    EXPECT_EQ(mount.mount_path(), "/models" + path->second.substr(4));
    EXPECT_TRUE(mount.read_only());
    mounted.erase(path);
  }
  EXPECT_THAT(mounted, IsEmpty()) << "not mounted";
  source.set_uri("file:///srv/a-00002-of-00002.gguf");
  EXPECT_THAT(MakePlan(observed).status.message(),
              HasSubstr("spec.source.uri: /srv/a-00002-of-00002.gguf: is part 2 of 2 of a model: "
                        "name its first part, /srv/a-00001-of-00002.gguf"));
  source.set_uri("file:///srv/a-00001-of-00065.gguf");
  EXPECT_THAT(MakePlan(observed).status.message(), HasSubstr("names 65 parts; of a path of the "
                                                             "node at most 64 are mounted"));
}

TEST(MakePlan, LocallyAPathIsAPathOfThisMachine) {
  Observed observed = OneModel();
  observed.settings.local = true;
  EXPECT_THAT(MakePlan(observed).status.message(), HasSubstr("use file:///path"));
  observed.model.mutable_spec()->mutable_source()->set_uri("file:///srv/a.gguf");
  const Plan plan = MakePlan(observed);
  ASSERT_EQ(plan.groups.size(), 1u);
  EXPECT_EQ(plan.groups[0].config.model_path(), "/srv/a.gguf");
  EXPECT_FALSE(plan.groups[0].config.has_tls());
}

TEST(MakePlan, TheWorkerChecksTheDigestThatTheSourceNames) {
  Observed observed = OneModel();
  EXPECT_EQ(MakePlan(observed).groups.at(0).config.model_digest(), "");
  const std::string digest = "sha256:" + std::string(64, 'a');
  observed.model.mutable_spec()->mutable_source()->set_digest(digest);
  EXPECT_EQ(MakePlan(observed).groups.at(0).config.model_digest(), digest);
}

TEST(MakePlan, TheWorkerHearsOfTheSizeOfItsKvCacheWhereTheManifestNamesOne) {
  Observed observed = OneModel();
  const GroupPlan unnamed = MakePlan(observed).groups.at(0);
  EXPECT_EQ(unnamed.config.engine().kv_cache_mib(), 0);
  observed.model.mutable_spec()->mutable_engine()->set_kv_cache_mib(3000);
  const GroupPlan named = MakePlan(observed).groups.at(0);
  EXPECT_EQ(named.config.engine().kv_cache_mib(), 3000);
  EXPECT_EQ(named.config.engine().max_step_tokens(), 0);
  observed.model.mutable_spec()->mutable_engine()->set_max_step_tokens(4096);
  const GroupPlan long_steps = MakePlan(observed).groups.at(0);
  EXPECT_EQ(long_steps.config.engine().max_step_tokens(), 4096);
  EXPECT_NE(long_steps.config_hash, named.config_hash);
  EXPECT_NE(named.config_hash, unnamed.config_hash);
  EXPECT_THAT(MakeGroupObjects(observed, named).config_map.data().at("worker.json"),
              HasSubstr("\"kvCacheMib\": 3000"));
}

TEST(MakeGroupObjects, RunsWithoutRightsAndBelongsToItsModel) {
  const Observed observed = OneModel();
  const Plan plan = MakePlan(observed);
  const GroupObjects objects = MakeGroupObjects(observed, plan.groups[0]);
  EXPECT_EQ(objects.stateful_set.metadata().owner_references(0).uid(), "u-1");
  EXPECT_EQ(objects.service.spec().cluster_ip(), "None");
  EXPECT_THAT(objects.config_map.data().at("worker.json"), HasSubstr("/models/a/smollm2.gguf"));
  const auto& pod = objects.stateful_set.spec().template_().spec();
  EXPECT_TRUE(pod.security_context().run_as_non_root());
  EXPECT_FALSE(pod.automount_service_account_token());
  const auto& container = pod.containers(0);
  EXPECT_TRUE(container.security_context().read_only_root_filesystem());
  EXPECT_THAT(container.security_context().capabilities().drop(), ElementsAre("ALL"));
  for (const auto& mount : container.volume_mounts()) EXPECT_TRUE(mount.read_only());
  EXPECT_EQ(objects.stateful_set.spec().template_().metadata().annotations().at(kConfigAnnotation),
            plan.groups[0].config_hash);
}

TEST(MakeGroupObjects, KeepsRepackedWeightsInTheClaimThatTheManifestNames) {
  Observed observed = OneModel();
  const GroupPlan without = MakePlan(observed).groups.at(0);
  EXPECT_EQ(without.config.repack_cache_folder(), "");
  observed.model.mutable_spec()->mutable_engine()->set_repack_cache_claim("repacked");
  observed.cache_claim = ClaimState::kFound;
  const GroupPlan group = MakePlan(observed).groups.at(0);
  EXPECT_NE(group.config_hash, without.config_hash);
  // A folder of the worker's own, below a root that the kubelet may have opened to a group.
  EXPECT_EQ(group.config.repack_cache_folder(), "/var/cache/rempart/repacked");
  const auto pod = MakeGroupObjects(observed, group).stateful_set.spec().template_().spec();
  EXPECT_EQ(pod.security_context().fs_group_change_policy(), "OnRootMismatch");
  int writable = 0;
  for (const auto& mount : pod.containers(0).volume_mounts()) {
    if (mount.read_only()) continue;
    ++writable;
    EXPECT_EQ(mount.name(), "repacked");
    EXPECT_EQ(mount.mount_path(), "/var/cache/rempart");
  }
  EXPECT_EQ(writable, 1);
  for (const auto& volume : pod.volumes()) {
    // What the restricted Pod Security Standard lets a pod mount.
    EXPECT_FALSE(volume.has_host_path()) << volume.name();
    if (volume.name() != "repacked") continue;
    EXPECT_EQ(volume.persistent_volume_claim().claim_name(), "repacked");
    EXPECT_FALSE(volume.persistent_volume_claim().read_only());
  }
  const auto before = MakeGroupObjects(observed, without).stateful_set.spec().template_().spec();
  EXPECT_EQ(before.security_context().fs_group_change_policy(), "");
}

TEST(MakeGroupObjects, RanksBecomePodsThatWaitForEachOther) {
  const Observed observed = OneModelOfThreePods();
  const GroupPlan group = MakePlan(observed).groups.at(0);
  EXPECT_EQ(group.pod_count, 3);
  EXPECT_EQ(group.config.tensor_parallel(), 3);
  EXPECT_EQ(group.config.ranks_per_pod(), 1);
  EXPECT_EQ(group.config.data_address(), "0.0.0.0:7071");
  EXPECT_EQ(group.config.config_hash(), group.config_hash);
  const GroupObjects objects = MakeGroupObjects(observed, group);
  EXPECT_EQ(objects.stateful_set.spec().replicas(), 3);
  EXPECT_EQ(objects.stateful_set.spec().update_strategy().type(), "OnDelete");
  const auto& pod = objects.stateful_set.spec().template_().spec();
  ASSERT_EQ(pod.scheduling_gates_size(), 1);
  EXPECT_EQ(pod.scheduling_gates(0).name(), "rempart.dev/placement");
  EXPECT_EQ(pod.containers(0).ports_size(), 2);
  ASSERT_TRUE(objects.network_policy.has_value());
  const auto& policy = objects.network_policy->spec();
  EXPECT_EQ(policy.pod_selector().match_labels().at(kGroupLabel), "smollm2-0");
  ASSERT_EQ(policy.ingress_size(), 2);
  EXPECT_EQ(policy.ingress(1).from(0).pod_selector().match_labels().at(kGroupLabel), "smollm2-0");
}

TEST(MakePlan, EachStageOfAPipelineHasPodsOfItsOwn) {
  Observed observed = OneModel();
  auto& parallelism = *observed.model.mutable_spec()->mutable_parallelism();
  parallelism.set_tensor(4);
  parallelism.set_pipeline(3);
  GroupPlan group = MakePlan(observed).groups.at(0);
  EXPECT_EQ(group.ranks_per_pod, 4);
  EXPECT_EQ(group.pod_count, 3);
  EXPECT_EQ(group.config.tensor_parallel(), 4);
  EXPECT_EQ(group.config.pipeline_parallel(), 3);
  EXPECT_EQ(group.config.data_address(), "0.0.0.0:7071");
  EXPECT_EQ(MakeGroupObjects(observed, group).stateful_set.spec().replicas(), 3);
  parallelism.set_ranks_per_pod(2);
  group = MakePlan(observed).groups.at(0);
  EXPECT_EQ(group.ranks_per_pod, 2);
  EXPECT_EQ(group.pod_count, 6);
  parallelism.clear_tensor();
  parallelism.clear_ranks_per_pod();
  group = MakePlan(observed).groups.at(0);
  EXPECT_EQ(group.ranks_per_pod, 1);
  EXPECT_EQ(group.pod_count, 3);
}

TEST(MakeGroupObjects, OnePodHasNobodyToWaitFor) {
  Observed observed = OneModel();
  observed.model.mutable_spec()->mutable_parallelism()->set_tensor(4);
  const GroupPlan group = MakePlan(observed).groups.at(0);
  EXPECT_EQ(group.pod_count, 1);
  EXPECT_EQ(group.ranks_per_pod, 4);
  const GroupObjects objects = MakeGroupObjects(observed, group);
  EXPECT_EQ(objects.stateful_set.spec().template_().spec().scheduling_gates_size(), 0);
  EXPECT_FALSE(objects.network_policy.has_value());
}

TEST(MakeGroupObjects, ExclusionOfANodeReplacesNoPod) {
  Observed observed = OneModel();
  const GroupPlan before = MakePlan(observed).groups.at(0);
  auto& suspect = *observed.model.mutable_status()->add_suspect_nodes();
  suspect.set_name("node-1");
  suspect.set_excluded(true);
  const GroupPlan after = MakePlan(observed).groups.at(0);
  EXPECT_EQ(after.config_hash, before.config_hash);
  const auto pod = MakeGroupObjects(observed, after).stateful_set.spec().template_().spec();
  const auto& term = pod.affinity().node_affinity().preferred(0).preference();
  EXPECT_EQ(term.match_expressions(0).operator_(), "NotIn");
  EXPECT_EQ(term.match_expressions(0).values(0), "node-1");
}

TEST(MakeGroupObjects, AQueueOfKueueTakesThePlaceOfOurGate) {
  Observed observed = OneModelOfThreePods();
  (*observed.model.mutable_metadata()->mutable_labels())[kQueueLabel] = "team-a";
  const auto pod =
      MakeGroupObjects(observed, MakePlan(observed).groups.at(0)).stateful_set.spec().template_();
  EXPECT_EQ(pod.spec().scheduling_gates_size(), 0);
  EXPECT_EQ(pod.metadata().labels().at(kQueueLabel), "team-a");
  EXPECT_EQ(pod.metadata().annotations().at("kueue.x-k8s.io/pod-group-total-count"), "3");
}

}  // namespace
}  // namespace rempart::op
