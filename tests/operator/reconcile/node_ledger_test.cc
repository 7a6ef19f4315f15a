// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/node_ledger.h"

#include <gtest/gtest.h>

namespace rempart::op {
namespace {

const ObjectKey kPod{"ia", "llama-0-0"};

NodeObservation On(const NodeLedger& ledger, const std::string& node) {
  NodeObservation seen;
  seen.name = node;
  ledger.Fill(seen);
  return seen;
}

k8s::v1::Pod BoundPod(const std::string& uid, const std::string& node) {
  k8s::v1::Pod pod;
  pod.mutable_metadata()->set_namespace_(kPod.ns);
  pod.mutable_metadata()->set_name(kPod.name);
  pod.mutable_metadata()->set_uid(uid);
  pod.mutable_spec()->set_node_name(node);
  return pod;
}

TEST(NodeLedger, WhatIsPromisedIsTakenUntilItIsWithdrawn) {
  NodeLedger ledger;
  ledger.Promise(kPod, "1", "node-a", {{"memory", 600}});
  EXPECT_EQ(On(ledger, "node-a").requested, (Amounts{{"memory", 600}}));
  EXPECT_EQ(On(ledger, "node-a").pods, 1);
  EXPECT_EQ(ledger.PromisedNode(kPod, "1"), "node-a");
  ledger.Withdraw(kPod, "1");
  EXPECT_EQ(On(ledger, "node-a").pods, 0);
  EXPECT_EQ(ledger.PromisedNode(kPod, "1"), "");
}

TEST(NodeLedger, OnlyAPromiseToTheSamePodIsWithdrawn) {
  NodeLedger ledger;
  ledger.Promise(kPod, "2", "node-a", {});
  ledger.Withdraw(kPod, "1");  // the pod that had this name before
  EXPECT_EQ(ledger.PromisedNode(kPod, "2"), "node-a");
  ledger.OnPod(BoundPod("2", "node-a"), /*gone=*/false);
  ledger.Withdraw(kPod, "2");  // it is there by now, whatever its release was answered
  EXPECT_EQ(On(ledger, "node-a").pods, 1);
}

}  // namespace
}  // namespace rempart::op
