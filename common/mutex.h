// SPDX-License-Identifier: Apache-2.0
// A mutex on whose state one can wait for a condition, without condition variables to forget to
// notify. It stands on the standard library because the thread sanitizer sees what that orders;
// what Debian's abseil orders, compiled without the sanitizer, it would report as a race.
#pragma once

#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace rempart {

class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    if (waiting_ > 0) changed_.notify_all();
    mu_.unlock();
  }

  // Waits, without the lock, until `condition` over the guarded state holds; false when it does not
  // by then (as SteadyNow counts). Whoever changes the state wakes the waiting by unlocking.
  bool AwaitWithDeadline(const absl::Condition& condition, absl::Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    if (condition.Eval()) return true;
    std::unique_lock<std::mutex> lock(mu_, std::adopt_lock);
    ++waiting_;
    changed_.notify_all();  // to wait unlocks, too
    const bool holds = changed_.wait_until(lock, WaitEnd(deadline - SteadyNow()),
                                           [&] { return condition.Eval(); });
    --waiting_;
    lock.release();
    return holds;
  }
  bool AwaitWithTimeout(const absl::Condition& condition, absl::Duration timeout)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    return AwaitWithDeadline(condition, SteadyNow() + timeout);
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  int waiting_ = 0;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_->Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mu_;
};

}  // namespace rempart
