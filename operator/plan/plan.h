// SPDX-License-Identifier: Apache-2.0
// The operator's pure function: what one Model asks for and what is there, to what shall be there.
// Two executors carry a Plan out: the Kubernetes API (operator/reconcile) and child processes
// (`rempart serve`).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "operator/plan/observed.h"
#include "proto/serving/v1alpha1/model.pb.h"
#include "proto/worker/v1/config.pb.h"

namespace rempart::op {

using serving::v1alpha1::ModelStatus;

// In a pod, the folder of the weights.
inline constexpr char kModelsFolder[] = "/models";

// Where a group finds its weights.
struct WeightsVolume {
  std::string claim;  // of pvc://claim/path
  // Of file:///path: the file, or all parts of a model in several, the first one first.
  std::vector<std::string> node_paths = {};
  std::string cache_claim = {};  // for repacked weights; empty: none
};

// One replica: the whole model in one group of workers.
struct GroupPlan {
  int32_t index = 0;
  std::string name;  // "model-0": of the StatefulSet, its Service and its ConfigMap
  worker::v1::WorkerConfig config;
  WeightsVolume volume;
  // The part of the manifest that it was made from: the current one, or the last that served.
  serving::v1alpha1::ModelSpec spec;
  int32_t pod_count = 1;
  int32_t ranks_per_pod = 1;
  // Nodes that its pods must not, and should rather not, be put on.
  std::vector<std::string> excluded_nodes = {};
  std::vector<std::string> suspect_nodes = {};
  // Nodes whose GPUs are too small for one of its ranks, with what these have, and what a rank
  // takes, in words.
  std::map<std::string, int64_t> small_nodes = {};
  std::string rank_need = {};
  std::string config_hash;
  // False: the group runs an older template and waits for its turn; leave it as it is.
  bool apply = true;
};

// A gated pod gets its node and is released.
struct PodRelease {
  std::string pod;
  std::string uid;
  std::string node;
  Amounts requests;
};

// A pod to be replaced by its StatefulSet.
struct PodDeletion {
  std::string pod;
  std::string uid;
  // Absent: what the pod itself says, so that a leader finishes what it has begun. 0: at once,
  // without the word of its node.
  std::optional<int32_t> grace_seconds;
  std::string why;
};

// A group that is to go, or to change, finishes what it runs first, and takes nothing new.
struct DrainOrder {
  std::string group;
  std::string since;             // RFC 3339
  int32_t deadline_seconds = 0;  // from now
};

struct PlannedEvent {
  std::string type;  // Normal, Warning
  std::string reason;
  std::string message;
};

struct Plan {
  std::vector<GroupPlan> groups;
  // Names of groups to delete: StatefulSet, Service and ConfigMap.
  std::vector<std::string> removed_groups;
  // By index: the groups that shall drain, those that have drained and are not gone included.
  std::map<int32_t, DrainOrder> drains;
  // Names of groups that drain and are wanted after all.
  std::vector<std::string> resumes;
  std::vector<PodRelease> releases;
  std::vector<PodDeletion> deletions;
  // Why gated pods of a group (by index) stay so, node by node.
  std::map<int32_t, std::string> unplaced;
  // Why a group stays on a cordoned node.
  std::map<int32_t, std::string> unmoved;
  // To be kept in the cluster: all groups serve with it.
  std::optional<LastGood> last_good;
  ModelStatus status;
  std::vector<PlannedEvent> events;
  // Look again after so many seconds even if nothing is observed; 0: no need.
  int32_t requeue_seconds = 0;
};

Plan MakePlan(const Observed& observed);

// GPUs, and slices of them, that spec.resources names: "nvidia.com/gpu", "nvidia.com/gpu.shared",
// "nvidia.com/mig-3g.40gb". Others of nvidia.com/ are network cards ("nvidia.com/hostdev").
std::set<std::string> GpuResources(const serving::v1alpha1::ModelSpec& spec);
// What a pod with device: gpu asks for, one of it for each rank: the first of these, or
// "nvidia.com/gpu".
std::string GpuResource(const serving::v1alpha1::ModelSpec& spec);
// Handed out by a device plugin, whole and not overcommitted.
bool IsExtendedResource(const std::string& resource);

// What each pod of a group asks for and may use: spec.resources, and its GPUs.
serving::v1alpha1::Resources PodResources(const serving::v1alpha1::ModelSpec& spec);

// MiB of /dev/shm of each pod of several ranks on GPUs. NCCL takes up to some 10 MiB for each
// channel and neighbour where it goes through memory of the host: 256 for a rank with four
// channels.
int32_t SharedMemoryMib(const serving::v1alpha1::ModelSpec& spec);
// Whether NCCL links ranks of the group: those of a stage on GPUs.
bool LinksGpus(const serving::v1alpha1::ModelSpec& spec);

// Of one group.
int32_t RanksPerPod(const serving::v1alpha1::ModelSpec& spec);
int32_t PodCount(const serving::v1alpha1::ModelSpec& spec);

// "namespace/name".
std::string FullName(const Model& model);

// The names that clients may use: servedNames, or the resource's name.
std::vector<std::string> ServedNames(const Model& model);

// A source that this version reads.
struct ParsedSource {
  std::string claim;
  std::string path;                     // inside the claim, or absolute on the node
  std::vector<std::string> parts = {};  // of a path on the node: as WeightsVolume.node_paths
};
// The claim of a pvc:// source; empty for any other.
std::string ClaimOf(const Model& model);

}  // namespace rempart::op
