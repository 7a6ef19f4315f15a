// SPDX-License-Identifier: Apache-2.0
// What device: gpu means to a plan: which manifests are accepted, what their pods ask for, and
// where they may go. Nodes have GPUs by saying so, as a device plugin does for them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "operator/plan/placement.h"
#include "tests/operator/plan/gpu_models.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::ModelSpec;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Key;
using ::testing::Not;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

TEST(Gpu, WhatIsAcceptedAndWhatIsRefused) {
  const std::vector<AcceptanceRow> rows = {
      {"one rank", [](ModelSpec&) {}, "", ""},
      {"one rank that says so", [](ModelSpec& s) { s.mutable_parallelism()->set_tensor(1); }, "",
       ""},
      {"several groups", [](ModelSpec& s) { s.set_replicas(4); }, "", ""},
      {"a cache in fp8", [](ModelSpec& s) { s.mutable_engine()->set_kv_cache_type("fp8"); }, "",
       ""},
      {"a cache in bf16", [](ModelSpec& s) { s.mutable_engine()->set_kv_cache_type("bf16"); }, "",
       ""},
      {"as many GPUs as ranks",
       [](ModelSpec& s) { (*s.mutable_resources()->mutable_limits())["nvidia.com/gpu"] = "1"; }, "",
       ""},
      {"ranks that share layers", [](ModelSpec& s) { s.mutable_parallelism()->set_tensor(2); }, "",
       ""},
      {"ranks in several pods",
       [](ModelSpec& s) {
         s.mutable_parallelism()->set_tensor(8);
         s.mutable_parallelism()->set_ranks_per_pod(4);
         (*s.mutable_resources()->mutable_limits())["nvidia.com/gpu"] = "4";
       },
       "", ""},
      {"a GPU for two ranks",
       [](ModelSpec& s) {
         s.mutable_parallelism()->set_tensor(2);
         (*s.mutable_resources()->mutable_limits())["nvidia.com/gpu"] = "1";
       },
       "InvalidResources",
       "spec.resources.limits asks for 1 nvidia.com/gpu, but a pod of this "
       "Model has 2 ranks with a GPU each: set it to 2, or leave it out"},
      {"stages", [](ModelSpec& s) { s.mutable_parallelism()->set_pipeline(3); }, "", ""},
      {"a cache of the CPU's", [](ModelSpec& s) { s.mutable_engine()->set_kv_cache_type("q8"); },
       "NotSupported", "q8 is of device: cpu; on a GPU use auto, bf16 or fp8"},
      {"arithmetic of the CPU's", [](ModelSpec& s) { s.mutable_engine()->set_arithmetic("exact"); },
       "NotSupported", "exact is of device: cpu"},
      {"a GPU's cache on CPU",
       [](ModelSpec& s) {
         s.set_device("cpu");
         s.mutable_engine()->set_kv_cache_type("fp8");
       },
       "NotSupported", "fp8 is of device: gpu"},
      {"a GPU that would stand idle",
       [](ModelSpec& s) { (*s.mutable_resources()->mutable_limits())["nvidia.com/gpu"] = "2"; },
       "InvalidResources",
       "spec.resources.limits asks for 2 nvidia.com/gpu, but a pod of this "
       "Model has 1 rank with a GPU each: set it to 1, or leave it out"},
      {"a rank without a GPU",
       [](ModelSpec& s) { (*s.mutable_resources()->mutable_requests())["nvidia.com/gpu"] = "0"; },
       "InvalidResources", "spec.resources.requests asks for 0 nvidia.com/gpu"},
  };
  ExpectAcceptance(rows);
}

