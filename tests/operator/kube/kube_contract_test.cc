// SPDX-License-Identifier: Apache-2.0
// What the operator relies on of an API server, through its own client. The fake is held to the
// same suite as the real one: REMPART_TEST_KUBECONFIG names a cluster that has the CRD of Model.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "operator/kube/client.h"
#include "operator/kube/curl_transport.h"
#include "operator/kube/events.h"
#include "operator/kube/informer.h"
#include "operator/kube/leader.h"
#include "tests/operator/kube/eventually.h"
#include "tests/operator/kube/fake_api_server.h"

namespace rempart::op {
namespace {

using k8s::v1::ConfigMap;
using serving::v1alpha1::Model;

constexpr char kOwner[] = "contract-test";
const ResourceType kNamespaces = {"", "v1", "namespaces", "Namespace"};

std::vector<std::string> Backends() {
  std::vector<std::string> backends = {"fake"};
  if (std::getenv("REMPART_TEST_KUBECONFIG") != nullptr) backends.push_back("real");
  return backends;
}

absl::Status IgnoreItem(absl::string_view) { return absl::OkStatus(); }

class KubeContract : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() == "fake") {
      transport_ = std::make_unique<FakeApiServer>();
    } else {
      const auto access = AccessFromKubeconfig(std::getenv("REMPART_TEST_KUBECONFIG"));
      ASSERT_TRUE(access.ok()) << access.status();
      transport_ = std::make_unique<CurlTransport>(*access);
    }
    client_ = std::make_unique<Client>(transport_.get());
    static std::atomic<int> count = 0;
    ns_ = absl::StrCat("contract-", getpid(), "-", count++);
    const auto made = client_->Create(
        kNamespaces, {"", ns_},
        absl::StrCat(R"({"apiVersion":"v1","kind":"Namespace","metadata":{"name":")", ns_, "\"}}"));
    ASSERT_TRUE(made.ok()) << made.status();
  }

  void TearDown() override { EXPECT_TRUE(client_->Delete(kNamespaces, {"", ns_}, "").ok()); }

  ConfigMap NewConfigMap(const std::string& name, const std::string& value = "1") const {
    ConfigMap map;
    map.mutable_metadata()->set_namespace_(ns_);
    map.mutable_metadata()->set_name(name);
    (*map.mutable_metadata()->mutable_labels())["test"] = "contract";
    (*map.mutable_data())["key"] = value;
    return map;
  }

  Model NewModel(const std::string& name) const {
    Model model;
    model.mutable_metadata()->set_namespace_(ns_);
    model.mutable_metadata()->set_name(name);
    model.mutable_spec()->mutable_source()->set_uri("pvc://models/a.gguf");
    model.mutable_spec()->set_replicas(1);
    return model;
  }

  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Client> client_;
  std::string ns_;
};

INSTANTIATE_TEST_SUITE_P(Servers, KubeContract, testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param; });

TEST_P(KubeContract, WhatIsCreatedIsReadBack) {
  const Api<ConfigMap> api(client_.get());
  const auto created = api.Create(NewConfigMap("a"));
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_FALSE(created->metadata().uid().empty());
  EXPECT_FALSE(created->metadata().resource_version().empty());
  const auto read = api.Get({ns_, "a"});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->data().at("key"), "1");
  EXPECT_EQ(read->metadata().uid(), created->metadata().uid());
}

TEST_P(KubeContract, CreatingTwiceSaysAlreadyExists) {
  const Api<ConfigMap> api(client_.get());
  ASSERT_TRUE(api.Create(NewConfigMap("a")).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(api.Create(NewConfigMap("a", "2")).status()));
}

TEST_P(KubeContract, WhatIsMissingIsNotFound) {
  const auto read = Api<ConfigMap>(client_.get()).Get({ns_, "missing"});
  EXPECT_TRUE(absl::IsNotFound(read.status())) << read.status();
  EXPECT_TRUE(absl::StrContains(std::string(read.status().message()), "missing"));
}

TEST_P(KubeContract, AListHoldsWhatTheSelectorSelects) {
  const Api<ConfigMap> api(client_.get());
  ConfigMap other = NewConfigMap("other");
  (*other.mutable_metadata()->mutable_labels())["test"] = "something";
  ASSERT_TRUE(api.Create(NewConfigMap("a")).ok());
  ASSERT_TRUE(api.Create(NewConfigMap("b")).ok());
  ASSERT_TRUE(api.Create(other).ok());
  const auto list = api.List(ns_, "test=contract");
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->size(), 2u);
  EXPECT_EQ((*list)[0].metadata().name(), "a");
  EXPECT_EQ((*list)[1].metadata().name(), "b");
}

