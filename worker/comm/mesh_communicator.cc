// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/mesh_communicator.h"

#include <poll.h>

#include <algorithm>
#include <bit>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

using SteadyClock = std::chrono::steady_clock;

// A broadcast from here on is scattered and gathered.
constexpr int64_t kScatterFromBytes = 256 << 10;
// A waiting thread keeps its core for this long, about what a small message takes; then it lets
// others run, which on a full machine may include the peer.
constexpr std::chrono::microseconds kSpinAlone{15};

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

// One collective, from its begin to its end, for the probe and the deadline.
class MeshCommunicator::Call {
 public:
  Call(MeshCommunicator& communicator, Activity activity) : communicator_(communicator) {
    const bool collective = activity != Activity::kSend && activity != Activity::kReceive;
    if (collective) ++communicator_.collective_;
    // Messages between two ranks are not counted: the others do not know of them.
    communicator_.id_ = collective ? MessageId{communicator_.collective_, 0, activity}
                                   : MessageId{0, 0, Activity::kSend};
    communicator_.activity_ = activity;
    communicator_.deadline_ = SteadyClock::now() + communicator_.options_.timeout;
    communicator_.probe_.Begin(activity);
  }
  ~Call() { communicator_.probe_.End(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  MeshCommunicator& communicator_;
};

MeshCommunicator::MeshCommunicator(int rank, std::vector<std::unique_ptr<Link>> links,
                                   std::shared_ptr<Waker> waker, const CommunicatorOptions& options)
    : rank_(rank), links_(std::move(links)), waker_(std::move(waker)), options_(options) {
  CHECK_LE(size(), kMaxRanks);
  for (int peer = 0; peer < size(); ++peer) CHECK_EQ(links_[peer] == nullptr, peer == rank_);
}

MeshCommunicator::~MeshCommunicator() {
  for (const auto& link : links_) {
    if (link != nullptr) link->Close(CloseKind::kGoodbye, -1);
  }
}

absl::Status MeshCommunicator::Fail(const absl::Status& why, int blamed_rank) {
  {
    MutexLock lock(&mu_);
    if (!failure_.ok()) return failure_;
    failure_ = why.ok() ? absl::AbortedError("aborted") : why;
    blamed_rank_ = blamed_rank;
  }
  failed_.store(true);
  for (const auto& link : links_) {
    if (link != nullptr) link->Close(CloseKind::kAbort, blamed_rank);
  }
  waker_->Wake();
  MutexLock lock(&mu_);
  return failure_;
}

void MeshCommunicator::Abort(const absl::Status& why, int blamed_rank) {
  Fail(why, blamed_rank).IgnoreError();
}

absl::Status MeshCommunicator::status() const {
  if (failed_.load()) {
    MutexLock lock(&mu_);
    return failure_;
  }
  for (const auto& link : links_) {
    if (link == nullptr) continue;
    if (const std::optional<Loss> loss = link->loss()) return loss->status;
  }
  return absl::OkStatus();
}

CommunicatorProgress MeshCommunicator::progress() const {
  CommunicatorProgress progress = probe_.Read();
  {
    MutexLock lock(&mu_);
    progress.blamed_rank = blamed_rank_;
    if (!failure_.ok()) return progress;
  }
  for (const auto& link : links_) {
    if (link == nullptr) continue;
    if (const std::optional<Loss> loss = link->loss()) progress.blamed_rank = loss->blamed_rank;
  }
  return progress;
}

absl::Status MeshCommunicator::Exchange(absl::Span<const Transfer> transfers) {
  if (failed_.load()) return status();
  RETURN_IF_ERROR(CheckLinks());
  uint64_t pending = 0;
  const MessageId id = id_;
  ++id_.part;
  for (const Transfer& transfer : transfers) {
    if (!transfer.sends && !transfer.receives) continue;
    const Message send = {id, transfer.send};
    const Message receive = {id, transfer.receive};
    links_[transfer.peer]->Start(transfer.sends ? &send : nullptr,
                                 transfer.receives ? &receive : nullptr);
    pending |= uint64_t{1} << transfer.peer;
  }
  absl::Status status;
  const auto begin = SteadyClock::now();
  auto spin_until = begin + options_.spin;
  while (status.ok()) {
    status = Advance(pending);
    if (!status.ok() || pending == 0) break;
    const auto now = SteadyClock::now();
    if (now >= deadline_) {
      status = Expired(pending);
    } else if (now < spin_until) {
      if (now - begin > kSpinAlone) std::this_thread::yield();
    } else {
      status = Park(pending);
      spin_until = SteadyClock::now() + options_.spin;
    }
  }
  for (; pending != 0; pending &= pending - 1) links_[std::countr_zero(pending)]->Cancel();
  return status;
}

// Also looks at peers that have nothing to do with the exchange: after a loss nothing goes on.
absl::Status MeshCommunicator::CheckLinks() {
  for (const auto& link : links_) {
    if (link == nullptr) continue;
    if (const std::optional<Loss> loss = link->loss()) {
      return Fail(loss->status, loss->blamed_rank);
    }
  }
  return absl::OkStatus();
}

// Clears the bits of the peers that are done with.
absl::Status MeshCommunicator::Advance(uint64_t& pending) {
  for (uint64_t left = pending; left != 0; left &= left - 1) {
    const int peer = std::countr_zero(left);
    Loss loss;
    const Link::State state = links_[peer]->Advance(loss);
    if (state == Link::State::kDone) pending &= ~(uint64_t{1} << peer);
    if (state == Link::State::kLost) return Fail(loss.status, loss.blamed_rank);
  }
  probe_.SetWaiting(pending);
  if (pending != 0) RETURN_IF_ERROR(CheckLinks());
  if (failed_.load()) return status();
  return absl::OkStatus();
}

absl::Status MeshCommunicator::Park(uint64_t& pending) {
  waker_->BeginParking();
  const absl::Status status = Advance(pending);
  if (status.ok() && pending != 0) {
    pollfd fds[kMaxRanks + 1];
    int count = 0;
    fds[count++] = {waker_->fd(), POLLIN, 0};
    for (uint64_t left = pending; left != 0; left &= left - 1) {
      const Link& link = *links_[std::countr_zero(left)];
      if (link.fd() >= 0) fds[count++] = {link.fd(), link.poll_events(), 0};
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - SteadyClock::now());
    poll(fds, count, static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1000)));
  }
  waker_->EndParking();
  return status;
}

