// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/node_ledger.h"

#include <algorithm>
#include <utility>

#include "operator/plan/placement.h"
#include "operator/plan/quantity.h"

namespace rempart::op {
namespace {

Amounts RequestsOfContainer(const k8s::v1::Container& container) {
  return ParseAmountsOf(container.resources().requests());
}

bool HasEnded(const k8s::v1::Pod& pod) {
  return pod.status().phase() == "Succeeded" || pod.status().phase() == "Failed";
}

}  // namespace

Amounts RequestsOf(const k8s::v1::Pod& pod) {
  Amounts sum;
  for (const auto& container : pod.spec().containers()) {
    AddAmounts(RequestsOfContainer(container), sum);
  }
  for (const auto& container : pod.spec().init_containers()) {
    for (const auto& [resource, amount] : RequestsOfContainer(container)) {
      sum[resource] = std::max(sum[resource], amount);
    }
  }
  AddAmounts(ParseAmountsOf(pod.spec().overhead()), sum);
  return sum;
}

bool IsHeldBack(const k8s::v1::Pod& pod) {
  const auto& gates = pod.spec().scheduling_gates();
  return std::any_of(gates.begin(), gates.end(),
                     [](const auto& gate) { return gate.name() == kPlacementGate; });
}

void NodeLedger::OnNode(const k8s::v1::Node& node) {
  const auto host = node.metadata().labels().find(kHostnameLabel);
  if (host == node.metadata().labels().end()) return;
  MutexLock lock(&mu_);
  hosts_[host->second] = node.metadata().name();
}

void NodeLedger::OnPod(const k8s::v1::Pod& pod, bool gone) {
  const ObjectKey key = KeyOf(pod);
  Entry entry{pod.metadata().uid(), pod.spec().node_name(), {}, false};
  MutexLock lock(&mu_);
  if (gone || HasEnded(pod)) return Erase(key);
  if (entry.node.empty() && pod.spec().scheduling_gates().empty()) {
    const auto host = pod.spec().node_selector().find(kHostnameLabel);
    if (host != pod.spec().node_selector().end()) {
      const auto node = hosts_.find(host->second);
      entry.node = node == hosts_.end() ? host->second : node->second;
    }
  }
  const auto known = pods_.find(key);
  if (entry.node.empty()) {
    // Behind the gate as far as this event knows; a promise to the same pod may be younger.
    const bool kept =
        known != pods_.end() && known->second.promised && known->second.uid == entry.uid;
    if (!kept) Erase(key);
    return;
  }
  entry.requests = RequestsOf(pod);
  Set(key, std::move(entry));
}

void NodeLedger::Promise(const ObjectKey& pod, const std::string& uid, const std::string& node,
                         const Amounts& requests) {
  MutexLock lock(&mu_);
  Set(pod, {uid, node, requests, true});
}

void NodeLedger::Withdraw(const ObjectKey& pod, const std::string& uid) {
  MutexLock lock(&mu_);
  const auto found = pods_.find(pod);
  if (found != pods_.end() && found->second.promised && found->second.uid == uid) Erase(pod);
}

std::string NodeLedger::PromisedNode(const ObjectKey& pod, const std::string& uid) const {
  MutexLock lock(&mu_);
  const auto found = pods_.find(pod);
  if (found == pods_.end() || !found->second.promised || found->second.uid != uid) return "";
  return found->second.node;
}

void NodeLedger::Fill(NodeObservation& node) const {
  MutexLock lock(&mu_);
  const auto found = sums_.find(node.name);
  if (found == sums_.end()) return;
  node.requested = found->second.requests;
  node.pods = found->second.pods;
}

void NodeLedger::Set(const ObjectKey& pod, Entry entry) {
  Erase(pod);
  Sum& sum = sums_[entry.node];
  AddAmounts(entry.requests, sum.requests);
  ++sum.pods;
  pods_[pod] = std::move(entry);
}

void NodeLedger::Erase(const ObjectKey& pod) {
  const auto found = pods_.find(pod);
  if (found == pods_.end()) return;
  Sum& sum = sums_[found->second.node];
  SubtractAmounts(found->second.requests, sum.requests);
  if (--sum.pods == 0) sums_.erase(found->second.node);
  pods_.erase(found);
}

}  // namespace rempart::op
