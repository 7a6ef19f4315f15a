// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/placement.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "operator/plan/quantity.h"

namespace rempart::op {
namespace {

constexpr size_t kMaxNodesInWords = 8;

std::string LabelOf(const NodeObservation& node, const std::string& key) {
  const auto found = node.labels.find(key);
  return found == node.labels.end() ? "" : found->second;
}

// Why no pod of the group may run there, whatever room it has; empty: it may.
std::string Forbidden(const PlacementRequest& request, const NodeObservation& node) {
  if (!node.ready) return "not ready";
  if (node.cordoned) return "cordoned";
  if (request.excluded_nodes.count(node.name) > 0) {
    return "excluded, because members broke there twice";
  }
  if (const auto small = request.small_nodes.find(node.name); small != request.small_nodes.end()) {
    return absl::StrCat("its GPUs have ", small->second, " MiB each, and ", request.rank_need);
  }
  for (const TaintObservation& taint : node.taints) {
    if (taint.effect == "PreferNoSchedule") continue;
    if (taint.effect == "NoSchedule" && request.tolerated_taints.count(taint.key) > 0) continue;
    return absl::StrCat("has the taint ", taint.key, ":", taint.effect);
  }
  for (const auto& [key, value] : request.node_selector) {
    if (LabelOf(node, key) != value) return absl::StrCat("lacks the label ", key, "=", value);
  }
  const auto& allowed = request.jurisdictions;
  if (!allowed.empty() && std::find(allowed.begin(), allowed.end(),
                                    LabelOf(node, kJurisdictionLabel)) == allowed.end()) {
    return absl::StrCat("its label ", kJurisdictionLabel, " is \"",
                        LabelOf(node, kJurisdictionLabel), "\", not one of ",
                        absl::StrJoin(allowed, ", "));
  }
  if (!request.topology_key.empty() && LabelOf(node, request.topology_key).empty()) {
    return absl::StrCat("lacks the label ", request.topology_key);
  }
  return "";
}

int64_t Free(const NodeObservation& node, const std::string& resource) {
  const auto has = node.allocatable.find(resource);
  const auto used = node.requested.find(resource);
  return (has == node.allocatable.end() ? 0 : has->second) -
         (used == node.requested.end() ? 0 : used->second);
}

// What is missing for one more pod; empty: nothing.
std::string Shortage(const Amounts& each, const NodeObservation& node) {
  std::vector<std::string> words;
  for (const auto& [resource, amount] : each) {
    const int64_t free = std::max<int64_t>(Free(node, resource), 0);
    if (free >= amount) continue;
    words.push_back(absl::StrCat(AmountInWords(resource, free), " free, ",
                                 AmountInWords(resource, amount - free), " missing"));
  }
  const auto pods = node.allocatable.find("pods");
  if (pods != node.allocatable.end() && node.pods >= pods->second) {
    words.push_back(absl::StrCat("it runs ", node.pods, " pods, its limit"));
  }
  return absl::StrJoin(words, "; ");
}

// Share of its memory, or of its processors, that is taken: the larger of both, in thousandths.
int64_t Load(const NodeObservation& node) {
  int64_t load = 0;
  for (const char* resource : {"cpu", "memory"}) {
    const auto has = node.allocatable.find(resource);
    if (has == node.allocatable.end() || has->second <= 0) continue;
    const double used = static_cast<double>(has->second - Free(node, resource));
    load = std::max(load, static_cast<int64_t>(1000.0 * used / static_cast<double>(has->second)));
  }
  return load;
}

// All pods on nodes of `candidates` (indices), or nothing.
std::optional<std::map<std::string, std::string>> PlaceOn(const PlacementRequest& request,
                                                          std::vector<NodeObservation> nodes) {
  std::map<std::string, std::string> placed;
  std::map<std::string, int> taken;
  for (const std::string& node : request.kept_nodes) ++taken[node];
  for (const std::string& pod : request.pods) {
    NodeObservation* best = nullptr;
    const auto rank = [&](const NodeObservation& node) {
      return std::make_tuple(request.suspect_nodes.count(node.name), taken[node.name], Load(node),
                             node.name);
    };
    for (NodeObservation& node : nodes) {
      if (!Shortage(request.each, node).empty()) continue;
      if (best == nullptr || rank(node) < rank(*best)) best = &node;
    }
    if (best == nullptr) return std::nullopt;
    placed[pod] = best->name;
    ++taken[best->name];
    AddAmounts(request.each, best->requested);
    ++best->pods;
  }
  return placed;
}

std::string MissingInWords(const PlacementRequest& request,
                           const std::vector<NodeObservation>& nodes) {
  std::vector<std::string> words;
  for (const NodeObservation& node : nodes) {
    std::string why = Forbidden(request, node);
    if (why.empty()) why = Shortage(request.each, node);
    if (why.empty()) why = "has room, but not for all";
    if (words.size() < kMaxNodesInWords) words.push_back(absl::StrCat(node.name, ": ", why));
  }
  if (nodes.size() > words.size()) {
    words.push_back(absl::StrCat("and ", nodes.size() - words.size(), " more nodes"));
  }
  std::string text = absl::StrCat(
      request.pods.size(), request.pods.size() == 1 ? " place" : " places", " with ",
      AmountsInWords(request.each), request.pods.size() == 1 ? "" : " each",
      request.topology_key.empty() ? "" : absl::StrCat(" within one ", request.topology_key),
      " cannot be had. ");
  return text + (nodes.empty() ? "There are no nodes" : absl::StrJoin(words, ". "));
}

}  // namespace

PlacementAnswer PlaceGroup(const PlacementRequest& request,
                           const std::vector<NodeObservation>& nodes) {
  // By value of the topology key; all in one without it.
  std::map<std::string, std::vector<NodeObservation>> domains;
  std::set<std::string> kept_domains;
  for (const NodeObservation& node : nodes) {
    const std::string domain =
        request.topology_key.empty() ? "" : LabelOf(node, request.topology_key);
    if (request.kept_nodes.count(node.name) > 0) kept_domains.insert(domain);
    if (Forbidden(request, node).empty()) domains[domain].push_back(node);
  }
  PlacementAnswer answer;
  int64_t best_load = 0;
  for (const auto& [domain, candidates] : domains) {
    if (!kept_domains.empty() && kept_domains.count(domain) == 0) continue;
    const auto placed = PlaceOn(request, candidates);
    if (!placed.has_value()) continue;
    int64_t load = 0;
    for (const NodeObservation& node : candidates) load += Load(node);
    load /= static_cast<int64_t>(candidates.size());
    if (!answer.nodes.empty() && load >= best_load) continue;
    answer.nodes = *placed;
    best_load = load;
  }
  if (answer.nodes.empty() && !request.pods.empty()) {
    answer.missing = MissingInWords(request, nodes);
  }
  return answer;
}

void TakePlaces(const PlacementAnswer& answer, const Amounts& each,
                std::vector<NodeObservation>& nodes) {
  for (const auto& [pod, name] : answer.nodes) {
    for (NodeObservation& node : nodes) {
      if (node.name != name) continue;
      AddAmounts(each, node.requested);
      ++node.pods;
    }
  }
}

}  // namespace rempart::op
