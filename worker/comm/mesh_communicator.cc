// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/mesh_communicator.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

// A broadcast from here on is scattered and gathered.
constexpr int64_t kScatterFromBytes = 256 << 10;

Region Flat(void* data, int64_t bytes) { return {static_cast<uint8_t*>(data), 1, bytes, bytes}; }

Region ShareOf(const Shares& shares, int rank) {
  const int64_t begin = shares.offsets[rank];
  return {static_cast<uint8_t*>(shares.data) + begin, shares.rows, shares.offsets[rank + 1] - begin,
          shares.stride_bytes};
}

// n equal pieces of `total`, as offsets.
std::vector<int64_t> Split(int64_t total, int pieces) {
  std::vector<int64_t> offsets(pieces + 1);
  for (int i = 0; i <= pieces; ++i) offsets[i] = total * i / pieces;
  return offsets;
}

void Add(float* sum, const float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
}

// values = ((x0 + x1) + x2) + ..., where x of `rank` is values itself and the others' are rows of
// `others`: the same on every rank. A block at a time, so that all but the first touch stays in
// the first-level cache.
void AddInOrder(float* values, int rank, const float* others, int size, int64_t count) {
  constexpr int64_t kBlock = 1024;
  float sum[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t length = std::min(kBlock, count - begin);
    const auto of = [&](int peer) {
      return (peer == rank ? values : others + peer * count) + begin;
    };
    std::copy_n(of(0), length, sum);
    for (int peer = 1; peer < size; ++peer) Add(sum, of(peer), length);
    std::copy_n(sum, length, values + begin);
  }
}

}  // namespace

// One collective, from its begin to its end.
class MeshCommunicator::Call {
 public:
  Call(MeshCommunicator& communicator, Activity activity) : mesh_(*communicator.mesh_) {
    const bool collective = activity != Activity::kSend && activity != Activity::kReceive;
    if (collective) ++communicator.collective_;
    // Messages between two ranks are not counted: the others do not know of them.
    const uint64_t of = communicator.is_part_ ? kOfPart : 0;
    mesh_.Begin(activity, collective ? MessageId{communicator.collective_ | of, 0, activity}
                                     : MessageId{of, 0, Activity::kSend});
  }
  ~Call() { mesh_.End(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  Mesh& mesh_;
};

MeshCommunicator::MeshCommunicator(int rank, std::vector<std::unique_ptr<Link>> links,
                                   std::shared_ptr<Waker> waker, const CommunicatorOptions& options)
    : mesh_(std::make_shared<Mesh>(rank, std::move(links), std::move(waker), options)),
      is_part_(false),
      first_(0),
      rank_(rank),
      size_(mesh_->size()) {}

MeshCommunicator::MeshCommunicator(std::shared_ptr<Mesh> mesh, int first, int count)
    : mesh_(std::move(mesh)),
      is_part_(true),
      first_(first),
      rank_(mesh_->rank() - first),
      size_(count) {}

MeshCommunicator::~MeshCommunicator() {
  if (!is_part_) mesh_->SayGoodbye();
}

std::unique_ptr<Communicator> MeshCommunicator::Part(int first, int count) {
  CHECK(!is_part_);
  CHECK(first >= 0 && first <= rank_ && rank_ < first + count && first + count <= size_);
  return std::unique_ptr<Communicator>(new MeshCommunicator(mesh_, first, count));
}

void MeshCommunicator::Abort(const absl::Status& why, int blamed_rank) {
  mesh_->Fail(why, blamed_rank).IgnoreError();
}

absl::Status MeshCommunicator::AllReduceSum(float* values, int64_t count) {
  const Call call(*this, Activity::kAllReduce);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  const CommunicatorOptions& options = mesh_->options();
  if (size() > 2 && bytes >= options.ring_from_bytes) return ReduceAroundRing(values, count);
  if (size() > 1 && bytes >= options.two_hops_from_bytes) return ReduceInTwoHops(values, count);
  return ReduceDirectly(values, count);
}

absl::Status MeshCommunicator::ReduceDirectly(float* values, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  std::vector<float>& scratch = mesh_->scratch();
  scratch.resize(std::max<int64_t>(scratch.size(), size() * count));
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    transfers.push_back({first_ + peer, true, true, Flat(values, bytes),
                         Flat(scratch.data() + peer * count, bytes)});
  }
  RETURN_IF_ERROR(mesh_->Exchange(transfers));
  AddInOrder(values, rank_, scratch.data(), size(), count);
  return absl::OkStatus();
}

absl::Status MeshCommunicator::ReduceInTwoHops(float* values, int64_t count) {
  const std::vector<int64_t> offsets = Split(count, size());
  const auto chunk = [&](int rank) {
    const int64_t begin = offsets[rank];
    return Flat(values + begin, (offsets[rank + 1] - begin) * static_cast<int64_t>(sizeof(float)));
  };
  const int64_t own = offsets[rank_ + 1] - offsets[rank_];
  std::vector<float>& scratch = mesh_->scratch();
  scratch.resize(std::max<int64_t>(scratch.size(), size() * own));
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    transfers.push_back({first_ + peer, true, true, chunk(peer),
                         Flat(scratch.data() + peer * own, chunk(rank_).bytes())});
  }
  RETURN_IF_ERROR(mesh_->Exchange(transfers));
  AddInOrder(values + offsets[rank_], rank_, scratch.data(), size(), own);
  for (Transfer& transfer : transfers) {
    transfer.send = chunk(rank_);
    transfer.receive = chunk(transfer.peer - first_);
  }
  return mesh_->Exchange(transfers);
}