TEST(Gpu, WhichVariablesOfNcclPass) {
  ExpectAcceptance({
      {"variables of NCCL's",
       [](ModelSpec& s) {
         (*s.mutable_parallelism()->mutable_nccl())["NCCL_SOCKET_IFNAME"] = "eth1";
         (*s.mutable_parallelism()->mutable_nccl())["NCCL_IB_HCA"] = "=mlx5_0:1,mlx5_1:1";
       },
       "", ""},
      {"a variable that says where to find the group",
       [](ModelSpec& s) { (*s.mutable_parallelism()->mutable_nccl())["NCCL_COMM_ID"] = "1:2"; },
       "InvalidParallelism",
       "spec.parallelism.nccl: NCCL_COMM_ID is none of NCCL's variables that may be set: remove "
       "it; "
       "these may be set: NCCL_ALGO, NCCL_BUFFSIZE, "},
      {"a plug-in",
       [](ModelSpec& s) { (*s.mutable_parallelism()->mutable_nccl())["NCCL_NET_PLUGIN"] = "ofi"; },
       "InvalidParallelism", "spec.parallelism.nccl: NCCL_NET_PLUGIN would load code, and is none"},
      {"another library's variable",
       [](ModelSpec& s) { (*s.mutable_parallelism()->mutable_nccl())["LD_PRELOAD"] = "x"; },
       "InvalidParallelism", "spec.parallelism.nccl: LD_PRELOAD is none of NCCL's variables"},
      {"a variable without a value",
       [](ModelSpec& s) { (*s.mutable_parallelism()->mutable_nccl())["NCCL_DEBUG"] = ""; },
       "InvalidParallelism",
       "spec.parallelism.nccl: the value of NCCL_DEBUG must have 1 to 256 printable characters"},
      {"a value of two lines",
       [](ModelSpec& s) { (*s.mutable_parallelism()->mutable_nccl())["NCCL_DEBUG"] = "a\nb"; },
       "InvalidParallelism", "printable characters"},
      {"NCCL on CPU",
       [](ModelSpec& s) {
         s.set_device("cpu");
         (*s.mutable_parallelism()->mutable_nccl())["NCCL_DEBUG"] = "INFO";
       },
       "NotSupported", "spec.parallelism.nccl is not supported by this version: NCCL links the"},
  });
}

TEST(Gpu, TheWorkerIsToldAndThePodAsksForOneGpuOfEachRank) {
  Observed observed = OneModelOnGpu();
  (*observed.model.mutable_spec()->mutable_resources()->mutable_requests())["cpu"] = "2";
  EXPECT_EQ(MakePlan(observed).groups.at(0).config.device(), "gpu");
  const k8s::v1::PodSpec pod = PodOf(observed);
  EXPECT_THAT(pod.containers(0).resources().requests(),
              UnorderedElementsAre(Pair("cpu", "2"), Pair("nvidia.com/gpu", "1")));
  EXPECT_THAT(pod.containers(0).resources().limits(),
              UnorderedElementsAre(Pair("nvidia.com/gpu", "1")));
  ASSERT_EQ(pod.tolerations_size(), 1);
  EXPECT_EQ(pod.tolerations(0).key(), "nvidia.com/gpu");
  EXPECT_EQ(pod.tolerations(0).operator_(), "Exists");
  EXPECT_EQ(pod.tolerations(0).effect(), "NoSchedule");
}

TEST(Gpu, ThePodRunsWhereNvidiasRuntimeIsNotTheDefault) {
  Observed observed = OneModelOnGpu();
  EXPECT_EQ(PodOf(observed).runtime_class_name(), "");
  const std::string before = MakePlan(observed).groups.at(0).config_hash;
  observed.settings.gpu_runtime_class = "nvidia";
  EXPECT_EQ(PodOf(observed).runtime_class_name(), "nvidia");
  EXPECT_NE(MakePlan(observed).groups.at(0).config_hash, before) << "pods are replaced";
  Observed on_cpu = OneModel();
  on_cpu.settings.gpu_runtime_class = "nvidia";
  EXPECT_EQ(PodOf(on_cpu).runtime_class_name(), "");
}

TEST(Gpu, VariablesOfNcclReachTheWorkerAndAreAnotherConfiguration) {
  Observed observed = OneModelOnGpu();
  const std::string before = MakePlan(observed).groups.at(0).config_hash;
  auto& nccl = *observed.model.mutable_spec()->mutable_parallelism()->mutable_nccl();
  nccl["NCCL_SOCKET_IFNAME"] = "eth1";
  const GroupPlan group = MakePlan(observed).groups.at(0);
  EXPECT_THAT(group.config.nccl(), UnorderedElementsAre(Pair("NCCL_SOCKET_IFNAME", "eth1")));
  EXPECT_NE(group.config_hash, before);
  nccl["NCCL_DEBUG"] = "WARN";
  const std::string two = MakePlan(observed).groups.at(0).config_hash;
  nccl.clear();
  nccl["NCCL_DEBUG"] = "WARN";
  nccl["NCCL_SOCKET_IFNAME"] = "eth1";
  EXPECT_EQ(MakePlan(observed).groups.at(0).config_hash, two) << "whatever their order";
}