absl::Status MeshCommunicator::Expired(uint64_t pending) {
  std::vector<int> missing;
  for (; pending != 0; pending &= pending - 1) missing.push_back(std::countr_zero(pending));
  const int blamed_rank = missing.size() == 1 ? missing[0] : -1;
  return Fail(absl::DeadlineExceededError(absl::StrCat(
                  ActivityName(activity_), " ", collective_, ": nothing from rank ",
                  absl::StrJoin(missing, ", "), " within ", options_.timeout.count(), " ms")),
              blamed_rank);
}

absl::Status MeshCommunicator::AllReduceSum(float* values, int64_t count) {
  const Call call(*this, Activity::kAllReduce);
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  if (size() > 2 && bytes >= options_.ring_from_bytes) return ReduceAroundRing(values, count);
  if (size() > 1 && bytes >= options_.two_hops_from_bytes) return ReduceInTwoHops(values, count);
  return ReduceDirectly(values, count);
}

absl::Status MeshCommunicator::ReduceDirectly(float* values, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  scratch_.resize(std::max<int64_t>(scratch_.size(), size() * count));
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    transfers.push_back(
        {peer, true, true, Flat(values, bytes), Flat(scratch_.data() + peer * count, bytes)});
  }
  RETURN_IF_ERROR(Exchange(transfers));
  AddInOrder(values, rank_, scratch_.data(), size(), count);
  return absl::OkStatus();
}

