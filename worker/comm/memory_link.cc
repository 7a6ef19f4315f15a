// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/memory_link.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "common/check.h"

namespace rempart::worker {
namespace {

// One direction. The sender posts a message, and owns it again once the receiver has copied it:
//   kEmpty -> kPosted (sender) -> kReading -> kEmpty (receiver)
// A sender that gives up takes a posted message back, and waits for a reader to finish.
struct Channel {
  enum State : uint32_t { kEmpty, kPosted, kReading };
  alignas(64) std::atomic<uint32_t> state = kEmpty;
  Message message;  // of the sender while kEmpty, constant otherwise
};

constexpr int kOpen = 0;
constexpr int kSaidGoodbye = 1;
constexpr int kAborted = 2;

// What an end tells the other when it closes: kind and blamed rank + 1 in one word.
int CloseWord(CloseKind kind, int blamed_rank) {
  return (kind == CloseKind::kAbort ? kAborted : kSaidGoodbye) | (blamed_rank + 1) << 2;
}

struct Shared {
  Channel channels[2];  // [i]: from end i
  std::atomic<int> closed[2] = {kOpen, kOpen};
  std::shared_ptr<Waker> wakers[2];
  int ranks[2];
};

void Copy(const Region& to, const Region& from) {
  if (to.bytes() == 0) return;  // an empty region has no address
  // The bytes agree; the rows may not.
  if (to.row_bytes == from.row_bytes) {
    for (int64_t row = 0; row < to.rows; ++row) {
      std::memcpy(to.data + row * to.stride_bytes, from.data + row * from.stride_bytes,
                  to.row_bytes);
    }
    return;
  }
  int64_t done = 0;
  const int64_t total = to.bytes();
  while (done < total) {
    const int64_t in_to = done % to.row_bytes;
    const int64_t in_from = done % from.row_bytes;
    const int64_t piece = std::min(to.row_bytes - in_to, from.row_bytes - in_from);
    std::memcpy(to.data + done / to.row_bytes * to.stride_bytes + in_to,
                from.data + done / from.row_bytes * from.stride_bytes + in_from, piece);
    done += piece;
  }
}

class MemoryLink : public Link {
 public:
  MemoryLink(std::shared_ptr<Shared> shared, int end)
      : shared_(std::move(shared)),
        end_(end),
        out_(shared_->channels[end]),
        in_(shared_->channels[1 - end]),
        peer_waker_(*shared_->wakers[1 - end]) {}
  ~MemoryLink() override { Close(CloseKind::kGoodbye, -1); }

  void Start(const Message* send, const Message* receive) override {
    CHECK(!sending_ && !receiving_);
    if (receive != nullptr) {
      receiving_ = true;
      expected_ = *receive;
    }
    if (send != nullptr) {
      sending_ = true;
      out_.message = *send;
      out_.state.store(Channel::kPosted);
      peer_waker_.Wake();
    }
  }

  State Advance(Loss& loss) override {
    // Read first: what the peer posted or took before it left counts.
    const bool left = (shared_->closed[1 - end_].load() & 3) == kSaidGoodbye;
    if (sending_ && out_.state.load() == Channel::kEmpty) sending_ = false;
    if (receiving_ && !Receive(loss)) return State::kLost;
    if (const std::optional<Loss> aborted = this->loss()) {
      loss = *aborted;
      return State::kLost;
    }
    if (!sending_ && !receiving_) return State::kDone;
    if (!left) return State::kPending;
    loss = PeerGone(peer(), "it has left the group");
    return State::kLost;
  }

  void Cancel() override {
    receiving_ = false;
    if (!sending_) return;
    sending_ = false;
    uint32_t posted = Channel::kPosted;
    if (out_.state.compare_exchange_strong(posted, Channel::kEmpty)) return;
    while (out_.state.load(std::memory_order_acquire) != Channel::kEmpty) std::this_thread::yield();
  }

  void Close(CloseKind kind, int blamed_rank) override {
    int open = kOpen;
    if (!shared_->closed[end_].compare_exchange_strong(open, CloseWord(kind, blamed_rank))) return;
    peer_waker_.Wake();
  }

  std::optional<Loss> loss() const override {
    const int word = shared_->closed[1 - end_].load();
    if ((word & 3) == kAborted) return PeerAborted(peer(), (word >> 2) - 1);
    return std::nullopt;
  }

 private:
  int peer() const { return shared_->ranks[1 - end_]; }

  // Copies the message if it has come; false when it is not the expected one.
  bool Receive(Loss& loss) {
    uint32_t posted = Channel::kPosted;
    if (!in_.state.compare_exchange_strong(posted, Channel::kReading)) return true;
    const Message& message = in_.message;
    const bool agree =
        message.id == expected_.id && message.region.bytes() == expected_.region.bytes();
    if (agree) {
      Copy(expected_.region, message.region);
    } else {
      loss = {Disagreement(shared_->ranks[end_], expected_.id, expected_.region.bytes(), peer(),
                           message.id, message.region.bytes()),
              -1};
    }
    in_.state.store(Channel::kEmpty);
    peer_waker_.Wake();
    receiving_ = false;
    return agree;
  }

  const std::shared_ptr<Shared> shared_;
  const int end_;
  Channel& out_;
  Channel& in_;
  Waker& peer_waker_;
  // Of the thread that runs the collective.
  bool sending_ = false;
  bool receiving_ = false;
  Message expected_;
};

}  // namespace

std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> CreateMemoryLink(
    int rank, std::shared_ptr<Waker> rank_waker, int peer, std::shared_ptr<Waker> peer_waker) {
  auto shared = std::make_shared<Shared>();
  shared->wakers[0] = std::move(rank_waker);
  shared->wakers[1] = std::move(peer_waker);
  shared->ranks[0] = rank;
  shared->ranks[1] = peer;
  return {std::make_unique<MemoryLink>(shared, 0), std::make_unique<MemoryLink>(shared, 1)};
}

}  // namespace rempart::worker