// Rules that let the pods of the group reach each other on every port.
int OpenRules(const Observed& observed) {
  const GroupPlan group = MakePlan(observed).groups.at(0);
  const GroupObjects objects = MakeGroupObjects(observed, group);
  int open = 0;
  if (!objects.network_policy.has_value()) return open;
  const k8s::v1::NetworkPolicySpec& policy = objects.network_policy->spec();
  for (const auto& rule : policy.ingress()) {
    if (rule.ports_size() > 0) continue;
    ++open;
    EXPECT_EQ(rule.from_size(), 1);
    EXPECT_EQ(rule.from(0).pod_selector().match_labels().at(kGroupLabel), group.name);
  }
  for (const auto& rule : policy.egress()) {
    if (rule.ports_size() > 0) continue;
    ++open;
    EXPECT_EQ(rule.to_size(), 1);
    EXPECT_EQ(rule.to(0).pod_selector().match_labels().at(kGroupLabel), group.name);
  }
  return open;
}

TEST(Gpu, RanksOfOnePodHaveAGpuEachAndMemoryToShare) {
  const Observed observed = OneModelOnGpus(4, 0);
  const GroupPlan group = MakePlan(observed).groups.at(0);
  EXPECT_EQ(group.pod_count, 1);
  EXPECT_EQ(group.config.device(), "gpu");
  EXPECT_EQ(group.config.tensor_parallel(), 4);
  EXPECT_EQ(group.config.ranks_per_pod(), 4);
  const k8s::v1::PodSpec pod = PodOf(observed);
  EXPECT_EQ(pod.containers(0).resources().requests().at("nvidia.com/gpu"), "4");
  EXPECT_EQ(pod.containers(0).resources().limits().at("nvidia.com/gpu"), "4");
  const k8s::v1::VolumeMount& mount = *pod.containers(0).volume_mounts().rbegin();
  EXPECT_EQ(mount.mount_path(), "/dev/shm");
  EXPECT_FALSE(mount.read_only());
  EXPECT_EQ(pod.volumes().rbegin()->name(), mount.name());
  EXPECT_EQ(pod.volumes().rbegin()->empty_dir().medium(), "Memory");
  EXPECT_EQ(OpenRules(observed), 0);
}

TEST(Gpu, RanksInSeveralPodsHaveThemToo) {
  const Observed observed = OneModelOnGpus(8, 4);
  const GroupPlan group = MakePlan(observed).groups.at(0);
  EXPECT_EQ(group.pod_count, 2);
  EXPECT_EQ(group.config.tensor_parallel(), 8);
  EXPECT_EQ(group.config.ranks_per_pod(), 4);
  const k8s::v1::PodSpec pod = PodOf(observed);
  EXPECT_EQ(pod.containers(0).resources().limits().at("nvidia.com/gpu"), "4");
  EXPECT_EQ(pod.tolerations_size(), 1);
  EXPECT_EQ(OpenRules(observed), 2) << "one in, one out, for the sockets of NCCL";
  // A pod of one rank has nobody to share memory with on its node, but the same configuration.
  EXPECT_EQ(PodOf(OneModelOnGpus(2, 1)).volumes().rbegin()->empty_dir().medium(), "Memory");
}

// The ranks' own links carry what stages say to each other: NCCL links those of one stage.
TEST(Gpu, StagesOpenNoPortsOfNcclAndNeedItInAStageOfSeveralAlone) {
  Observed observed = OneModelOnGpus(4, 0);
  observed.model.mutable_spec()->mutable_parallelism()->set_pipeline(2);
  GroupPlan group = MakePlan(observed).groups.at(0);
  EXPECT_EQ(group.pod_count, 2);
  EXPECT_EQ(group.config.pipeline_parallel(), 2);
  EXPECT_EQ(group.config.ranks_per_pod(), 4);
  EXPECT_EQ(PodOf(observed).containers(0).resources().limits().at("nvidia.com/gpu"), "4");
  EXPECT_EQ(PodOf(observed).volumes().rbegin()->empty_dir().medium(), "Memory");
  EXPECT_EQ(OpenRules(observed), 0);
  observed.model.mutable_spec()->mutable_parallelism()->set_ranks_per_pod(2);
  EXPECT_EQ(MakePlan(observed).groups.at(0).pod_count, 4);
  EXPECT_EQ(OpenRules(observed), 2);
  observed = OneModelOnGpus(1, 0);
  observed.model.mutable_spec()->mutable_parallelism()->set_pipeline(2);
  EXPECT_EQ(MakePlan(observed).groups.at(0).pod_count, 2);
  EXPECT_EQ(OpenRules(observed), 0);
  const k8s::v1::PodSpec pod = PodOf(observed);
  for (const auto& volume : pod.volumes()) EXPECT_FALSE(volume.has_empty_dir());
}

std::string SharedMemoryOf(const Observed& observed) {
  return PodOf(observed).volumes().rbegin()->empty_dir().size_limit();
}

