// SPDX-License-Identifier: Apache-2.0
// A rank's links to all others of its group, and the one loop that moves bytes over them: shared by
// the communicator of the whole group and those of parts of it, which fail together. The caller's
// thread moves the bytes itself: it spins over the links for a few microseconds, then parks in
// poll().
//
// Begin, Exchange, End and scratch belong to the thread that calls collectives; the rest to any.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/types/span.h"
#include "common/mutex.h"
#include "worker/comm/activity_probe.h"
#include "worker/comm/communicator.h"
#include "worker/comm/link.h"
#include "worker/comm/waker.h"

namespace rempart::worker {

struct CommunicatorOptions {
  std::chrono::milliseconds timeout{20000};  // of each call
  std::chrono::microseconds spin{50};        // before a waiting thread parks
  int64_t two_hops_from_bytes = 32 << 10;    // of an all-reduce
  // Of an all-reduce of more than two ranks: no link then carries more than one message at a time.
  int64_t ring_from_bytes = 256 << 10;
};

// What one exchange does with one peer, which is a rank of the group.
struct Transfer {
  int peer = -1;
  bool sends = false;
  bool receives = false;
  Region send;
  Region receive;
};

class Mesh {
 public:
  // links[r] leads to rank r; links[rank] is null. `waker` is what memory links wake.
  Mesh(int rank, std::vector<std::unique_ptr<Link>> links, std::shared_ptr<Waker> waker,
       const CommunicatorOptions& options);

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(links_.size()); }
  const CommunicatorOptions& options() const { return options_; }

  // One call of a communicator, for the probe and the deadline. `id` is that of its first exchange.
  void Begin(Activity activity, const MessageId& id);
  void End() { probe_.End(); }
  // Runs all transfers at once; at most one per peer.
  absl::Status Exchange(absl::Span<const Transfer> transfers);
  std::vector<float>& scratch() { return scratch_; }

  // The first failure stays. Returns it.
  absl::Status Fail(const absl::Status& why, int blamed_rank);
  // Peers fail when they want more from this rank.
  void SayGoodbye();
  absl::Status status() const;
  CommunicatorProgress progress() const;

 private:
  absl::Status CheckLinks();
  absl::Status Advance(uint64_t& pending);
  absl::Status Park(uint64_t& pending);
  absl::Status Expired(uint64_t pending);

  // Constant after construction.
  const int rank_;
  const std::vector<std::unique_ptr<Link>> links_;
  const std::shared_ptr<Waker> waker_;
  const CommunicatorOptions options_;

  // Of the thread that calls collectives.
  Activity activity_ = Activity::kIdle;
  MessageId id_;  // of the next exchange
  std::chrono::steady_clock::time_point deadline_;
  std::vector<float> scratch_;

  ActivityProbe probe_;
  std::atomic<bool> failed_ = false;
  mutable Mutex mu_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  int blamed_rank_ ABSL_GUARDED_BY(mu_) = -1;
};

}  // namespace rempart::worker
