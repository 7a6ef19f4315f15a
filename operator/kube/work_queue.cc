// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/work_queue.h"

#include <algorithm>

namespace rempart::op {
namespace {

// How long Take sleeps at most before it looks at the stop token and the clock again.
constexpr absl::Duration kLook = absl::Milliseconds(200);

}  // namespace

void WorkQueue::Enlist(const ObjectKey& key, const Entry& entry) {
  if (!entry.due.has_value() || entry.taken) return;
  waiting_.insert({*entry.due, key});
  if (entry.urgent) urgent_.insert({*entry.due, key});
}

void WorkQueue::Unlist(const ObjectKey& key, const Entry& entry) {
  if (!entry.due.has_value()) return;
  waiting_.erase({*entry.due, key});
  urgent_.erase({*entry.due, key});
}

void WorkQueue::AddLocked(const ObjectKey& key, absl::Time due) {
  Entry& entry = entries_[key];
  if (entry.due.has_value() && *entry.due <= due) return;
  Unlist(key, entry);
  entry.due = due;
  Enlist(key, entry);
}

void WorkQueue::Add(const ObjectKey& key, absl::Duration delay) {
  MutexLock lock(&mu_);
  AddLocked(key, clock_->Now() + delay);
}

void WorkQueue::AddUrgent(const ObjectKey& key) {
  MutexLock lock(&mu_);
  Entry& entry = entries_[key];
  Unlist(key, entry);
  entry.urgent = true;
  const absl::Time due = clock_->Now() - kHeadStart;
  entry.due = std::min(entry.due.value_or(due), due);
  Enlist(key, entry);
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

// When the first that nobody has taken is due; the infinite future: there is none.
absl::Time WorkQueue::FirstDue(Waiting WorkQueue::*list) const {
  return (this->*list).empty() ? absl::InfiniteFuture() : (this->*list).begin()->first;
}

std::optional<ObjectKey> WorkQueue::TryTakeFrom(Waiting WorkQueue::*list) {
  if (FirstDue(list) > clock_->Now()) return std::nullopt;
  const ObjectKey key = (this->*list).begin()->second;
  Entry& entry = entries_.at(key);
  Unlist(key, entry);
  entry.due.reset();
  entry.urgent = false;
  entry.taken = true;
  return key;
}

std::optional<ObjectKey> WorkQueue::TryTake() {
  MutexLock lock(&mu_);
  return TryTakeFrom(&WorkQueue::waiting_);
}

std::optional<ObjectKey> WorkQueue::TryTakeUrgent() {
  MutexLock lock(&mu_);
  return TryTakeFrom(&WorkQueue::urgent_);
}

std::optional<ObjectKey> WorkQueue::TakeFrom(Waiting WorkQueue::*list, std::stop_token stop) {
  while (!stop.stop_requested()) {
    MutexLock lock(&mu_);
    if (std::optional<ObjectKey> key = TryTakeFrom(list); key.has_value()) return key;
    const auto is_due = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return stop.stop_requested() || FirstDue(list) <= clock_->Now();
    };
    const absl::Duration pause = std::min(kLook, FirstDue(list) - clock_->Now());
    mu_.AwaitWithTimeout(absl::Condition(&is_due), pause);
  }
  return std::nullopt;
}

std::optional<ObjectKey> WorkQueue::Take(std::stop_token stop) {
  return TakeFrom(&WorkQueue::waiting_, stop);
}

std::optional<ObjectKey> WorkQueue::TakeUrgent(std::stop_token stop) {
  return TakeFrom(&WorkQueue::urgent_, stop);
}

void WorkQueue::Done(const ObjectKey& key) {
  MutexLock lock(&mu_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return;
  found->second.taken = false;
  Enlist(key, found->second);
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
