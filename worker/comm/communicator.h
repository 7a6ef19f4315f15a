// SPDX-License-Identifier: Apache-2.0
// What the ranks of a group say to each other while they compute one model together.
//
// Invariants of every implementation:
//  1. All ranks call the same collectives in the same order with matching sizes, each rank from one
//     thread at a time. A rank that does otherwise fails the communicator, not the result.
//  2. Results are bitwise equal on all ranks and from run to run: sums are taken in an order that
//     depends on ranks and sizes alone.
//  3. Every call ends: with its result, or with an error once its deadline has passed, a peer is
//  lost,
//     or any rank has aborted. After an error every call of every rank fails at once.
//  4. A communicator lives for one epoch of its group and is never used again after an error.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace rempart::worker {

inline constexpr int kMaxRanks = 64;

enum class Activity : uint8_t {
  kIdle,  // between two calls
  kAllReduce,
  kAllGather,
  kGather,
  kBroadcast,
  kBarrier,
  kSend,
  kReceive,
};
// "idle", "all_reduce", "all_gather", ...
const char* ActivityName(Activity activity);

// What a rank does, for whoever watches it. Times are of the monotonic clock.
struct CommunicatorProgress {
  Activity activity = Activity::kIdle;
  int64_t age_ms = 0;                  // of the activity
  int64_t collectives = 0;             // begun since the communicator was made
  std::vector<int> waiting_for_ranks;  // whose part of the collective in flight has not come
  int blamed_rank = -1;                // once failed: who is said to be the cause; -1: nobody
};

// A buffer of `rows` rows, `stride_bytes` apart, of which rank r holds the bytes
// [offsets[r], offsets[r + 1]) of each row: a share may be empty. offsets has size() + 1 ascending
// entries and is the same on all ranks, as rows is; stride_bytes may differ.
struct Shares {
  void* data = nullptr;
  int64_t rows = 1;
  int64_t stride_bytes = 0;
  absl::Span<const int64_t> offsets;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // values[i] becomes the sum over all ranks, for i < count.
  virtual absl::Status AllReduceSum(float* values, int64_t count) = 0;
  // In place: every rank has written its share, and holds all shares afterwards.
  virtual absl::Status AllGather(const Shares& shares) = 0;
  // As AllGather, but only `root` receives; elsewhere data is read only.
  virtual absl::Status Gather(const Shares& shares, int root) = 0;
  // `data` of all ranks becomes that of `root`.
  virtual absl::Status Broadcast(void* data, int64_t bytes, int root) = 0;
  // Returns once every rank has called it.
  virtual absl::Status Barrier() = 0;
  // One message between two ranks, which call Send and Receive. Send may wait for the receiver.
  virtual absl::Status Send(const void* data, int64_t bytes, int to) = 0;
  virtual absl::Status Receive(void* data, int64_t bytes, int from) = 0;

  // The ranks [first, first + count), this one among them, as a communicator of their own over the
  // same links, in which `first` is rank 0; each of them calls it. For the thread that calls this
  // one, and while this one lives; they fail together. What it says of other ranks (progress,
  // errors) counts them as the whole group does. Not of a part.
  virtual std::unique_ptr<Communicator> Part(int first, int count) = 0;

  // Any thread, at any time: ends the communicator on all ranks, within 100 ms. The first `why` is
  // what calls of this rank return from now on. blamed_rank: who is the cause, -1: nobody.
  virtual void Abort(const absl::Status& why, int blamed_rank) = 0;
  // Any thread: OK, or why every call fails.
  virtual absl::Status status() const = 0;
  // Any thread; never waits for a collective.
  virtual CommunicatorProgress progress() const = 0;
};

}  // namespace rempart::worker
