// SPDX-License-Identifier: Apache-2.0
// What the operator knows about one Model when it plans: plain data, taken from the informer stores
// and the Join streams. The clock is a field, so that planning is a pure function.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "operator/plan/members.h"
#include "operator/plan/nodes.h"
#include "operator/plan/worker_phase.h"
#include "proto/serving/v1alpha1/model.pb.h"

namespace rempart::op {

using serving::v1alpha1::Model;

// What holds for every Model of this installation.
struct Settings {
  std::string worker_image;
  std::string worker_pull_policy = "IfNotPresent";
  // Where workers dial Join: "rempart-operator.NAMESPACE.svc.cluster.local:7080".
  std::string control_address;
  // Where clients inside the cluster reach the router.
  std::string url;
  // Of the operator and the router.
  std::string system_namespace = "rempart";
  // Whether the pods of a group get a NetworkPolicy of their own.
  bool network_policies = true;
  // Chart value models.allowNodePaths: whether file:// is served.
  bool allow_node_paths = false;
  // Chart value gpu.runtimeClassName: of pods with device gpu; empty: the runtime of each node.
  std::string gpu_runtime_class;
  // Child processes of `rempart serve` instead of pods: file:// is a path of this machine, and
  // pvc:// does not exist.
  bool local = false;
};

// Another Model and the names it serves.
struct NameClaim {
  std::string model;  // "namespace/name"
  std::vector<std::string> served_names;
  std::string creation_timestamp;
};

struct RankMemoryObservation {
  int32_t weights_mib = 0;
  int32_t workspace_mib = 0;
  int32_t kv_cache_mib = 0;
  int32_t reserve_mib = 0;
};

// The last word of a group's leader on its Join stream.
struct WorkerProgress {
  WorkerPhase phase = WorkerPhase::kUnknown;
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
  std::string reason;   // of kFailed: "InvalidModelFile"...
  std::string message;  // of kFailed
  std::string digest;
  // Of the configuration that the leader runs, in its own words. Another than that of the pods that
  // are seen: the words are of a pod of the same name, before or after.
  std::string config_hash;
  int32_t step = 0;
  int32_t last_step_age_seconds = 0;
  int32_t requests = 0;  // that run or wait in the leader
  // Numbers of ranks that the model can be cut into; empty: not known yet.
  std::vector<int32_t> tensor_sizes = {};
  // What a rank takes of its GPU, in MiB; zeros: not known yet, or on CPU.
  RankMemoryObservation rank_memory = {};
};

struct PodObservation {
  std::string name;
  std::string uid;
  int32_t index = 0;  // in its group
  std::string node;
  std::string config_hash;  // of the template that it was made from
  bool gated = false;       // waits for a place (kPlacementGate)
  std::string phase;        // Pending, Running...
  bool ready = false;
  bool deleting = false;
  int32_t overdue_seconds = 0;  // past the end of its grace
  int32_t restarts = 0;
  int32_t age_seconds = 0;
  std::string unschedulable;  // message of the scheduler
  int32_t unschedulable_seconds = 0;
  std::string waiting_reason;  // ImagePullBackOff, CrashLoopBackOff...
  std::string waiting_message;
  std::string last_termination;  // "exit code 3: ..."
  int32_t last_exit_code = 0;    // of last_termination
};

// A StatefulSet of this Model, or what is left of it.
struct GroupObservation {
  int32_t index = 0;
  bool exists = false;          // the StatefulSet is there and not being deleted
  std::string config_hash;      // of the template that runs (annotation rempart.dev/config)
  std::string set_config_hash;  // of the StatefulSet's template
  bool set_is_current = false;  // its controller has seen that template
  std::vector<PodObservation> pods;
  WorkerProgress progress;
  MembersObservation members;
};

// The configuration with which all groups last served, kept in the cluster for a rollback.
struct LastGood {
  std::string revision;  // empty: none has
  serving::v1alpha1::ModelSpec spec;
};

// kUnmarked: it is there, and does not say that it is for what the Model wants of it.
enum class ClaimState { kNotNeeded, kMissing, kUnmarked, kFound };

struct Observed {
  Model model;
  Settings settings;
  std::vector<NameClaim> others;
  ClaimState claim = ClaimState::kNotNeeded;
  ClaimState cache_claim = ClaimState::kNotNeeded;  // of spec.engine.repackCacheClaim
  std::vector<GroupObservation> groups;
  std::vector<NodeObservation> nodes;
  LastGood last_good;
  std::string now;          // RFC 3339, for last_transition_time
  int64_t now_seconds = 0;  // the same, since 1970
  // For how long this operator has answered Join: before, that nothing is heard of a member means
  // nothing.
  int32_t listening_seconds = 0;
};

}  // namespace rempart::op
