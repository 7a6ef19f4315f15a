// SPDX-License-Identifier: Apache-2.0
// Collectives over one link to each other rank (worker/comm/mesh.h), of a group or of a part of it.
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

#include <memory>
#include <vector>

#include "worker/comm/communicator.h"
#include "worker/comm/mesh.h"

namespace rempart::worker {

class MeshCommunicator : public Communicator {
 public:
  // links[r] leads to rank r; links[rank] is null. `waker` is what memory links wake.
  MeshCommunicator(int rank, std::vector<std::unique_ptr<Link>> links, std::shared_ptr<Waker> waker,
                   const CommunicatorOptions& options);
  // That of a group says goodbye: peers fail when they want more from this rank.
  ~MeshCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status AllReduceSum(float* values, int64_t count) override;
  absl::Status AllGather(const Shares& shares) override;
  absl::Status Gather(const Shares& shares, int root) override;
  absl::Status Broadcast(void* data, int64_t bytes, int root) override;
  absl::Status Barrier() override;
  absl::Status Send(const void* data, int64_t bytes, int to) override;
  absl::Status Receive(void* data, int64_t bytes, int from) override;
  std::unique_ptr<Communicator> Part(int first, int count) override;
  void Abort(const absl::Status& why, int blamed_rank) override;
  absl::Status status() const override { return mesh_->status(); }
  CommunicatorProgress progress() const override { return mesh_->progress(); }

 private:
  class Call;

  MeshCommunicator(std::shared_ptr<Mesh> mesh, int first, int count);
  absl::Status ReduceDirectly(float* values, int64_t count);
  absl::Status ReduceInTwoHops(float* values, int64_t count);
  absl::Status ReduceAroundRing(float* values, int64_t count);

  const std::shared_ptr<Mesh> mesh_;
  const bool is_part_;
  const int first_;  // rank of the group that is rank 0 here
  const int rank_, size_;
  // Of the thread that calls collectives.
  uint64_t collective_ = 0;
};

}  // namespace rempart::worker
