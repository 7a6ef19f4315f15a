// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/work_queue.h"

#include <algorithm>

namespace rempart::op {
namespace {

// How long Take sleeps at most before it looks at the stop token and the clock again.
constexpr absl::Duration kLook = absl::Milliseconds(200);

}  // namespace

void WorkQueue::AddLocked(const ObjectKey& key, absl::Time due) {
  Entry& entry = entries_[key];
  if (entry.due.has_value()) {
    if (*entry.due <= due) return;
    waiting_.erase({*entry.due, key});
  }
  entry.due = due;
  if (!entry.taken) waiting_.insert({due, key});
}

void WorkQueue::Add(const ObjectKey& key, absl::Duration delay) {
  MutexLock lock(&mu_);
  AddLocked(key, clock_->Now() + delay);
}

void WorkQueue::AddUrgent(const ObjectKey& key) {
  MutexLock lock(&mu_);
  AddLocked(key, clock_->Now() - kHeadStart);
}

void WorkQueue::Retry(const ObjectKey& key) {
  MutexLock lock(&mu_);
  Entry& entry = entries_[key];
  const absl::Time now = clock_->Now();
  const bool counts = entry.failures == 0 || now >= entry.counted_until;
  if (counts) ++entry.failures;
  const absl::Duration pause =
      std::min(options_.first_retry * (int64_t{1} << std::min(entry.failures - 1, 30)),
               options_.longest_retry);
  if (counts) entry.counted_until = now + pause;
  AddLocked(key, now + pause);
}

void WorkQueue::Forget(const ObjectKey& key) {
  MutexLock lock(&mu_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return;
  found->second.failures = 0;
  if (found->second.idle()) entries_.erase(found);
}

absl::Time WorkQueue::FirstDue() const {
  return waiting_.empty() ? absl::InfiniteFuture() : waiting_.begin()->first;
}

std::optional<ObjectKey> WorkQueue::TryTakeLocked() {
  if (FirstDue() > clock_->Now()) return std::nullopt;
  const ObjectKey key = waiting_.begin()->second;
  waiting_.erase(waiting_.begin());
  Entry& entry = entries_.at(key);
  entry.due.reset();
  entry.taken = true;
  return key;
}

std::optional<ObjectKey> WorkQueue::TryTake() {
  MutexLock lock(&mu_);
  return TryTakeLocked();
}

std::optional<ObjectKey> WorkQueue::Take(std::stop_token stop) {
  while (!stop.stop_requested()) {
    MutexLock lock(&mu_);
    if (std::optional<ObjectKey> key = TryTakeLocked(); key.has_value()) return key;
    const auto is_due = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return stop.stop_requested() || FirstDue() <= clock_->Now();
    };
    const absl::Duration pause = std::min(kLook, FirstDue() - clock_->Now());
    mu_.AwaitWithTimeout(absl::Condition(&is_due), pause);
  }
  return std::nullopt;
}

void WorkQueue::Done(const ObjectKey& key) {
  MutexLock lock(&mu_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return;
  found->second.taken = false;
  if (found->second.due.has_value()) waiting_.insert({*found->second.due, key});
  if (found->second.idle()) entries_.erase(found);
}

int WorkQueue::waiting() const {
  MutexLock lock(&mu_);
  int count = 0;
  for (const auto& [key, entry] : entries_) count += entry.due.has_value() ? 1 : 0;
  return count;
}

int WorkQueue::failures(const ObjectKey& key) const {
  MutexLock lock(&mu_);
  const auto found = entries_.find(key);
  return found == entries_.end() ? 0 : found->second.failures;
}

}  // namespace rempart::op
