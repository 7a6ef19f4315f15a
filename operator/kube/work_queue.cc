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
  entry.due = entry.due.has_value() ? std::min(*entry.due, due) : due;
}

void WorkQueue::Add(const ObjectKey& key, absl::Duration delay) {
  MutexLock lock(&mu_);
  AddLocked(key, clock_->Now() + delay);
}

void WorkQueue::Retry(const ObjectKey& key) {
  MutexLock lock(&mu_);
  const int failures = entries_[key].failures++;
  const absl::Duration pause = std::min(
      options_.first_retry * (int64_t{1} << std::min(failures, 30)), options_.longest_retry);
  AddLocked(key, clock_->Now() + pause);
}

void WorkQueue::Forget(const ObjectKey& key) {
  MutexLock lock(&mu_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return;
  found->second.failures = 0;
  if (found->second.idle()) entries_.erase(found);
}

std::map<ObjectKey, WorkQueue::Entry>::iterator WorkQueue::First() {
  auto first = entries_.end();
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.taken || !entry->second.due.has_value()) continue;
    if (first == entries_.end() || *entry->second.due < *first->second.due) first = entry;
  }
  return first;
}

std::optional<ObjectKey> WorkQueue::TryTakeLocked() {
  const auto first = First();
  if (first == entries_.end() || *first->second.due > clock_->Now()) return std::nullopt;
  first->second.due.reset();
  first->second.taken = true;
  return first->first;
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
      const auto first = First();
      return stop.stop_requested() ||
             (first != entries_.end() && *first->second.due <= clock_->Now());
    };
    absl::Duration pause = kLook;
    const auto first = First();
    if (first != entries_.end()) pause = std::min(pause, *first->second.due - clock_->Now());
    mu_.AwaitWithTimeout(absl::Condition(&is_due), pause);
  }
  return std::nullopt;
}

void WorkQueue::Done(const ObjectKey& key) {
  MutexLock lock(&mu_);
  const auto found = entries_.find(key);
  if (found == entries_.end()) return;
  found->second.taken = false;
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
