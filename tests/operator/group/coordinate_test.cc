// SPDX-License-Identifier: Apache-2.0
// When an epoch begins, goes on and ends, and on whom it is blamed: a group of three pods of one
// rank each, told of in seconds.
#include "operator/group/coordinate.h"

#include <gtest/gtest.h>

namespace rempart::op {
namespace {

using Kind = Decision::Kind;
constexpr int32_t kFloor = 100;

// A group and its clock. Members speak at the time that stands.
class Group {
 public:
  explicit Group(int32_t pods = 3) : pods_(pods) {}

  Member& Join(int32_t pod, int32_t last_epoch = 0) {
    Member& member = state_.members[pod] = {};
    member.pod_index = pod;
    member.pod_name = "m-" + std::to_string(pod);
    member.pod_count = pods_;
    member.config_hash = "a";
    member.connected = true;
    member.given_epoch = last_epoch;
    member.heard = now_;
    return member;
  }
  Member& Say(int32_t pod, WorkerPhase phase, int32_t epoch = 0) {
    Member& member = state_.members.at(pod);
    member.phase = phase;
    member.epoch = epoch;
    member.heard = now_;
    return member;
  }
  void SayEnded(int32_t pod, int32_t epoch, int32_t blamed) {
    Member& member = Say(pod, WorkerPhase::kStarting);
    member.ended_epoch = epoch;
    member.ended_blamed_rank = blamed;
    member.ended_reason = "a peer is gone";
  }
  void SayAll(WorkerPhase phase, int32_t epoch = 0) {
    for (int32_t pod = 0; pod < pods_; ++pod) Say(pod, phase, epoch);
  }
  // What this pod tells of another one's rank.
  void Hears(int32_t pod, int32_t other, absl::Duration age) {
    RankWord word;
    word.rank = other;
    word.heard_age = age;
    state_.members.at(pod).ranks.push_back(word);
  }
  void Waits(int32_t pod, std::vector<int32_t> waiting_for, absl::Duration age,
             const std::string& activity = "all_reduce") {
    RankWord word;
    word.rank = pod;
    word.activity = activity;
    word.activity_age = age;
    word.waiting_for = std::move(waiting_for);
    state_.members.at(pod).ranks = {word};
  }
  void Leave(int32_t pod) { state_.members.at(pod).connected = false; }
  void Pass(double seconds) { now_ += absl::Seconds(seconds); }

  Decision Decide() {
    const Decision decision = Coordinate(state_, now_, kFloor);
    Apply(decision, now_, state_);
    return decision;
  }
  // Through formation until it serves.
  int32_t Serve() {
    for (int32_t pod = 0; pod < pods_; ++pod) {
      if (state_.members.count(pod) == 0) Join(pod);
    }
    SayAll(WorkerPhase::kStarting);
    const Decision form = Decide();
    EXPECT_EQ(form.kind, Kind::kForm);
    SayAll(WorkerPhase::kLoaded, form.epoch);
    EXPECT_EQ(Decide().kind, Kind::kGo);
    SayAll(WorkerPhase::kReady, form.epoch);
    EXPECT_EQ(Decide().kind, Kind::kNothing);
    return form.epoch;
  }

  GroupState& state() { return state_; }
  AwakeTime now() const { return now_; }