absl::Status MeshCommunicator::ReduceAroundRing(float* values, int64_t count) {
  const int n = size();
  const std::vector<int64_t> offsets = Split(count, n);
  const int next = (rank_ + 1) % n;
  const int previous = (rank_ + n - 1) % n;
  const auto chunk = [&](int index) {
    const int64_t begin = offsets[index];
    const int64_t bytes = (offsets[index + 1] - begin) * static_cast<int64_t>(sizeof(float));
    return Flat(values + begin, bytes);
  };
  std::vector<float>& scratch = mesh_->scratch();
  scratch.resize(std::max<int64_t>(scratch.size(), count / n + 1));
  const auto shift = [&](Region send, Region receive) {
    const Transfer transfers[] = {{first_ + next, true, false, send, {}},
                                  {first_ + previous, false, true, {}, receive}};
    return mesh_->Exchange(transfers);
  };
  // Chunk c starts at rank c and is complete at rank c - 1: its order is c, c + 1, ..., c - 1.
  for (int step = 0; step < n - 1; ++step) {
    const int sends = (rank_ + n - step) % n;
    const int receives = (rank_ + n - step - 1) % n;
    const int64_t elements = offsets[receives + 1] - offsets[receives];
    RETURN_IF_ERROR(shift(chunk(sends), Flat(scratch.data(), elements * 4)));
    Add(values + offsets[receives], scratch.data(), elements);
  }
  for (int step = 0; step < n - 1; ++step) {
    RETURN_IF_ERROR(shift(chunk((rank_ + 1 + n - step) % n), chunk((rank_ + n - step) % n)));
  }
  return absl::OkStatus();
}

absl::Status MeshCommunicator::AllGather(const Shares& shares) {
  const Call call(*this, Activity::kAllGather);
  CHECK_EQ(static_cast<int>(shares.offsets.size()), size() + 1);
  const Region own = ShareOf(shares, rank_);
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < size(); ++peer) {
    const Region theirs = ShareOf(shares, peer);
    if (peer == rank_) continue;
    transfers.push_back({first_ + peer, own.bytes() > 0, theirs.bytes() > 0, own, theirs});
  }
  return mesh_->Exchange(transfers);
}

absl::Status MeshCommunicator::Gather(const Shares& shares, int root) {
  const Call call(*this, Activity::kGather);
  CHECK_EQ(static_cast<int>(shares.offsets.size()), size() + 1);
  std::vector<Transfer> transfers;
  const Region own = ShareOf(shares, rank_);
  if (rank_ != root) transfers.push_back({first_ + root, own.bytes() > 0, false, own, {}});
  for (int peer = 0; peer < size() && rank_ == root; ++peer) {
    const Region theirs = ShareOf(shares, peer);
    if (peer != rank_) transfers.push_back({first_ + peer, false, theirs.bytes() > 0, {}, theirs});
  }
  return mesh_->Exchange(transfers);
}

absl::Status MeshCommunicator::Broadcast(void* data, int64_t bytes, int root) {
  const Call call(*this, Activity::kBroadcast);
  const bool scatter = size() > 2 && bytes >= kScatterFromBytes;
  const std::vector<int64_t> offsets = Split(bytes, size());
  const Shares shares = {data, 1, bytes, offsets};
  const auto part = [&](int rank) { return scatter ? ShareOf(shares, rank) : Flat(data, bytes); };
  std::vector<Transfer> transfers;
  if (rank_ != root) transfers.push_back({first_ + root, false, true, {}, part(rank_)});
  for (int peer = 0; peer < size() && rank_ == root; ++peer) {
    if (peer != rank_) transfers.push_back({first_ + peer, true, false, part(peer), {}});
  }
  RETURN_IF_ERROR(mesh_->Exchange(transfers));
  if (!scatter) return absl::OkStatus();
  // The root has all; it still hands out its own share.
  transfers.clear();
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    transfers.push_back({first_ + peer, peer != root, rank_ != root, ShareOf(shares, rank_),
                         ShareOf(shares, peer)});
  }
  return mesh_->Exchange(transfers);
}

absl::Status MeshCommunicator::Barrier() {
  const Call call(*this, Activity::kBarrier);
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank_) transfers.push_back({first_ + peer, true, true, {}, {}});
  }
  return mesh_->Exchange(transfers);
}

absl::Status MeshCommunicator::Send(const void* data, int64_t bytes, int to) {
  CHECK_NE(to, rank_);
  const Call call(*this, Activity::kSend);
  // Regions that are sent are only read.
  const Transfer transfers[] = {
      {first_ + to, true, false, Flat(const_cast<void*>(data), bytes), {}}};
  return mesh_->Exchange(transfers);
}

absl::Status MeshCommunicator::Receive(void* data, int64_t bytes, int from) {
  CHECK_NE(from, rank_);
  const Call call(*this, Activity::kReceive);
  const Transfer transfers[] = {{first_ + from, false, true, {}, Flat(data, bytes)}};
  return mesh_->Exchange(transfers);
}

}  // namespace rempart::worker
