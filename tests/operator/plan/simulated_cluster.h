// SPDX-License-Identifier: Apache-2.0
// A cluster of plain data for the simulation of MakePlan: nodes, StatefulSets, pods, the members of
// groups and their epochs, moved on second by second; and an API that shows it late and carries
// plans out unreliably. Everything follows from one seed.
#pragma once

#include <deque>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "operator/plan/plan.h"

namespace rempart::op {

struct SimulatedPod {
  PodObservation seen;  // as the API server shows it
  int64_t created = 0;
  int64_t starts_at = 0;   // when its container runs, once it has a node
  int64_t grace_ends = 0;  // of a deletion
  bool frozen = false;     // its process is stopped
  bool bad = false;        // its configuration never becomes ready
  bool killed = false;     // its process has just ended, and starts again
  int64_t last_heard = 0;
  int32_t epoch = 0;
};

struct SimulatedGroup {
  bool exists = false;
  std::string hash;
  bool gated = false;
  bool bad = false;  // its template never becomes ready
  int32_t pod_count = 1;
  int64_t template_known_at = 0;
  std::map<int32_t, SimulatedPod> pods;
  int32_t epoch = 0;
  bool running = false;
  int64_t ready_at = 0;
  EndingObservation ending;
  int64_t ended_at = 0;
  int32_t requests = 0;  // that its leader runs
  bool draining = false;
  int64_t drain_deadline = 0;
};

struct SimulatedNode {
  NodeObservation seen;
  bool down = false;
  int64_t down_since = 0;
};

struct Faults {
  double drop = 0;       // of one action of a plan
  double late = 0;       // chance that a part of the picture does not move on
  double break_pod = 0;  // per second: kill, freeze, delete or take a node down
};

class SimulatedCluster {
 public:
  SimulatedCluster(uint64_t seed, int32_t tensor, int32_t replicas, int32_t nodes);

  Model& model() { return model_; }
  int64_t now() const { return now_; }
  void SetFaults(const Faults& faults) { faults_ = faults; }
  // Frozen processes run again, nodes come back, and a person says "retry".
  void Heal();
  void Cordon(int32_t node, bool cordoned) { nodes_[node].seen.cordoned = cordoned; }

  void Second();
  Observed Observe();
  // What `plan` was made from comes along, to be checked against it.
  void Execute(const Observed& observed, const Plan& plan);

  const std::map<int32_t, SimulatedGroup>& groups() const { return groups_; }
  bool Serves(const SimulatedGroup& group) const;
  // Empty when the groups are as the model says, with the configuration that is expected.
  std::string Unsettled(bool expects_last_good) const;
  // For a look at one seed.
  void Print() const;
  std::string broken() const { return broken_; }  // an invariant, in words

 private:
  struct Picture {
    std::vector<GroupObservation> sets;  // without pods
    std::map<int32_t, std::vector<PodObservation>> pods;
    std::vector<NodeObservation> nodes;
    Model model;
    LastGood last_good;
  };

  bool Chance(double share);
  int64_t Between(int64_t low, int64_t high);
  void Break();
  void RunControllers();
  void RunScheduler(SimulatedPod& pod);
  void RunKubelets();
  void RunEpochs(int32_t index, SimulatedGroup& group);
  void RunRequests(SimulatedGroup& group);
  void CheckDrained(const Observed& observed, const Plan& plan);
  WorkerPhase LeaderPhase(const SimulatedGroup& group) const;
  void CarryOrders(const Plan& plan);
  bool IsLost(const SimulatedPod& pod) const;
  bool IsUp(const SimulatedGroup& group, const SimulatedPod& pod) const;
  SimulatedNode* NodeOf(const SimulatedPod& pod);
  const SimulatedNode* NodeOf(const SimulatedPod& pod) const;
  Picture Now() const;
  MembersObservation MembersOf(const SimulatedGroup& group) const;
  void CheckPlan(const Plan& plan);

  std::mt19937_64 random_;
  Faults faults_;
  int64_t now_ = 1767398400;
  int64_t next_uid_ = 1;
  Model model_;
  LastGood last_good_;
  std::map<int32_t, SimulatedGroup> groups_;
  std::vector<SimulatedNode> nodes_;
  std::deque<Picture> pictures_;
  size_t sets_at_ = 0, pods_at_ = 0, nodes_at_ = 0, model_at_ = 0;  // from the newest, in pictures
  std::map<std::string, std::string> promised_;                     // uid -> node
  std::map<int32_t, int32_t> last_epoch_;
  std::string broken_;
};

}  // namespace rempart::op