absl::Status MeshCommunicator::ReduceInTwoHops(float* values, int64_t count) {
  const std::vector<int64_t> offsets = Split(count, size());
  const auto chunk = [&](int rank) {
    const int64_t begin = offsets[rank];
    return Flat(values + begin, (offsets[rank + 1] - begin) * static_cast<int64_t>(sizeof(float)));
  };
  const int64_t own = offsets[rank_ + 1] - offsets[rank_];
  scratch_.resize(std::max<int64_t>(scratch_.size(), size() * own));
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    transfers.push_back(
        {peer, true, true, chunk(peer), Flat(scratch_.data() + peer * own, chunk(rank_).bytes())});
  }
  RETURN_IF_ERROR(Exchange(transfers));
  AddInOrder(values + offsets[rank_], rank_, scratch_.data(), size(), own);
  for (Transfer& transfer : transfers) {
    transfer.send = chunk(rank_);
    transfer.receive = chunk(transfer.peer);
  }
  return Exchange(transfers);
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
  scratch_.resize(std::max<int64_t>(scratch_.size(), count / n + 1));
  const auto shift = [&](Region send, Region receive) {
    const Transfer transfers[] = {{next, true, false, send, {}},
                                  {previous, false, true, {}, receive}};
    return Exchange(transfers);
  };
  // Chunk c starts at rank c and is complete at rank c - 1: its order is c, c + 1, ..., c - 1.
  for (int step = 0; step < n - 1; ++step) {
    const int sends = (rank_ + n - step) % n;
    const int receives = (rank_ + n - step - 1) % n;
    const int64_t elements = offsets[receives + 1] - offsets[receives];
    RETURN_IF_ERROR(shift(chunk(sends), Flat(scratch_.data(), elements * 4)));
    Add(values + offsets[receives], scratch_.data(), elements);
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
    transfers.push_back({peer, own.bytes() > 0, theirs.bytes() > 0, own, theirs});
  }
  return Exchange(transfers);
}

absl::Status MeshCommunicator::Gather(const Shares& shares, int root) {
  const Call call(*this, Activity::kGather);
  CHECK_EQ(static_cast<int>(shares.offsets.size()), size() + 1);
  std::vector<Transfer> transfers;
  const Region own = ShareOf(shares, rank_);
  if (rank_ != root) transfers.push_back({root, own.bytes() > 0, false, own, {}});
  for (int peer = 0; peer < size() && rank_ == root; ++peer) {
    const Region theirs = ShareOf(shares, peer);
    if (peer != rank_) transfers.push_back({peer, false, theirs.bytes() > 0, {}, theirs});
  }
  return Exchange(transfers);
}

absl::Status MeshCommunicator::Broadcast(void* data, int64_t bytes, int root) {
  const Call call(*this, Activity::kBroadcast);
  const bool scatter = size() > 2 && bytes >= kScatterFromBytes;
  const std::vector<int64_t> offsets = Split(bytes, size());
  const Shares shares = {data, 1, bytes, offsets};
  const auto part = [&](int rank) { return scatter ? ShareOf(shares, rank) : Flat(data, bytes); };
  std::vector<Transfer> transfers;
  if (rank_ != root) transfers.push_back({root, false, true, {}, part(rank_)});
  for (int peer = 0; peer < size() && rank_ == root; ++peer) {
    if (peer != rank_) transfers.push_back({peer, true, false, part(peer), {}});
  }
  RETURN_IF_ERROR(Exchange(transfers));
  if (!scatter) return absl::OkStatus();
  // The root has all; it still hands out its own share.
  transfers.clear();
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    transfers.push_back(
        {peer, peer != root, rank_ != root, ShareOf(shares, rank_), ShareOf(shares, peer)});
  }
  return Exchange(transfers);
}

absl::Status MeshCommunicator::Barrier() {
  const Call call(*this, Activity::kBarrier);
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank_) transfers.push_back({peer, true, true, {}, {}});
  }
  return Exchange(transfers);
}

absl::Status MeshCommunicator::Send(const void* data, int64_t bytes, int to) {
  CHECK_NE(to, rank_);
  const Call call(*this, Activity::kSend);
  // Regions that are sent are only read.
  const Transfer transfers[] = {{to, true, false, Flat(const_cast<void*>(data), bytes), {}}};
  return Exchange(transfers);
}

absl::Status MeshCommunicator::Receive(void* data, int64_t bytes, int from) {
  CHECK_NE(from, rank_);
  const Call call(*this, Activity::kReceive);
  const Transfer transfers[] = {{from, false, true, {}, Flat(data, bytes)}};
  return Exchange(transfers);
}

}  // namespace rempart::worker