 private:
  const int32_t pods_;
  GroupState state_;
  AwakeTime now_ = absl::Seconds(1000);
};

using Ranks = std::vector<int32_t>;

TEST(Coordinate, BeginsAnEpochWhenEveryPodIsThere) {
  Group group;
  group.Join(0);
  group.Join(2);
  group.Say(0, WorkerPhase::kStarting);
  group.Say(2, WorkerPhase::kStarting);
  EXPECT_EQ(group.Decide().kind, Kind::kNothing);
  EXPECT_EQ(WaitsFor(group.state(), group.now()), "waits for pod 1 (2 of 3 pods are there)");
  group.Join(1);
  EXPECT_EQ(group.Decide().kind, Kind::kNothing) << "it has not said yet where it stands";
  group.Say(1, WorkerPhase::kStarting);
  const Decision form = group.Decide();
  EXPECT_EQ(form.kind, Kind::kForm);
  EXPECT_EQ(form.epoch, kFloor);
}

TEST(Coordinate, GoesOnlyWhenEveryShardIsThere) {
  Group group;
  for (int pod : {0, 1, 2}) group.Join(pod);
  group.SayAll(WorkerPhase::kStarting);
  const int32_t epoch = group.Decide().epoch;
  group.Say(0, WorkerPhase::kLoaded, epoch);
  group.Say(1, WorkerPhase::kLoaded, epoch);
  group.Say(2, WorkerPhase::kLoading, epoch);
  EXPECT_EQ(group.Decide().kind, Kind::kNothing);
  group.Say(2, WorkerPhase::kLoaded, epoch);
  EXPECT_EQ(group.Decide().kind, Kind::kGo);
}

TEST(Coordinate, NeverMixesConfigurations) {
  Group group;
  for (int pod : {0, 1, 2}) group.Join(pod);
  group.state().members.at(1).config_hash = "b";
  group.SayAll(WorkerPhase::kStarting);
  EXPECT_EQ(group.Decide().kind, Kind::kNothing);
}

TEST(Coordinate, NamesThePodThatAMemberLost) {
  Group group;
  const int32_t epoch = group.Serve();
  group.SayEnded(0, epoch, 1);
  const Decision abort = group.Decide();
  ASSERT_EQ(abort.kind, Kind::kAbort);
  EXPECT_EQ(abort.ending.blamed_ranks, Ranks{1});
  EXPECT_NE(abort.ending.reason.find("m-1"), std::string::npos) << abort.ending.reason;
}

TEST(Coordinate, ABrokenStreamEndsNothing) {
  Group group;
  group.Serve();
  group.Leave(1);
  group.Pass(60);
  group.SayAll(WorkerPhase::kReady, group.state().epoch);
  group.Leave(1);
  group.Hears(0, 1, absl::Milliseconds(400));
  EXPECT_EQ(group.Decide().kind, Kind::kNothing);
  // Neither do all streams together.
  for (int pod : {0, 1, 2}) group.Leave(pod);
  group.Pass(60);
  EXPECT_EQ(group.Decide().kind, Kind::kNothing);
}

TEST(Coordinate, KeepsAGroupThatServedBeforeTheOperatorBegan) {
  Group group;
  for (int pod : {0, 1, 2}) group.Join(pod, 70);
  group.Say(0, WorkerPhase::kReady, 70);
  EXPECT_EQ(group.Decide().kind, Kind::kAdopt);
  group.SayAll(WorkerPhase::kReady, 70);
  EXPECT_EQ(group.Decide().kind, Kind::kNothing);
  group.Pass(1);
  EXPECT_EQ(group.Decide().kind, Kind::kNothing);
}

TEST(Coordinate, ANewProcessInAMembersPlaceEndsTheEpoch) {
  Group group;
  const int32_t epoch = group.Serve();
  group.Leave(1);
  group.Join(1);
  const Decision abort = group.Decide();
  EXPECT_EQ(abort.kind, Kind::kAbort);
  EXPECT_EQ(abort.ending.epoch, epoch);
  EXPECT_EQ(abort.ending.blamed_ranks, Ranks{1});
  EXPECT_EQ(abort.ending.evidence, Evidence::kGone);
  // The others leave it, and all meet again in the next one.
  group.SayEnded(0, epoch, 1);
  group.SayEnded(2, epoch, 1);
  group.Say(1, WorkerPhase::kStarting);
  const Decision form = group.Decide();
  EXPECT_EQ(form.kind, Kind::kForm);
  EXPECT_EQ(form.epoch, epoch + 1);
}

TEST(Coordinate, BlamesTheOneThatIsGoneNotTheOneThatLeftFirst) {
  Group group;
  const int32_t epoch = group.Serve();
  group.Leave(1);
  // Rank 2 noticed first and closed its links; rank 0 saw those close.
  group.SayEnded(2, epoch, 1);
  group.SayEnded(0, epoch, 2);
  EXPECT_EQ(group.Decide().ending.blamed_ranks, Ranks{1});
}

TEST(Coordinate, CorrectsTheBlameWhenTheStreamBreaksAfterwards) {
  Group group;
  const int32_t epoch = group.Serve();
  group.SayEnded(0, epoch, 2);
  EXPECT_EQ(group.Decide().ending.blamed_ranks, Ranks{2});
  group.Leave(1);
  const Decision again = group.Decide();
  EXPECT_EQ(again.kind, Kind::kReblame);
  EXPECT_EQ(again.ending.blamed_ranks, Ranks{1});
  EXPECT_EQ(group.Decide().kind, Kind::kNothing);
}

TEST(Coordinate, AFrozenMemberOfAnIdleGroupIsFoundWithinThreeSeconds) {
  for (const int frozen : {0, 1, 2}) {
    Group group;
    group.Serve();
    group.Pass(2.5);
    for (int pod : {0, 1, 2}) {
      if (pod == frozen) continue;
      group.Say(pod, WorkerPhase::kReady, group.state().epoch);
      // Followers hear of the leader alone.
      if (pod == 0 || frozen == 0) group.Hears(pod, frozen, absl::Seconds(2.4));
    }
    const Decision abort = group.Decide();
    EXPECT_EQ(abort.kind, Kind::kAbort) << frozen;
    EXPECT_EQ(abort.ending.blamed_ranks, Ranks{frozen});
    EXPECT_EQ(abort.ending.evidence, Evidence::kSilent);
    EXPECT_EQ(abort.ending.detection, absl::Seconds(2.5));
  }
}

TEST(Coordinate, AFrozenMemberOfABusyGroupIsFoundByWhoWaitsForIt) {
  Group group;
  group.Serve();
  group.Pass(2.2);
  group.Say(0, WorkerPhase::kReady, group.state().epoch);
  group.Say(2, WorkerPhase::kReady, group.state().epoch);
  group.Waits(0, {1}, absl::Seconds(2));
  EXPECT_EQ(group.Decide().ending.blamed_ranks, Ranks{1});
}

TEST(Coordinate, ASlowRankIsNotAStuckOne) {
  Group group;
  group.Serve();
  const auto wait = [&](double seconds) {
    group.SayAll(WorkerPhase::kReady, group.state().epoch);
    group.Waits(0, {1}, absl::Seconds(seconds));
    group.Waits(2, {1}, absl::Seconds(seconds));
    group.Waits(1, {}, absl::Seconds(seconds), "compute");
    return group.Decide();
  };
  EXPECT_EQ(wait(6).kind, Kind::kNothing);
  const Decision abort = wait(16);
  EXPECT_EQ(abort.kind, Kind::kAbort);
  EXPECT_EQ(abort.ending.blamed_ranks, Ranks{1});
}

// Of a pipeline of three: rank 0 waits for the last stage, and that for the one before it.
TEST(Coordinate, AStageThatWaitsForAnotherIsNotTheCause) {
  Group group;
  group.Serve();
  const auto wait = [&](double last, double middle, const char* activity) {
    group.SayAll(WorkerPhase::kReady, group.state().epoch);
    group.Waits(0, {2}, absl::Seconds(last + 1), "gather");
    group.Waits(2, {1}, absl::Seconds(last), "receive");
    group.Waits(1, {}, absl::Seconds(middle), activity);
    return group.Decide();
  };
  // Micro-batch after micro-batch, for longer than any one wait may last.
  EXPECT_EQ(wait(3, 3, "compute").kind, Kind::kNothing);
  EXPECT_EQ(wait(16, 16, "compute").ending.blamed_ranks, Ranks{1}) << "or it computes for ever";
}

TEST(Coordinate, OfAChainOfWaitsTheEndIsBlamed) {
  Group group;
  group.Serve();
  group.SayAll(WorkerPhase::kReady, group.state().epoch);
  group.Waits(0, {2}, absl::Seconds(40), "gather");
  group.Waits(2, {1}, absl::Seconds(1), "receive");
  group.Waits(1, {}, absl::Seconds(1), "compute");
  EXPECT_EQ(group.Decide().kind, Kind::kNothing) << "the last stage has begun to wait just now";
  group.Waits(2, {1}, absl::Seconds(2.1), "receive");
  group.Waits(1, {}, absl::Seconds(2.1), "idle");
  const Decision abort = group.Decide();
  EXPECT_EQ(abort.kind, Kind::kAbort);
  EXPECT_EQ(abort.ending.blamed_ranks, Ranks{1});
}

// What it said last, a moment before it froze, is that it waited for rank 0.
TEST(Coordinate, AStageThatFrozeWhileItWaitedIsFound) {
  Group group;
  group.Serve();
  group.SayAll(WorkerPhase::kReady, group.state().epoch);
  group.Waits(1, {0}, absl::Seconds(0.1), "receive");
  group.Pass(1.9);
  for (const int pod : {0, 2}) group.Say(pod, WorkerPhase::kReady, group.state().epoch);
  group.Waits(0, {2}, absl::Seconds(2.2), "gather");
  group.Waits(2, {1}, absl::Seconds(2.2), "receive");
  const Decision abort = group.Decide();
  EXPECT_EQ(abort.kind, Kind::kAbort);
  EXPECT_EQ(abort.ending.blamed_ranks, Ranks{1});
}

TEST(Coordinate, ACutLinkBetweenTwoLiveMembersIsBlamedOnNobody) {
  Group group;
  group.Serve();
  group.SayAll(WorkerPhase::kReady, group.state().epoch);
  group.Waits(0, {1}, absl::Seconds(3));
  group.Waits(1, {0}, absl::Seconds(3));
  const Decision abort = group.Decide();
  EXPECT_EQ(abort.kind, Kind::kAbort);
  EXPECT_TRUE(abort.ending.blamed_ranks.empty());
  EXPECT_NE(abort.ending.reason.find("ranks 0 and 1 wait for each other"), std::string::npos);
}

TEST(Coordinate, TwoLostAtOnceAreBothNamed) {
  Group group;
  const int32_t epoch = group.Serve();
  group.Leave(1);
  group.Leave(2);
  group.SayEnded(0, epoch, 1);
  const Decision abort = group.Decide();
  EXPECT_EQ(abort.ending.blamed_ranks, (Ranks{1, 2}));
  EXPECT_EQ(abort.ending.reason, "lost m-1, m-2");
}

TEST(Coordinate, WhoIsToBlameIsTheOneThatWasThereNotTheOneThatCame) {
  Group group;
  for (int pod : {0, 1, 2}) {
    Member& member = group.Join(pod);
    member.pod_uid = "first";
    member.node_name = "node-1";
  }
  group.Serve();
  Member& fresh = group.Join(1);
  fresh.pod_uid = "second";
  fresh.node_name = "node-2";
  fresh.former_pod_uid = "first";
  fresh.former_node_name = "node-1";
  const Decision abort = group.Decide();
  EXPECT_EQ(abort.kind, Kind::kAbort);
  EXPECT_EQ(abort.ending.blamed_pod_uids, std::vector<std::string>{"first"});
  EXPECT_EQ(abort.ending.reason, "lost m-1 on node-1");
}

TEST(Coordinate, WhoWasSilentAndIsReplacedThenHasBeenNamedAlready) {
  Group group;
  const int32_t epoch = group.Serve();
  while (group.Decide().kind == Kind::kNothing) {
    group.Pass(0.5);
    for (int pod : {0, 1}) {
      group.Say(pod, WorkerPhase::kReady, epoch).ranks.clear();
      group.Hears(pod, 2, absl::Seconds(3));
    }
  }
  ASSERT_EQ(group.state().ending.blamed_pods, Ranks{2});
  const std::string reason = group.state().ending.reason;
  for (int pod : {0, 1}) group.SayEnded(pod, epoch, 2);
  group.Join(2);
  EXPECT_EQ(group.Decide().kind, Kind::kNothing) << "it has not said anything yet";
  EXPECT_EQ(group.state().ending.reason, reason);
}

TEST(Coordinate, AMemberThatFailsEndsTheFormationAndIsQuoted) {
  Group group;
  for (int pod : {0, 1, 2}) group.Join(pod);
  group.SayAll(WorkerPhase::kStarting);
  group.Decide();
  group.SayAll(WorkerPhase::kLoading, group.state().epoch);
  group.Say(2, WorkerPhase::kFailed, group.state().epoch).message = "no such file";
  const Decision abort = group.Decide();
  EXPECT_EQ(abort.kind, Kind::kAbort);
  EXPECT_EQ(abort.ending.blamed_pods, Ranks{2});
  EXPECT_EQ(abort.ending.reason, "m-2 failed: no such file");
}

TEST(Coordinate, FormationsThatFailArePaced) {
  Group group;
  for (int pod : {0, 1, 2}) group.Join(pod);
  double pauses = 0;
  for (int i = 0; i < 8; ++i) {
    group.SayAll(WorkerPhase::kStarting);
    while (group.Decide().kind == Kind::kNothing) {
      group.Pass(0.5);
      pauses += 0.5;
      group.SayAll(WorkerPhase::kStarting);
    }
    const int32_t epoch = group.state().epoch;
    group.SayAll(WorkerPhase::kConnecting, epoch);
    group.SayEnded(1, epoch, -1);
    EXPECT_EQ(group.Decide().kind, Kind::kAbort);
    group.SayEnded(0, epoch, -1);
    group.SayEnded(2, epoch, -1);
  }
  EXPECT_GT(pauses, 60);
}

TEST(Coordinate, AStaleMemberIsFencedOnce) {
  Group group;
  const int32_t epoch = group.Serve();
  group.Leave(1);
  group.Join(1);
  group.Decide();
  group.SayEnded(0, epoch, 1);
  // Frozen meanwhile, back on a new stream, still in the epoch that is over.
  group.Join(2, epoch);
  group.Say(2, WorkerPhase::kReady, epoch);
  const Decision fence = group.Decide();
  EXPECT_EQ(fence.kind, Kind::kFence);
  EXPECT_EQ(fence.pod_index, 2);
  EXPECT_EQ(fence.epoch, epoch);
  EXPECT_EQ(group.Decide().kind, Kind::kNothing);
}

TEST(Coordinate, NumbersGrowOverRestartsWhateverTheFloorSays) {
  Group group;
  for (int pod : {0, 1, 2}) group.Join(pod, 5000);
  group.SayAll(WorkerPhase::kStarting);
  for (int pod : {0, 1, 2}) group.state().members.at(pod).ended_epoch = 5000;
  EXPECT_EQ(group.Decide().epoch, 5001);
}

}  // namespace
}  // namespace rempart::op
