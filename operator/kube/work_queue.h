// SPDX-License-Identifier: Apache-2.0
// The keys that wait to be reconciled. Any thread.
// 1. An equal key waits once; of two times the earlier wins.
// 2. A key is never with two takers; added while it is, it comes again after Done.
// 3. Retry waits longer each time, until Forget; failures of a key that came before its time,
//    because something changed, make it wait no longer than it would have.
// 4. What a person waits for (AddUrgent) goes before whatever has become due within the last
//    kHeadStart; nothing waits for ever behind it. A taker may take only such keys (TakeUrgent), so
//    that one is free for them while all others wait for the API server.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <stop_token>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "operator/kube/resource.h"

namespace rempart::op {

struct WorkQueueOptions {
  absl::Duration first_retry = absl::Milliseconds(50);
  absl::Duration longest_retry = absl::Minutes(2);
};

class WorkQueue {
 public:
  static constexpr absl::Duration kHeadStart = absl::Seconds(30);

  explicit WorkQueue(const Clock* clock, WorkQueueOptions options = {})
      : clock_(clock), options_(options) {}

  void Add(const ObjectKey& key, absl::Duration delay = absl::ZeroDuration());
  void AddUrgent(const ObjectKey& key);
  void Retry(const ObjectKey& key);
  void Forget(const ObjectKey& key);

  // The key that is due the longest; none if none is due.
  std::optional<ObjectKey> TryTake();
  // Of the urgent ones.
  std::optional<ObjectKey> TryTakeUrgent();
  // Waits for one; none after a stop.
  std::optional<ObjectKey> Take(std::stop_token stop);
  std::optional<ObjectKey> TakeUrgent(std::stop_token stop);
  // The taker has finished with the key.
  void Done(const ObjectKey& key);

  // Keys that wait, due or not.
  int waiting() const;
  int failures(const ObjectKey& key) const;

 private:
  struct Entry {
    std::optional<absl::Time> due;  // waits
    bool urgent = false;            // while it waits
    bool taken = false;
    int failures = 0;
    absl::Time counted_until = absl::InfinitePast();  // failures before this count as one
    bool idle() const { return !due.has_value() && !taken && failures == 0; }
  };

  using Waiting = std::set<std::pair<absl::Time, ObjectKey>>;

  void AddLocked(const ObjectKey& key, absl::Time due) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Enlist(const ObjectKey& key, const Entry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Unlist(const ObjectKey& key, const Entry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The list is waiting_ or urgent_.
  std::optional<ObjectKey> TryTakeFrom(Waiting WorkQueue::*list) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<ObjectKey> TakeFrom(Waiting WorkQueue::*list, std::stop_token stop);
  absl::Time FirstDue(Waiting WorkQueue::*list) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Clock* const clock_;
  const WorkQueueOptions options_;
  mutable Mutex mu_;
  std::map<ObjectKey, Entry> entries_ ABSL_GUARDED_BY(mu_);
  // Of entries_, those that wait and that nobody has taken; of these, the urgent ones.
  Waiting waiting_ ABSL_GUARDED_BY(mu_);
  Waiting urgent_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::op
