// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/intent.h"

#include <gtest/gtest.h>

#include <string>

#include "proto/k8s/v1/objects.pb.h"

namespace rempart::op {
namespace {

using k8s::v1::StatefulSet;

StatefulSet Intent() {
  StatefulSet set;
  set.mutable_metadata()->set_name("llama-0");
  (*set.mutable_metadata()->mutable_labels())["rempart.dev/model"] = "llama";
  set.mutable_spec()->set_replicas(2);
  auto& pod = *set.mutable_spec()->mutable_template_()->mutable_spec();
  pod.set_automount_service_account_token(false);
  auto& container = *pod.add_containers();
  container.set_name("worker");
  container.add_command("/rempart-worker");
  (*container.mutable_resources()->mutable_requests())["cpu"] = "1000m";
  return set;
}

// What the API server makes of it.
StatefulSet Live() {
  StatefulSet set = Intent();
  set.mutable_metadata()->set_uid("u-1");
  set.mutable_metadata()->set_resource_version("7");
  set.mutable_status()->set_ready_replicas(2);
  set.mutable_spec()->mutable_update_strategy()->set_type("RollingUpdate");
  auto& container = *set.mutable_spec()->mutable_template_()->mutable_spec()->mutable_containers(0);
  container.set_image_pull_policy("IfNotPresent");
  (*container.mutable_resources()->mutable_requests())["cpu"] = "1";
  (*set.mutable_metadata()->mutable_labels())["team"] = "a";
  return set;
}

TEST(Intent, WhatOthersAddBesideItDoesNotMatter) { EXPECT_TRUE(HoldsIntent(Live(), Intent())); }

TEST(Intent, IsNotHeldWhenSomebodyHasChangedWhatItStates) {
  struct Row {
    const char* name;
    void (*change)(StatefulSet&);
  };
  const Row rows[] = {
      {"a number", [](StatefulSet& s) { s.mutable_spec()->set_replicas(3); }},
      {"a number, away", [](StatefulSet& s) { s.mutable_spec()->clear_replicas(); }},
      {"a label",
       [](StatefulSet& s) {
         (*s.mutable_metadata()->mutable_labels())["rempart.dev/model"] = "other";
       }},
      {"a label, away", [](StatefulSet& s) { s.mutable_metadata()->clear_labels(); }},
      {"a quantity",
       [](StatefulSet& s) {
         auto& pod = *s.mutable_spec()->mutable_template_()->mutable_spec();
         (*pod.mutable_containers(0)->mutable_resources()->mutable_requests())["cpu"] = "2";
       }},
      {"a word of a command",
       [](StatefulSet& s) {
         auto& pod = *s.mutable_spec()->mutable_template_()->mutable_spec();
         pod.mutable_containers(0)->set_command(0, "/bin/sh");
       }},
      {"a word more",
       [](StatefulSet& s) {
         s.mutable_spec()->mutable_template_()->mutable_spec()->mutable_containers(0)->add_command(
             "--verbose");
       }},
      {"a container more",
       [](StatefulSet& s) {
         s.mutable_spec()->mutable_template_()->mutable_spec()->add_containers()->set_name("x");
       }},
      {"a false that is stated",
       [](StatefulSet& s) {
         s.mutable_spec()
             ->mutable_template_()
             ->mutable_spec()
             ->clear_automount_service_account_token();
       }},
  };
  for (const Row& row : rows) {
    StatefulSet live = Live();
    row.change(live);
    EXPECT_FALSE(HoldsIntent(live, Intent())) << row.name;
  }
}

TEST(Intent, ADigestIsTheSameForTheSameIntentAndAnotherForLessOfIt) {
  StatefulSet a = Intent();
  StatefulSet b = Intent();
  for (int i = 0; i < 20; ++i) {
    (*a.mutable_metadata()->mutable_labels())[std::to_string(i)] = "x";
    (*b.mutable_metadata()->mutable_labels())[std::to_string(19 - i)] = "x";
  }
  EXPECT_EQ(IntentDigest(a), IntentDigest(b));
  b.mutable_metadata()->mutable_labels()->erase("3");
  EXPECT_NE(IntentDigest(a), IntentDigest(b));
  EXPECT_TRUE(HoldsIntent(a, b)) << "which is why there is a digest";
}

}  // namespace
}  // namespace rempart::op