TEST_P(KubeContract, AListOfSeveralPagesIsWhole) {
  const Api<ConfigMap> api(client_.get());
  constexpr int kCount = 505;  // the client asks for 100 at a time
  for (int i = 0; i < kCount; ++i) {
    ASSERT_TRUE(api.Create(NewConfigMap(absl::StrCat("page-", i))).ok());
  }
  const auto list = api.List(ns_, "test=contract");
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->size(), static_cast<size_t>(kCount));

  // Each page is handed over before the next is asked for: no more is in memory.
  const int64_t before = client_->calls();
  std::vector<int64_t> calls;
  const auto version = client_->List(api.type(), ns_, "test=contract", [&](absl::string_view) {
    calls.push_back(client_->calls() - before);
    return absl::OkStatus();
  });
  ASSERT_TRUE(version.ok()) << version.status();
  ASSERT_EQ(calls.size(), static_cast<size_t>(kCount));
  EXPECT_EQ(calls[99], 1);
  EXPECT_EQ(calls[100], 2);
  EXPECT_EQ(calls[504], 6);
}

TEST_P(KubeContract, AnItemThatIsRefusedEndsTheList) {
  const Api<ConfigMap> api(client_.get());
  for (const char* name : {"a", "b", "c"}) ASSERT_TRUE(api.Create(NewConfigMap(name)).ok());
  int items = 0;
  const auto version = client_->List(api.type(), ns_, "test=contract", [&](absl::string_view) {
    return ++items == 2 ? absl::InvalidArgumentError("unreadable") : absl::OkStatus();
  });
  EXPECT_TRUE(absl::IsInvalidArgument(version.status())) << version.status();
  EXPECT_EQ(items, 2);
}

TEST_P(KubeContract, ApplyCreatesThenChangesAndEqualIntentChangesNothing) {
  const Api<ConfigMap> api(client_.get());
  const auto first = api.Apply(NewConfigMap("a", "1"), kOwner);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = api.Apply(NewConfigMap("a", "2"), kOwner);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->data().at("key"), "2");
  EXPECT_EQ(second->metadata().uid(), first->metadata().uid());
  EXPECT_NE(second->metadata().resource_version(), first->metadata().resource_version());
  const auto third = api.Apply(NewConfigMap("a", "2"), kOwner);
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_EQ(third->metadata().resource_version(), second->metadata().resource_version());
}

TEST_P(KubeContract, ApplyRemovesWhatItsOwnerNoLongerWantsAndLeavesTheRest) {
  const Api<ConfigMap> api(client_.get());
  ConfigMap ours = NewConfigMap("a");
  (*ours.mutable_data())["ours"] = "x";
  ConfigMap theirs = NewConfigMap("a");
  theirs.clear_data();
  (*theirs.mutable_data())["theirs"] = "y";
  ASSERT_TRUE(api.Apply(ours, kOwner).ok());
  ASSERT_TRUE(api.Apply(theirs, "somebody-else").ok());
  ours.mutable_data()->erase("ours");
  const auto applied = api.Apply(ours, kOwner);
  ASSERT_TRUE(applied.ok()) << applied.status();
  EXPECT_EQ(applied->data().count("ours"), 0u);
  EXPECT_EQ(applied->data().at("theirs"), "y");
  EXPECT_EQ(applied->data().at("key"), "1");
}

TEST_P(KubeContract, ApplyTakesContestedFieldsOver) {
  const Api<ConfigMap> api(client_.get());
  ASSERT_TRUE(api.Apply(NewConfigMap("a", "1"), "somebody-else").ok());
  const auto applied = api.Apply(NewConfigMap("a", "2"), kOwner);
  ASSERT_TRUE(applied.ok()) << applied.status();
  EXPECT_EQ(applied->data().at("key"), "2");
}

TEST_P(KubeContract, StatusAndSpecAreAppliedApart) {
  const Api<Model> api(client_.get());
  Model model = NewModel("m");
  model.mutable_status()->set_phase("Ready");
  const auto made = api.Apply(model, kOwner);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->status().phase(), "") << "the main resource takes no status";
  Model status;
  status.mutable_metadata()->set_namespace_(ns_);
  status.mutable_metadata()->set_name("m");
  status.mutable_status()->set_phase("Loading");
  const auto told = api.ApplyStatus(status, "contract-status");
  ASSERT_TRUE(told.ok()) << told.status();
  EXPECT_EQ(told->status().phase(), "Loading");
  EXPECT_EQ(told->spec().source().uri(), "pvc://models/a.gguf");
  EXPECT_EQ(told->metadata().generation(), made->metadata().generation());
  model.mutable_spec()->set_replicas(2);
  const auto edited = api.Apply(model, kOwner);
  ASSERT_TRUE(edited.ok()) << edited.status();
  EXPECT_EQ(edited->status().phase(), "Loading");
  EXPECT_EQ(edited->metadata().generation(), made->metadata().generation() + 1);
}

