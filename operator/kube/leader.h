// SPDX-License-Identifier: Apache-2.0
// One of several operators acts: the holder of a Lease, taken and renewed by compare-and-swap.
// Expiry is judged by the local clock since the record was last seen to change, never by the times
// written in it, because clocks of machines differ. A lease is no fence: what the leader does stays
// idempotent.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "operator/kube/client.h"

namespace rempart::op {

struct LeaderOptions {
  ObjectKey lease;
  std::string identity;
  // Where this process answers its callers; written into the lease, so that the others can name it.
  std::string address = {};
  absl::Duration duration = absl::Seconds(15);
  // Without a renewal for so long, the leader gives up; shorter than `duration`.
  absl::Duration renew_deadline = absl::Seconds(10);
  absl::Duration retry = absl::Seconds(2);
};

// What is known of the lease, and since when by the local clock.
struct LeaseView {
  k8s::v1::Lease lease;
  absl::Time unchanged_since;
};

enum class LeaseMove { kCreate, kRenew, kTake, kWait };

// Pure.
LeaseMove DecideLease(const std::optional<LeaseView>& view, const LeaderOptions& options,
                      absl::Time now);

class LeaderElector {
 public:
  LeaderElector(const Client* client, LeaderOptions options, const Clock* clock)
      : client_(client), leases_(client), options_(std::move(options)), clock_(clock) {}

  // One attempt to get or to keep the lease: whether this process holds it now.
  absl::StatusOr<bool> Try();
  // Lets another take it at once.
  void Release();

  // Waits for the lease, calls `on_lead` once, renews. Returns when the lease is lost (false: the
  // process must end) or at a stop (true, the lease has been released). `on_end` is called before
  // either, so that nothing is done for a leader that is none any more.
  bool Run(std::stop_token stop, const std::function<void()>& on_lead,
           const std::function<void()>& on_end = {});

  bool leading() const { return leading_; }
  // Where the holder answers, as the lease last told; empty when nobody is known to lead. Any
  // thread.
  std::string leader_address() const;

 private:
  void NoteHolder();
  absl::Status Write(LeaseMove move);

  const Client* const client_;
  const Api<k8s::v1::Lease> leases_;
  const LeaderOptions options_;
  const Clock* const clock_;
  std::optional<LeaseView> view_;  // owned by the thread in Run
  std::atomic<bool> leading_ = false;
  mutable Mutex mu_;
  std::string leader_address_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::op
