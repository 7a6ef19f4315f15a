// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/leader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/operator/kube/eventually.h"
#include "tests/operator/kube/fake_api_server.h"

namespace rempart::op {
namespace {

LeaderOptions OptionsOf(const std::string& identity) {
  return {.lease = {"rempart", "rempart-operator"},
          .identity = identity,
          .renew_deadline = absl::Milliseconds(100),
          .retry = absl::Milliseconds(2)};
}

std::optional<LeaseView> Held(const std::string& holder, int seconds, absl::Time since) {
  LeaseView view;
  view.lease.mutable_spec()->set_holder_identity(holder);
  view.lease.mutable_spec()->set_lease_duration_seconds(seconds);
  view.unchanged_since = since;
  return view;
}

TEST(DecideLease, Table) {
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  struct Row {
    const char* what;
    std::optional<LeaseView> view;
    LeaseMove move;
  };
  const Row rows[] = {
      {"no lease: make it", std::nullopt, LeaseMove::kCreate},
      {"ours: renew it", Held("us", 15, now - absl::Seconds(5)), LeaseMove::kRenew},
      {"ours, long silent: renew it", Held("us", 15, now - absl::Hours(1)), LeaseMove::kRenew},
      {"released: take it", Held("", 15, now), LeaseMove::kTake},
      {"another's, fresh: wait", Held("them", 15, now - absl::Seconds(14)), LeaseMove::kWait},
      {"another's, silent: take it", Held("them", 15, now - absl::Seconds(15)), LeaseMove::kTake},
      {"no duration counts as a second", Held("them", 0, now), LeaseMove::kWait},
  };
  for (const Row& row : rows) {
    EXPECT_EQ(DecideLease(row.view, OptionsOf("us"), now), row.move) << row.what;
  }
}

TEST(LeaderElector, ASilentHolderIsReplacedAfterTheLeasesDuration) {
  FakeApiServer server;
  const Client client(&server);
  ManualClock clock;
  LeaderElector one(&client, OptionsOf("one"), &clock);
  LeaderElector two(&client, OptionsOf("two"), &clock);
  ASSERT_TRUE(*one.Try());
  EXPECT_FALSE(*two.Try());
  clock.Advance(absl::Seconds(14));
  EXPECT_FALSE(*two.Try());
  clock.Advance(absl::Seconds(2));
  EXPECT_TRUE(*two.Try());
  EXPECT_FALSE(*one.Try()) << "the old holder learns that it is no more";
}

TEST(LeaderElector, ALeaderThatCannotRenewGivesUp) {
  FakeApiServer server;
  const Client client(&server);
  SystemClock clock;
  LeaderElector elector(&client, OptionsOf("one"), &clock);
  std::stop_source stop;
  const bool released = elector.Run(stop.get_token(), [&] { server.SetFaults({.fail = 1}); });
  EXPECT_FALSE(released);
  EXPECT_FALSE(elector.leading());
}

TEST(LeaderElector, AStopReleasesTheLeaseForTheNext) {
  FakeApiServer server;
  const Client client(&server);
  SystemClock clock;
  LeaderElector one(&client, OptionsOf("one"), &clock);
  LeaderElector two(&client, OptionsOf("two"), &clock);
  std::stop_source stop;
  EXPECT_TRUE(one.Run(stop.get_token(), [&] { stop.request_stop(); }));
  EXPECT_TRUE(*two.Try());
}

TEST(LeaderElector, OthersLearnWhereTheHolderAnswersAndForgetItWhenItGoes) {
  FakeApiServer server;
  const Client client(&server);
  SystemClock clock;
  LeaderOptions first = OptionsOf("one");
  first.address = "10.0.0.1:7080";
  LeaderElector one(&client, first, &clock);
  LeaderElector two(&client, OptionsOf("two"), &clock);
  std::stop_source stop_one;
  std::stop_source stop_two;
  std::atomic<bool> two_leads = false;
  std::thread other;
  EXPECT_TRUE(one.Run(
      stop_one.get_token(),
      [&] {
        other = std::thread([&] { two.Run(stop_two.get_token(), [&] { two_leads = true; }); });
        EXPECT_TRUE(Eventually([&] { return two.leader_address() == "10.0.0.1:7080"; }));
        stop_one.request_stop();
      },
      [&] { EXPECT_FALSE(two_leads) << "told before another may lead"; }));
  EXPECT_TRUE(Eventually([&] { return two_leads.load(); }));
  EXPECT_TRUE(Eventually([&] { return two.leader_address().empty(); }));
  stop_two.request_stop();
  other.join();
}

}  // namespace
}  // namespace rempart::op
