// SPDX-License-Identifier: Apache-2.0
// The informer against an API server that misbehaves: its store ends equal to what is there.
#include "operator/kube/informer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/operator/kube/eventually.h"
#include "tests/operator/kube/fake_api_server.h"

namespace rempart::op {
namespace {

using k8s::v1::ConfigMap;

constexpr char kNs[] = "informers";

ConfigMap NewConfigMap(const std::string& name, const std::string& value) {
  ConfigMap map;
  map.mutable_metadata()->set_namespace_(kNs);
  map.mutable_metadata()->set_name(name);
  (*map.mutable_data())["key"] = value;
  return map;
}

class InformerTest : public testing::Test {
 protected:
  void Start() {
    informer_.OnChange([this](const ConfigMap&) { ++told_; });
    thread_ = std::jthread([this](std::stop_token stop) { informer_.Run(stop); });
    ASSERT_TRUE(Eventually([&] { return informer_.synced(); }));
  }

  void Write(const std::string& name, const std::string& value) {
    ASSERT_TRUE(writer_.Apply(NewConfigMap(name, value), "test").ok());
  }

  std::string Stored(const std::string& name) const {
    const auto stored = informer_.store().Get({kNs, name});
    return stored == nullptr ? "" : stored->data().at("key");
  }

  // Name and value of everything in the store, and on the server.
  std::string StoreText() const {
    std::string text;
    for (const auto& map : informer_.store().All()) {
      absl::StrAppend(&text, map->metadata().name(), "=", map->data().at("key"), " ");
    }
    return text;
  }
  std::string ServerText() const {
    std::string text;
    const auto list = writer_.List(kNs);
    if (!list.ok()) return "unreadable";
    for (const ConfigMap& map : *list) {
      absl::StrAppend(&text, map.metadata().name(), "=", map.data().at("key"), " ");
    }
    return text;
  }

  FakeApiServer server_;
  Client client_{&server_};
  Api<ConfigMap> writer_{&client_};
  std::atomic<int> told_ = 0;
  Informer<ConfigMap> informer_{
      &client_, {.first_pause = absl::Milliseconds(1), .longest_pause = absl::Milliseconds(5)}};
  std::jthread thread_;
};

TEST_F(InformerTest, ABrokenStreamIsResumedWithoutAList) {
  Write("a", "1");
  Start();
  server_.BreakStreams();
  Write("a", "2");
  EXPECT_TRUE(Eventually([&] { return Stored("a") == "2"; }));
  EXPECT_EQ(informer_.reflector().lists(), 1);
}

TEST_F(InformerTest, AForgottenHistoryIsReplacedByAList) {
  Write("a", "1");
  Write("b", "1");
  Start();
  server_.BreakStreams();
  ASSERT_TRUE(writer_.Delete({kNs, "a"}).ok());
  Write("b", "2");
  server_.ForgetHistory();
  EXPECT_TRUE(Eventually([&] { return Stored("a").empty() && Stored("b") == "2"; }));
  // Where the watch was back before the history was gone, it told of both, and breaks only then.
  EXPECT_TRUE(Eventually([&] { return informer_.reflector().lists() == 2; }));
}

TEST_F(InformerTest, ALineThatIsNoEventLeadsToAList) {
  Start();
  ASSERT_TRUE(Eventually([&] { return informer_.reflector().watches() == 1; }));
  Write("a", "1");
  ASSERT_TRUE(Eventually([&] { return Stored("a") == "1"; }));
  server_.SendGarbage();
  EXPECT_TRUE(Eventually([&] { return informer_.reflector().lists() == 2; }));
  Write("a", "2");
  EXPECT_TRUE(Eventually([&] { return Stored("a") == "2"; }));
}

TEST_F(InformerTest, WhatHappenedBetweenTwoListsIsTold) {
  Write("a", "1");
  Write("same", "1");
  Start();
  EXPECT_EQ(told_, 2);
  server_.ForgetHistory();
  ASSERT_TRUE(Eventually([&] { return informer_.reflector().lists() >= 2; }));
  EXPECT_EQ(told_, 2) << "what has not changed is not told again";
  ASSERT_TRUE(writer_.Delete({kNs, "a"}).ok());
  EXPECT_TRUE(Eventually([&] { return told_ == 3; })) << "the deletion is";
}

TEST_F(InformerTest, AServerThatFailsIsAskedAgain) {
  server_.SetFaults({.fail = 0.8, .seed = 3});
  Start();
  server_.SetFaults({});
  Write("a", "1");
  EXPECT_TRUE(Eventually([&] { return Stored("a") == "1"; }));
}

// Writers, and a network that breaks, repeats and reorders; a history that is forgotten. What the
// store holds when all is quiet is what the server holds.
TEST_F(InformerTest, AfterAnyFaultsTheStoreIsEqualToTheServer) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    server_.SetFaults({.break_stream = 0.3, .repeat = 0.3, .swap = 0.3, .seed = seed});
    if (seed == 1) Start();
    std::mt19937_64 random(seed);
    for (int i = 0; i < 400; ++i) {
      const std::string name = absl::StrCat("object-", random() % 12);
      const uint64_t choice = random() % 100;
      if (choice < 60) {
        Write(name, absl::StrCat(seed, "-", i));
      } else if (choice < 97) {
        ASSERT_TRUE(writer_.Delete({kNs, name}).ok());
      } else {
        server_.ForgetHistory();
      }
      if (random() % 8 == 0) std::this_thread::yield();
    }
    EXPECT_TRUE(Eventually([&] { return StoreText() == ServerText(); }))
        << "store " << StoreText() << "\nserver " << ServerText();
  }
}

}  // namespace
}  // namespace rempart::op