TEST(Gpu, SharedMemoryGrowsWithTheRanksOfAPodOrIsWhatTheManifestSays) {
  EXPECT_EQ(SharedMemoryOf(OneModelOnGpus(2, 1)), "1Gi");
  EXPECT_EQ(SharedMemoryOf(OneModelOnGpus(4, 0)), "1Gi");
  EXPECT_EQ(SharedMemoryOf(OneModelOnGpus(8, 0)), "2Gi");
  EXPECT_EQ(SharedMemoryOf(OneModelOnGpus(16, 8)), "2Gi");
  EXPECT_EQ(SharedMemoryOf(OneModelOnGpus(5, 0)), "1280Mi");
  Observed observed = OneModelOnGpus(8, 0);
  const std::string before = MakePlan(observed).groups.at(0).config_hash;
  observed.model.mutable_spec()->mutable_parallelism()->set_shared_memory_mib(8192);
  EXPECT_EQ(SharedMemoryOf(observed), "8Gi");
  EXPECT_NE(MakePlan(observed).groups.at(0).config_hash, before);
}

TEST(Gpu, SharedMemoryIsForSeveralRanksAndNoMoreThanThePodHas) {
  static const auto set = [](ModelSpec& spec) {
    spec.mutable_parallelism()->set_tensor(2);
    spec.mutable_parallelism()->set_shared_memory_mib(2048);
  };
  ExpectAcceptance({
      {"two ranks", [](ModelSpec& spec) { set(spec); }, "", ""},
      {"one rank", [](ModelSpec& spec) { spec.mutable_parallelism()->set_shared_memory_mib(2048); },
       "NotSupported", "spec.parallelism.sharedMemoryMib"},
      {"on CPU",
       [](ModelSpec& spec) {
         set(spec);
         spec.set_device("cpu");
       },
       "NotSupported", "leave it out"},
      {"more than the pod's memory",
       [](ModelSpec& spec) {
         set(spec);
         (*spec.mutable_resources()->mutable_limits())["memory"] = "2Gi";
       },
       "InvalidResources",
       "sharedMemoryMib: 2048 MiB count as memory of the pod, and "
       "spec.resources.limits.memory is 2048 MiB"},
      {"less than it",
       [](ModelSpec& spec) {
         set(spec);
         (*spec.mutable_resources()->mutable_limits())["memory"] = "3Gi";
       },
       "", ""},
  });
}

TEST(Gpu, OneGpuAndRanksOnCpuNeedNeither) {
  Observed on_cpu = OneModelOnGpus(8, 4);
  on_cpu.model.mutable_spec()->set_device("cpu");
  EXPECT_EQ(OpenRules(on_cpu), 0);
  for (const Observed& observed : {on_cpu, OneModelOnGpu()}) {
    const k8s::v1::PodSpec pod = PodOf(observed);
    for (const auto& volume : pod.volumes()) EXPECT_FALSE(volume.has_empty_dir());
  }
}

TEST(Gpu, PodsOfSeveralGpusGoWhereAsManyAreFree) {
  PlacementRequest request;
  request.pods = {"a-0", "a-1"};
  request.each = {{"nvidia.com/gpu", 4}};
  request.tolerated_taints = {kGpuTaint};
  EXPECT_EQ(PlaceGroup(request, {GpuNode("x", 8, 0)}).nodes.size(), 2u);
  EXPECT_EQ(PlaceGroup(request, {GpuNode("x", 8, 3), GpuNode("y", 4, 0)}).nodes.size(), 2u);
  // Ten are free, but the second pod finds no four of them on one node.
  const auto none = PlaceGroup(request, {GpuNode("x", 8, 5), GpuNode("y", 8, 1)});
  EXPECT_THAT(none.nodes, IsEmpty());
  EXPECT_THAT(none.missing, HasSubstr("x: 3 nvidia.com/gpu free, 1 nvidia.com/gpu missing"));
}

TEST(Gpu, APodOnCpuAsksForNoneAndStaysOffNodesThatAreKept) {
  const Observed observed = OneModel();
  EXPECT_EQ(MakePlan(observed).groups.at(0).config.device(), "");
  const k8s::v1::PodSpec pod = PodOf(observed);
  EXPECT_THAT(pod.containers(0).resources().requests(), Not(Contains(Key("nvidia.com/gpu"))));
  EXPECT_EQ(pod.tolerations_size(), 0);
}

TEST(Gpu, AnotherDeviceIsAnotherConfiguration) {
  EXPECT_NE(MakePlan(OneModel()).groups.at(0).config_hash,
            MakePlan(OneModelOnGpu()).groups.at(0).config_hash);
}

