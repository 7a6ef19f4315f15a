// SPDX-License-Identifier: Apache-2.0
// What is known of one group of several pods: the words of its members and the epoch that was given
// to them. Plain data; the streams fill it (operator/streams/join_registry.h).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "operator/plan/worker_phase.h"

namespace rempart::op {

// Time since the operator began, counted only while it was awake: an operator that was stopped for
// a minute has not been waiting for anybody for a minute. No wall clock has a part in it.
using AwakeTime = absl::Duration;

// What a member last said of one rank.
struct RankWord {
  int32_t rank = 0;
  int64_t step = 0;
  absl::Duration step_age = {};
  std::string activity = {};
  absl::Duration activity_age = {};
  std::vector<int32_t> waiting_for = {};
  // Zero for the speaker's own ranks; for others, how long ago the speaker heard of them.
  absl::Duration heard_age = {};
};

struct Member {
  int32_t pod_index = 0;
  std::string pod_name = {};
  std::string pod_uid = {};  // empty: not told
  std::string node_name = {};
  // Of the process that was in this place before.
  std::string former_pod_uid = {};
  std::string former_node_name = {};
  std::string address = {};
  std::string data_address = {};
  std::string config_hash = {};
  int32_t pod_count = 1;
  int32_t ranks_per_pod = 1;

  bool connected = false;  // its stream is open
  AwakeTime heard = {};    // when it last said anything
  // The epoch that this process has been given, by this operator or an earlier one.
  int32_t given_epoch = 0;
  // Its own words; until the first Progress of a stream the phase is unknown.
  WorkerPhase phase = WorkerPhase::kUnknown;
  int32_t epoch = 0;  // that it is in
  int32_t ended_epoch = 0;
  std::string ended_reason = {};
  int32_t ended_blamed_rank = -1;
  std::string message = {};  // of kFailed
  std::vector<RankWord> ranks = {};
  // The highest epoch that it has been told is over.
  int32_t told_over = 0;
  int32_t told_go = 0;  // on this stream
};

// How well founded it is whom an ending is blamed on.
enum class Evidence { kNone, kWaitedFor, kSilent, kGone };

struct Ending {
  int32_t epoch = 0;  // 0: none yet
  std::string reason = {};
  std::vector<int32_t> blamed_pods = {};
  // Which pods they were then, as long as blamed_pods; empty: not told.
  std::vector<std::string> blamed_pod_uids = {};
  std::vector<int32_t> blamed_ranks = {};
  Evidence evidence = Evidence::kNone;
  AwakeTime at = {};
  // From the last sign of life of whoever is blamed until the ending.
  absl::Duration detection = {};
};

struct GroupState {
  std::map<int32_t, Member> members;  // by pod index

  int32_t epoch = 0;              // the last that was given or adopted
  bool running = false;           // given, and not over
  bool gone_on = false;           // Go was given: it serves, or warms up
  AwakeTime since = {};           // when it was given, adopted or told to go
  Ending ending = {};             // of the last epoch that ended
  int32_t formations_failed = 0;  // in a row, before Go
  AwakeTime not_before = {};      // of the next epoch
  int64_t epochs_ended = 0;
};

}  // namespace rempart::op
