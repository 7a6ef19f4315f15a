// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/topology.h"

#include <gtest/gtest.h>

#include "operator/plan/group_objects.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::Model;

class TopologyTest : public testing::Test {
 protected:
  void Put(const std::string& name) {
    Model model;
    model.mutable_metadata()->set_namespace_("ia");
    model.mutable_metadata()->set_name(name);
    auto& accepted = *model.mutable_status()->add_conditions();
    accepted.set_type("Accepted");
    accepted.set_status("True");
    models_[{"ia", name}] = std::make_shared<const Model>(model);
    auto pod = std::make_shared<k8s::v1::Pod>();
    pod->mutable_metadata()->set_namespace_("ia");
    pod->mutable_metadata()->set_name(name + "-0-0");
    (*pod->mutable_metadata()->mutable_labels())[kGroupLabel] = name + "-0";
    pod->mutable_status()->set_pod_ip("10.0.0.1");
    pods_[{"ia", name}] = pod;
  }

  // "a=epoch of its group b=..."; "-": nothing to tell.
  std::string Refresh() {
    const auto snapshot = cache_.Refresh(
        {[this](const ObjectKey& key) {
           ++looked_at_;
           return models_[key];
         },
         [this](const ObjectKey& key) {
           return std::vector<std::shared_ptr<const k8s::v1::Pod>>{pods_[key]};
         },
         [](const ObjectKey&) { return std::vector<std::shared_ptr<const k8s::v1::ConfigMap>>(); },
         [this](const std::string& group) {
           return LeaderWord{epochs_[group], "", false, false};
         }});
    if (!snapshot.has_value()) return "-";
    std::string text;
    for (const auto& model : snapshot->models()) {
      EXPECT_EQ(model.groups_size(), 1);
      text += model.model_name() + "=" + std::to_string(model.groups(0).epoch()) + " ";
    }
    return text;
  }

  std::map<ObjectKey, std::shared_ptr<const Model>> models_;
  std::map<ObjectKey, std::shared_ptr<const k8s::v1::Pod>> pods_;
  std::map<std::string, int32_t> epochs_;
  int looked_at_ = 0;
  TopologyCache cache_;
};

TEST_F(TopologyTest, TheFirstSnapshotIsMadeThoughThereIsNothing) {
  EXPECT_EQ(Refresh(), "");
  EXPECT_EQ(Refresh(), "-");
}

TEST_F(TopologyTest, OnlyWhatWasTouchedIsLookedAtAndAllIsTold) {
  for (const char* name : {"a", "b", "c"}) {
    Put(name);
    cache_.Touch({"ia", name});
  }
  EXPECT_EQ(Refresh(), "ia/a=0 ia/b=0 ia/c=0 ");
  looked_at_ = 0;
  epochs_["ia/b-0"] = 7;
  EXPECT_EQ(Refresh(), "-") << "nobody has said so";
  cache_.Touch({"ia", "b"});
  EXPECT_EQ(Refresh(), "ia/a=0 ia/b=7 ia/c=0 ");
  EXPECT_EQ(looked_at_, 1);
}

TEST_F(TopologyTest, WhatIsTouchedAndStaysTheSameIsNotTold) {
  Put("a");
  cache_.Touch({"ia", "a"});
  EXPECT_EQ(Refresh(), "ia/a=0 ");
  cache_.Touch({"ia", "a"});
  cache_.Touch({"ia", "unknown"});
  EXPECT_EQ(Refresh(), "-");
}

TEST_F(TopologyTest, AModelThatIsGoneIsToldOfNoMore) {
  Put("a");
  Put("b");
  cache_.Touch({"ia", "a"});
  cache_.Touch({"ia", "b"});
  EXPECT_EQ(Refresh(), "ia/a=0 ia/b=0 ");
  models_.erase({"ia", "a"});
  cache_.Touch({"ia", "a"});
  EXPECT_EQ(Refresh(), "ia/b=0 ");
}

}  // namespace
}  // namespace rempart::op