TEST(Gpu, AGroupLeavesACordonedNodeForOneWithAFreeGpu) {
  Observed observed = OneModelOnGpu();
  observed.model.mutable_spec()->mutable_rollout()->set_drain_seconds(0);
  observed.groups = {Serving(observed, 0)};
  observed.nodes = {GpuNode("node-0", 1, 1), Nodes(2)[1], GpuNode("node-2", 8, 8)};
  observed.nodes[0].cordoned = true;
  const Plan waits = MakePlan(observed);
  EXPECT_THAT(waits.deletions, IsEmpty());
  const auto& degraded = ConditionOf(waits, "Degraded");
  EXPECT_EQ(degraded.reason(), "NodeCordoned");
  EXPECT_THAT(degraded.message(), HasSubstr("1 place with 1 nvidia.com/gpu cannot be had"));
  for (const char* node : {"node-1", "node-2"}) {
    EXPECT_THAT(degraded.message(),
                HasSubstr(absl::StrCat(node, ": 0 nvidia.com/gpu free, 1 nvidia.com/gpu missing")));
  }
  observed.nodes.push_back(GpuNode("node-3", 8, 7));
  const Plan moves = MakePlan(observed);
  ASSERT_EQ(moves.deletions.size(), 1u);
  EXPECT_EQ(moves.deletions[0].pod, "smollm2-0-0");
}

TEST(Gpu, ATaintIsToleratedOnlyAsFarAsThePodToleratesIt) {
  PlacementRequest request;
  request.pods = {"a-0"};
  request.each = {{"nvidia.com/gpu", 1}};
  EXPECT_THAT(PlaceGroup(request, {GpuNode("gpus", 8, 0)}).missing,
              HasSubstr("has the taint nvidia.com/gpu:NoSchedule"));
  request.tolerated_taints = {kGpuTaint};
  EXPECT_THAT(PlaceGroup(request, {GpuNode("gpus", 8, 0)}).nodes, ElementsAre(Pair("a-0", "gpus")));
  NodeObservation emptied = GpuNode("gpus", 8, 0);
  emptied.taints = {{"nvidia.com/gpu", "", "NoExecute"}};
  EXPECT_THAT(PlaceGroup(request, {emptied}).missing, HasSubstr("nvidia.com/gpu:NoExecute"));
  emptied.taints = {{"dedicated", "", "NoSchedule"}};
  EXPECT_THAT(PlaceGroup(request, {emptied}).missing, HasSubstr("dedicated:NoSchedule"));
}

TEST(Gpu, AWorkerThatFindsNoGpuFalsifiesFitsInItsOwnWords) {
  Observed observed = OneModelOnGpu();
  GroupObservation group = Serving(observed, 0);
  group.progress.phase = WorkerPhase::kFailed;
  group.progress.reason = "DeviceUnavailable";
  group.progress.message = "GPU 0 cannot be used: no NVIDIA GPU";
  group.pods[0].ready = false;
  observed.groups = {group};
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(ConditionOf(plan, "Fits").status(), "False");
  EXPECT_EQ(ConditionOf(plan, "Fits").reason(), "DeviceUnavailable");
  EXPECT_EQ(plan.status.message(), "GPU 0 cannot be used: no NVIDIA GPU");
}

// As when a Model is moved to GPUs, and the cluster's worker image was built without CUDA.
TEST(Gpu, AnEditToADeviceThatIsNotThereIsTakenBack) {
  Observed observed = Settled(1);
  const std::string before = observed.groups[0].config_hash;
  observed.model.mutable_spec()->set_device("gpu");
  observed.model.mutable_metadata()->set_generation(4);
  const Plan edited = MakePlan(observed);
  EXPECT_NE(edited.groups.at(0).config_hash, before);
  *observed.model.mutable_status() = edited.status;
  GroupObservation& group = observed.groups[0];
  group.config_hash = group.set_config_hash = edited.groups.at(0).config_hash;
  for (PodObservation& pod : group.pods) pod.config_hash = group.config_hash;
  group.pods[0].ready = false;
  group.progress.phase = WorkerPhase::kFailed;
  group.progress.config_hash = group.config_hash;
  group.progress.reason = "DeviceUnavailable";
  group.progress.message = "this worker was built without CUDA";
  const Plan plan = MakePlan(observed);
  EXPECT_EQ(plan.groups.at(0).config_hash, before);
  EXPECT_THAT(plan.status.rollout().message(), HasSubstr("built without CUDA"));
}

}  // namespace
}  // namespace rempart::op