TEST_P(KubeContract, TheStatusOfWhatIsGoneIsNotFound) {
  Model status = NewModel("gone");
  status.clear_spec();
  status.mutable_status()->set_phase("Loading");
  const auto told = Api<Model>(client_.get()).ApplyStatus(status, kOwner);
  EXPECT_TRUE(absl::IsNotFound(told.status())) << told.status();
}

TEST_P(KubeContract, APatchOfAnOldVersionIsAConflict) {
  const Api<ConfigMap> api(client_.get());
  const auto made = api.Create(NewConfigMap("a", "1"));
  ASSERT_TRUE(made.ok()) << made.status();
  ConfigMap patch = NewConfigMap("a", "2");
  patch.mutable_metadata()->set_resource_version(made->metadata().resource_version());
  ASSERT_TRUE(api.MergePatch(patch).ok());
  (*patch.mutable_data())["key"] = "3";
  EXPECT_TRUE(absl::IsAborted(api.MergePatch(patch).status()));
  EXPECT_EQ(api.Get({ns_, "a"})->data().at("key"), "2");
}

TEST_P(KubeContract, DeleteIsDoneOnceAndOfOneIncarnationOnly) {
  const Api<ConfigMap> api(client_.get());
  ASSERT_TRUE(api.Create(NewConfigMap("a")).ok());
  const std::string stranger = "11111111-1111-4111-8111-111111111111";
  EXPECT_TRUE(absl::IsAborted(api.Delete({ns_, "a"}, stranger)));
  EXPECT_TRUE(api.Get({ns_, "a"}).ok());
  EXPECT_TRUE(api.Delete({ns_, "a"}).ok());
  EXPECT_TRUE(absl::IsNotFound(api.Get({ns_, "a"}).status()));
  EXPECT_TRUE(api.Delete({ns_, "a"}).ok()) << "what is gone is deleted";
}

TEST_P(KubeContract, ALeaseNeedsMicroseconds) {
  k8s::v1::Lease lease;
  lease.mutable_metadata()->set_namespace_(ns_);
  lease.mutable_metadata()->set_name("lease");
  lease.mutable_spec()->set_renew_time("2026-01-01T00:00:00Z");
  const auto made = Api<k8s::v1::Lease>(client_.get()).Create(lease);
  EXPECT_FALSE(made.ok());
  lease.mutable_spec()->set_renew_time("2026-01-01T00:00:00.000000Z");
  const auto again = Api<k8s::v1::Lease>(client_.get()).Create(lease);
  EXPECT_TRUE(again.ok()) << again.status();
}

// "ADDED a", "MODIFIED a"... until `count` have come.
std::vector<std::string> WatchSome(const Client& client, WatchOptions options, size_t count) {
  std::vector<std::string> seen;
  options.timeout_seconds = 10;
  const absl::Status status = client.Watch(
      ResourceOf<ConfigMap>::Type(), options,
      [&](const WatchEvent& event) {
        ConfigMap map;
        EXPECT_TRUE(FromJson(event.object_json, map).ok());
        const char* words[] = {"ADDED ", "MODIFIED ", "DELETED ", "BOOKMARK "};
        if (event.kind != WatchKind::kBookmark) {
          seen.push_back(absl::StrCat(words[static_cast<int>(event.kind)], map.metadata().name()));
        }
        return seen.size() < count;
      },
      {});
  EXPECT_TRUE(status.ok()) << status;
  return seen;
}

TEST_P(KubeContract, AWatchTellsEveryChangeSinceTheList) {
  const Api<ConfigMap> api(client_.get());
  ASSERT_TRUE(api.Create(NewConfigMap("before")).ok());
  const auto version = client_->List(api.type(), ns_, "test=contract", IgnoreItem);
  ASSERT_TRUE(version.ok()) << version.status();
  ASSERT_TRUE(api.Create(NewConfigMap("a")).ok());
  ASSERT_TRUE(api.Apply(NewConfigMap("a", "2"), kOwner).ok());
  ASSERT_TRUE(api.Delete({ns_, "a"}).ok());
  ASSERT_TRUE(api.Create(NewConfigMap("b")).ok());
  const WatchOptions options = {ns_, "test=contract", *version};
  EXPECT_EQ(WatchSome(*client_, options, 4),
            (std::vector<std::string>{"ADDED a", "MODIFIED a", "DELETED a", "ADDED b"}));
}

TEST_P(KubeContract, WhatLeavesTheSelectionIsToldAsDeleted) {
  const Api<ConfigMap> api(client_.get());
  ASSERT_TRUE(api.Create(NewConfigMap("a")).ok());
  const auto version = client_->List(api.type(), ns_, "test=contract", IgnoreItem);
  ASSERT_TRUE(version.ok()) << version.status();
  for (const char* label : {"else", "contract"}) {
    ConfigMap patch;
    *patch.mutable_metadata() = NewConfigMap("a").metadata();
    (*patch.mutable_metadata()->mutable_labels())["test"] = label;
    ASSERT_TRUE(api.MergePatch(patch).ok());
  }
  const WatchOptions options = {ns_, "test=contract", *version};
  EXPECT_EQ(WatchSome(*client_, options, 2), (std::vector<std::string>{"DELETED a", "ADDED a"}));
}

