// SPDX-License-Identifier: Apache-2.0
// Collectives over one link to each other rank. The caller's thread moves the bytes itself: it
// spins over the links for a few microseconds, then parks in poll().
//
// Algorithms, chosen by the size alone, so that all ranks choose alike:
//   small all-reduce   every rank sends all to all and adds in the order of ranks: one hop
//   medium             every rank adds a chunk of all, in the same order, and hands it out: two
//   hops,
//                      fewer bytes
//   large all-reduce   chunks travel around a ring and are added on the way, then once more as
//   sums:
//                      2 (n - 1) / n of the bytes leave each rank, whatever n is
//   all-gather, gather, barrier   directly: no byte crosses a link twice, one hop
//   broadcast          directly; large ones as shares that are then gathered
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
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

class MeshCommunicator : public Communicator {
 public:
  // links[r] leads to rank r; links[rank] is null. `waker` is what memory links wake.
  MeshCommunicator(int rank, std::vector<std::unique_ptr<Link>> links, std::shared_ptr<Waker> waker,
                   const CommunicatorOptions& options);
  // Says goodbye: peers fail when they want more from this rank.
  ~MeshCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(links_.size()); }
  absl::Status AllReduceSum(float* values, int64_t count) override;
  absl::Status AllGather(const Shares& shares) override;
  absl::Status Gather(const Shares& shares, int root) override;
  absl::Status Broadcast(void* data, int64_t bytes, int root) override;
  absl::Status Barrier() override;
  absl::Status Send(const void* data, int64_t bytes, int to) override;
  absl::Status Receive(void* data, int64_t bytes, int from) override;
  void Abort(const absl::Status& why, int blamed_rank) override;
  absl::Status status() const override;
  CommunicatorProgress progress() const override;

 private:
  // What one exchange does with one peer.
  struct Transfer {
    int peer = -1;
    bool sends = false;
    bool receives = false;
    Region send;
    Region receive;
  };
  class Call;

  // Runs all transfers at once; at most one per peer.
  absl::Status Exchange(absl::Span<const Transfer> transfers);
  absl::Status CheckLinks();
  absl::Status Advance(uint64_t& pending);
  absl::Status Park(uint64_t& pending);
  absl::Status Expired(uint64_t pending);
  absl::Status ReduceDirectly(float* values, int64_t count);
  absl::Status ReduceInTwoHops(float* values, int64_t count);
  absl::Status ReduceAroundRing(float* values, int64_t count);
  // The first failure stays. Returns it.
  absl::Status Fail(const absl::Status& why, int blamed_rank);

  // Constant after construction.
  const int rank_;
  const std::vector<std::unique_ptr<Link>> links_;
  const std::shared_ptr<Waker> waker_;
  const CommunicatorOptions options_;

  // Of the thread that calls collectives.
  Activity activity_ = Activity::kIdle;
  uint64_t collective_ = 0;
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
