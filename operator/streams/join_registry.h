// SPDX-License-Identifier: Apache-2.0
// What the workers say of themselves on their Join streams, by group. Kept nowhere else: after a
// restart of the operator the workers dial again and say it again. Any thread.
// 1. The last stream of a group counts; what an older one says later is ignored.
// 2. A worker that said why it failed is quoted until it gets further than that: it dies and starts
//    again with pauses in between, and the reason must not flicker.
// 3. Any other broken stream leaves the group unknown; then its pod's readiness counts.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "operator/plan/observed.h"
#include "proto/group/v1/group.pb.h"

namespace rempart::op {

struct GroupReport {
  WorkerProgress progress;
  std::string pod_name;
  int32_t epoch = 0;
  absl::Time at;  // when it was said
};

class JoinRegistry {
 public:
  // `on_change` gets the name of a group ("namespace/model-0") whose phase has changed; it must not
  // call back.
  JoinRegistry(const Clock* clock, std::function<void(const std::string& group)> on_change)
      : clock_(clock), on_change_(std::move(on_change)) {}

  // A stream has introduced itself: its epoch, which is never smaller than one given before.
  int32_t Joined(int64_t stream, const group::v1::Identity& identity);
  void Progressed(int64_t stream, const group::v1::Progress& progress);
  void Left(int64_t stream);

  // Unknown when no stream has said anything.
  GroupReport Report(const std::string& group) const;
  int streams() const;

 private:
  struct Entry {
    int64_t stream = 0;  // 0: none is open
    GroupReport report;
    bool quotes_failure = false;  // report is of an earlier process
  };

  const Clock* const clock_;
  const std::function<void(const std::string&)> on_change_;
  mutable Mutex mu_;
  std::map<std::string, Entry> groups_ ABSL_GUARDED_BY(mu_);
  std::map<int64_t, std::string> streams_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::op