// Of Models, because their history begins with the CRD: a fresh server still knows version 1 of
// what is built in.
TEST_P(KubeContract, AWatchFromAForgottenVersionIsOutOfRange) {
  const WatchOptions options = {ns_, "", "1", 5};
  const absl::Status status = client_->Watch(ResourceOf<Model>::Type(), options,
                                             [](const WatchEvent&) { return true; }, {});
  EXPECT_TRUE(absl::IsOutOfRange(status)) << status;
}

TEST_P(KubeContract, AWatchEndsInTimeAndAtAStop) {
  const auto version = client_->List(ResourceOf<ConfigMap>::Type(), ns_, "", IgnoreItem);
  ASSERT_TRUE(version.ok()) << version.status();
  const auto watch = [&](int seconds, std::stop_token stop) {
    return client_->Watch(
        ResourceOf<ConfigMap>::Type(), {ns_, "test=contract", *version, seconds},
        [](const WatchEvent&) { return true; }, stop);
  };
  EXPECT_TRUE(watch(1, {}).ok());
  std::stop_source stop;
  std::jthread stopper([&] { stop.request_stop(); });
  EXPECT_TRUE(watch(300, stop.get_token()).ok());
}

TEST_P(KubeContract, AnInformersStoreFollowsTheCluster) {
  const Api<ConfigMap> api(client_.get());
  ASSERT_TRUE(api.Create(NewConfigMap("a", "1")).ok());
  Informer<ConfigMap> informer(client_.get(), {.ns = ns_, .label_selector = "test=contract"});
  std::jthread thread([&](std::stop_token stop) { informer.Run(stop); });
  const auto value = [&](const std::string& name) {
    const auto stored = informer.store().Get({ns_, name});
    return stored == nullptr ? "" : stored->data().at("key");
  };
  EXPECT_TRUE(Eventually([&] { return value("a") == "1"; }));
  ASSERT_TRUE(api.Apply(NewConfigMap("a", "2"), kOwner).ok());
  ASSERT_TRUE(api.Create(NewConfigMap("b", "3")).ok());
  EXPECT_TRUE(Eventually([&] { return value("a") == "2" && value("b") == "3"; }));
  ASSERT_TRUE(api.Delete({ns_, "a"}).ok());
  EXPECT_TRUE(Eventually([&] { return value("a").empty(); }));
  EXPECT_EQ(informer.reflector().lists(), 1);
}

TEST_P(KubeContract, OneOfTwoElectorsLeadsUntilItReleases) {
  SystemClock clock;
  LeaderOptions options = {.lease = {ns_, "leader"}, .identity = "one"};
  LeaderElector one(client_.get(), options, &clock);
  options.identity = "two";
  LeaderElector two(client_.get(), options, &clock);
  const auto leads = [](LeaderElector& elector) {
    const auto held = elector.Try();
    EXPECT_TRUE(held.ok()) << held.status();
    return held.ok() && *held;
  };
  EXPECT_TRUE(leads(one));
  EXPECT_FALSE(leads(two));
  EXPECT_TRUE(leads(one)) << "it renews";
  options.identity = "one";
  options.retry = absl::Milliseconds(5);
  LeaderElector runner(client_.get(), options, &clock);
  std::stop_source stop;
  EXPECT_TRUE(runner.Run(stop.get_token(), [&] { stop.request_stop(); })) << "it releases";
  EXPECT_TRUE(leads(two));
}

TEST_P(KubeContract, EqualEventsAreOneThatCounts) {
  SystemClock clock;
  EventRecorder recorder(client_.get(), "instance", &clock);
  std::jthread thread([&](std::stop_token stop) { recorder.Run(stop); });
  EventRecord record;
  record.about.set_api_version("v1");
  record.about.set_kind("ConfigMap");
  record.about.set_namespace_(ns_);
  record.about.set_name("a");
  record.about.set_uid("11111111-1111-4111-8111-111111111111");
  record.type = "Warning";
  record.reason = "Trouble";
  record.message = "something is wrong; do something";
  recorder.Record(record);
  recorder.Record(record);
  const Api<k8s::v1::Event> api(client_.get());
  EXPECT_TRUE(Eventually([&] {
    const auto events = api.List(ns_, "");
    return events.ok() && events->size() == 1 && (*events)[0].count() == 2 &&
           (*events)[0].message() == record.message;
  }));
}

}  // namespace
}  // namespace rempart::op
