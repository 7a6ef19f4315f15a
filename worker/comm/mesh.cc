// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/mesh.h"

#include <poll.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

using SteadyClock = std::chrono::steady_clock;

// A waiting thread keeps its core for this long, about what a small message takes; then it lets
// others run, which on a full machine may include the peer.
constexpr std::chrono::microseconds kSpinAlone{15};

}  // namespace

Mesh::Mesh(int rank, std::vector<std::unique_ptr<Link>> links, std::shared_ptr<Waker> waker,
           const CommunicatorOptions& options)
    : rank_(rank), links_(std::move(links)), waker_(std::move(waker)), options_(options) {
  CHECK_LE(size(), kMaxRanks);
  for (int peer = 0; peer < size(); ++peer) CHECK_EQ(links_[peer] == nullptr, peer == rank_);
}

void Mesh::Begin(Activity activity, const MessageId& id) {
  activity_ = activity;
  id_ = id;
  deadline_ = SteadyClock::now() + options_.timeout;
  probe_.Begin(activity);
}

void Mesh::SayGoodbye() {
  for (const auto& link : links_) {
    if (link != nullptr) link->Close(CloseKind::kGoodbye, -1);
  }
}

absl::Status Mesh::Fail(const absl::Status& why, int blamed_rank) {
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

absl::Status Mesh::status() const {
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

CommunicatorProgress Mesh::progress() const {
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

absl::Status Mesh::Exchange(absl::Span<const Transfer> transfers) {
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
absl::Status Mesh::CheckLinks() {
  for (const auto& link : links_) {
    if (link == nullptr) continue;
    if (const std::optional<Loss> loss = link->loss()) {
      return Fail(loss->status, loss->blamed_rank);
    }
  }
  return absl::OkStatus();
}

// Clears the bits of the peers that are done with.
absl::Status Mesh::Advance(uint64_t& pending) {
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

absl::Status Mesh::Park(uint64_t& pending) {
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

absl::Status Mesh::Expired(uint64_t pending) {
  std::vector<int> missing;
  for (; pending != 0; pending &= pending - 1) missing.push_back(std::countr_zero(pending));
  const int blamed_rank = missing.size() == 1 ? missing[0] : -1;
  return Fail(absl::DeadlineExceededError(absl::StrCat(
                  ActivityName(activity_), " ", CollectiveText(id_), ": nothing from rank ",
                  absl::StrJoin(missing, ", "), " within ", options_.timeout.count(), " ms")),
              blamed_rank);
}

}  // namespace rempart::worker
