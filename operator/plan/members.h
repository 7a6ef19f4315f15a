// SPDX-License-Identifier: Apache-2.0
// What the members of one group say of themselves and of each other, as a plan sees it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "operator/plan/worker_phase.h"

namespace rempart::op {

// The last fault of a GPU that a member told of.
struct GpuFaultObservation {
  std::string gpu;  // "NVIDIA H200 GPU-5fb9a..."
  int32_t xid = 0;  // 0: none was reported
  std::string meaning;
  std::string advice;
  std::string time;     // RFC 3339 with milliseconds, by the member's clock
  bool broken = false;  // the member could not go on with it
};

// The last word of one pod of a group.
struct MemberObservation {
  int32_t pod_index = 0;
  std::string pod;
  std::string node;
  bool connected = false;  // its Join stream is open
  int32_t silent_ms = 0;   // since its last word
  WorkerPhase phase = WorkerPhase::kUnknown;
  int32_t epoch = 0;
  int32_t first_rank = 0;
  int32_t step = 0;
  int32_t last_step_age_seconds = 0;
  std::string activity;
  std::vector<std::string> gpus = {};
  std::string gpu_concern = {};  // what is wrong with them short of a fault; empty: nothing
  std::optional<GpuFaultObservation> gpu_fault = {};
  std::string node_warning = {};  // what threatens the pod on its node; empty: nothing
};

// Why the last epoch of a group ended.
struct EndingObservation {
  int32_t epoch = 0;  // 0: none has ended
  std::string reason;
  std::vector<std::string> blamed_pods;
  int32_t detection_ms = 0;
  int32_t age_ms = 0;  // since it ended
  std::vector<int32_t> blamed_ranks = {};
  // Of blamed_pods, in their order; empty: not told.
  std::vector<std::string> blamed_pod_uids = {};
};

// Links between the members, measured before the weights load; zeros: not measured.
struct FabricObservation {
  int32_t all_reduce_microseconds = 0;
  int32_t mib_per_second = 0;
  int32_t microseconds_per_token = 0;
  int32_t one_shot_kib = 0;  // of sums between GPUs
};

// A part of the leader's start, such as "read".
struct StartPartObservation {
  std::string part;
  int32_t milliseconds = 0;
};

struct MembersObservation {
  int32_t epoch = 0;
  bool running = false;   // the epoch is not over
  std::string waits_for;  // what the group waits for, in words
  EndingObservation ending;
  FabricObservation fabric;
  std::vector<StartPartObservation> start = {};
  std::vector<MemberObservation> members;
};

}  // namespace rempart::op
