// SPDX-License-Identifier: Apache-2.0
// Where the pods of a group go: all of them or none, on stock Kubernetes. The pods were made with a
// scheduling gate; whoever carries the answer out names each pod's node and lifts its gate in one
// patch. Pure.
//
// Among the nodes that can take a pod, one without suspicion goes before one with, and then the one
// with the most room left: the ranks of a group on CPU share the memory bandwidth of their node.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "operator/plan/nodes.h"

namespace rempart::op {

inline constexpr char kPlacementGate[] = "rempart.dev/placement";
inline constexpr char kJurisdictionLabel[] = "rempart.dev/jurisdiction";
inline constexpr char kHostnameLabel[] = "kubernetes.io/hostname";
// With which clusters keep nodes with GPUs for pods that want one; those of device: gpu tolerate
// it.
inline constexpr char kGpuTaint[] = "nvidia.com/gpu";

struct PlacementRequest {
  std::vector<std::string> pods;  // that need a node
  Amounts each;                   // what each of them requests
  std::map<std::string, std::string> node_selector;
  std::vector<std::string> jurisdictions;  // empty: any
  std::string topology_key;                // empty: anywhere
  // Nodes of the group's other pods, which stay.
  std::set<std::string> kept_nodes;
  std::set<std::string> excluded_nodes;
  std::set<std::string> suspect_nodes;  // used last
  // Nodes whose GPUs have less than a rank takes: MiB, and what it takes in words.
  std::map<std::string, int64_t> small_nodes = {};
  std::string rank_need = {};
  std::set<std::string> tolerated_taints = {};  // keys, with the effect NoSchedule
};

struct PlacementAnswer {
  std::map<std::string, std::string> nodes;  // by pod; empty when the group does not fit
  std::string missing;                       // why, node by node, when it does not
};

PlacementAnswer PlaceGroup(const PlacementRequest& request,
                           const std::vector<NodeObservation>& nodes);

// What was promised is taken: the next group sees it.
void TakePlaces(const PlacementAnswer& answer, const Amounts& each,
                std::vector<NodeObservation>& nodes);

}  // namespace rempart::op
