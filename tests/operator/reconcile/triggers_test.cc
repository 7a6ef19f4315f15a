// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/triggers.h"

#include <gtest/gtest.h>

#include "operator/plan/group_objects.h"
#include "operator/plan/placement.h"
#include "tests/operator/kube/eventually.h"
#include "tests/operator/kube/fake_api_server.h"

namespace rempart::op {
namespace {

const ObjectKey kLlama = {"ia", "llama"};

k8s::v1::ObjectMeta Owned(const std::string& name) {
  k8s::v1::ObjectMeta metadata;
  metadata.set_namespace_(kLlama.ns);
  metadata.set_name(name);
  (*metadata.mutable_labels())[kModelLabel] = kLlama.name;
  return metadata;
}

k8s::v1::Pod Pod(const std::string& name) {
  k8s::v1::Pod pod;
  *pod.mutable_metadata() = Owned(name);
  return pod;
}

class TriggersTest : public testing::Test {
 protected:
  // How long the Model waits from now on.
  absl::Duration Waited() {
    absl::Duration waited = absl::ZeroDuration();
    while (!queue_.TryTake().has_value()) {
      clock_.Advance(absl::Milliseconds(10));
      waited += absl::Milliseconds(10);
      if (waited > absl::Minutes(1)) return absl::InfiniteDuration();
    }
    return waited;
  }

  Model Llama(int generation) {
    Model model;
    model.mutable_metadata()->set_namespace_(kLlama.ns);
    model.mutable_metadata()->set_name(kLlama.name);
    model.mutable_metadata()->set_uid("1");
    model.mutable_metadata()->set_generation(generation);
    return model;
  }

  // Until its informer has it.
  void Have(const Model& model) {
    ASSERT_TRUE(Api<Model>(&client_).Apply(model, "test").ok());
    ASSERT_TRUE(Eventually([&] { return informers_.models.store().Has(KeyOf(model)); }));
  }

  ManualClock clock_;
  FakeApiServer server_;
  Client client_{&server_};
  Informers informers_{&client_};
  NodeLedger ledger_;
  WorkQueue queue_{&clock_};
  TopologyCache topology_;
  Triggers triggers_{&informers_, &ledger_, &queue_, &topology_};
};

TEST_F(TriggersTest, ChangesOfPodsAndOfWhatAModelOwnsAreGathered) {
  for (int i = 0; i < 10; ++i) {
    triggers_.OnPod(Pod("llama-0-0"));
    triggers_.OnOwned(Owned("llama-0"));
    clock_.Advance(absl::Milliseconds(10));
  }
  EXPECT_EQ(queue_.waiting(), 1);
  EXPECT_EQ(Waited(), Triggers::kGather - absl::Milliseconds(100)) << "from the first";
}

TEST_F(TriggersTest, APodAtItsGateIsLookedAtAtOnce) {
  triggers_.OnPod(Pod("llama-0-0"));
  k8s::v1::Pod gated = Pod("llama-0-1");
  gated.mutable_spec()->add_scheduling_gates()->set_name(kPlacementGate);
  triggers_.OnPod(gated);
  EXPECT_EQ(Waited(), absl::ZeroDuration());
}

TEST_F(TriggersTest, AWordOnJoinIsLookedAtAtOnce) {
  triggers_.OnPod(Pod("llama-0-0"));
  triggers_.OnJoin("ia/llama-0");
  EXPECT_EQ(Waited(), absl::ZeroDuration());
  queue_.Done(kLlama);
  triggers_.OnJoin("no group");
  EXPECT_EQ(Waited(), absl::InfiniteDuration());
}

TEST_F(TriggersTest, WhatBelongsToNoModelWakesNobody) {
  k8s::v1::Pod pod = Pod("stranger");
  pod.mutable_metadata()->clear_labels();
  triggers_.OnPod(pod);
  triggers_.OnOwned(pod.metadata());
  EXPECT_EQ(Waited(), absl::InfiniteDuration());
}

TEST_F(TriggersTest, AnEditIsUrgentAndItsStatusIsGathered) {
  std::jthread informer([this](std::stop_token stop) { informers_.models.Run(stop); });
  ASSERT_TRUE(Eventually([&] { return informers_.models.synced(); }));
  Have(Llama(1));
  ASSERT_TRUE(Eventually([&] { return queue_.TryTakeUrgent() == kLlama; })) << "it is new";
  queue_.Done(kLlama);
  informer.request_stop();
  informer.join();
  while (queue_.TryTake().has_value()) queue_.Done(kLlama);

  const Model edited = *informers_.models.store().Get(kLlama);
  triggers_.OnModel(edited);
  EXPECT_EQ(queue_.TryTakeUrgent(), std::nullopt);
  EXPECT_EQ(Waited(), Triggers::kGather);
  queue_.Done(kLlama);
  Model again = edited;
  again.mutable_metadata()->set_generation(edited.metadata().generation() + 1);
  triggers_.OnModel(again);
  EXPECT_EQ(queue_.TryTakeUrgent(), kLlama);
}

// A thousand of them are not before what happens meanwhile.
TEST_F(TriggersTest, WhatTheFirstListShowsIsNotUrgent) {
  triggers_.OnModel(Llama(1));
  EXPECT_EQ(queue_.TryTakeUrgent(), std::nullopt);
  EXPECT_EQ(Waited(), absl::ZeroDuration());
}

}  // namespace
}  // namespace rempart::op
