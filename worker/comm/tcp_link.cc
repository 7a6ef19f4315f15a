// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/tcp_link.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace rempart::worker {
namespace {

constexpr size_t kMaxPieces = 256;  // of one system call
// Several records, so that a large message takes few system calls.
constexpr int64_t kInBytes = 4 * (kRecordBytes + kRecordOverhead);

const iovec* AsIovec(const std::vector<Piece>& pieces) {
  static_assert(sizeof(Piece) == sizeof(iovec) && sizeof(void*) == sizeof(int64_t));
  return reinterpret_cast<const iovec*>(pieces.data());
}

int64_t SendPieces(int fd, const std::vector<Piece>& pieces) {
  msghdr message = {};
  message.msg_iov = const_cast<iovec*>(AsIovec(pieces));
  message.msg_iovlen = pieces.size();
  return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

int64_t ReceivePieces(int fd, const std::vector<Piece>& pieces) {
  msghdr message = {};
  message.msg_iov = const_cast<iovec*>(AsIovec(pieces));
  message.msg_iovlen = pieces.size();
  return recvmsg(fd, &message, MSG_DONTWAIT);
}

bool IsTemporary(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

// Drops the connection of a descriptor that other threads may be about to poll: its number stays
// taken, by a descriptor that is never ready, until the link is destroyed.
void ResetConnection(int fd) {
  const linger reset = {1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  const int silent = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (silent < 0 || dup3(silent, fd, O_CLOEXEC) < 0) shutdown(fd, SHUT_RDWR);
  if (silent >= 0) close(silent);
}

}  // namespace

TcpLink::TcpLink(int rank, int peer, TcpConnection connection, std::shared_ptr<Waker> waker,
                 std::shared_ptr<LinkWatch> watch)
    : rank_(rank),
      peer_(peer),
      fd_(connection.fd),
      waker_(std::move(waker)),
      watch_(std::move(watch)) {
  if (!connection.send_secret.empty()) {
    using Direction = RecordCipher::Direction;
    sealer_ = std::make_unique<RecordCipher>(Direction::kSeal, connection.send_secret);
    opener_ = std::make_unique<RecordCipher>(Direction::kOpen, connection.receive_secret);
    out_.resize(kRecordBytes + kRecordOverhead);
    in_.resize(kInBytes);
  }
  watch_->Add(fd_, this);
}

TcpLink::~TcpLink() {
  Close(CloseKind::kGoodbye, -1);
  watch_->Remove(this);
  close(fd_);
}

void TcpLink::Lose(Loss loss) {
  if (loss_.has_value()) return;
  loss_ = std::move(loss);
  lost_.store(true);
  waker_->Wake();
}

std::optional<Loss> TcpLink::loss() const {
  if (!lost_.load()) return std::nullopt;
  MutexLock lock(&mu_);
  return loss_;
}

short TcpLink::poll_events() const {
  return static_cast<short>((wants_read_.load(std::memory_order_relaxed) ? POLLIN : 0) |
                            (wants_write_.load(std::memory_order_relaxed) ? POLLOUT : 0));
}

void TcpLink::Start(const Message* send, const Message* receive) {
  MutexLock lock(&mu_);
  CHECK(!send_.active && !receive_.active);
  if (receive != nullptr) {
    receive_.id = receive->id;
    receive_.message = WireMessage({}, receive->region);
    receive_.active = true;
    receive_.done = early_bytes_;
    std::memcpy(receive_.message.header_data(), early_.data(), early_bytes_);
    early_bytes_ = 0;
  }
  if (send != nullptr) {
    send_.id = send->id;
    send_.message =
        WireMessage({WireKind::kMessage, send->id, send->region.bytes(), -1}, send->region);
    send_.done = 0;
    send_.active = true;
  }
  // Whatever came early is checked now; the rest moves in Advance.
  if (receive_.active && receive_.done == kHeaderBytes && AcceptHeader() &&
      receive_.done == receive_.message.total()) {
    receive_.active = false;
  }
}

Link::State TcpLink::Advance(Loss& loss) {
  MutexLock lock(&mu_);
  if (!closed_ && !loss_.has_value()) {
    if (send_.active) SendMore();
    if (receive_.active) ReceiveMore();
  }
  wants_write_.store(send_.active, std::memory_order_relaxed);
  wants_read_.store(receive_.active, std::memory_order_relaxed);
  if (loss_.has_value()) {
    loss = *loss_;
    return State::kLost;
  }
  return send_.active || receive_.active ? State::kPending : State::kDone;
}

void TcpLink::Cancel() {
  MutexLock lock(&mu_);
  send_.active = receive_.active = false;
}

void TcpLink::ReceiveLater(int64_t count) {
  if (count < 0 && IsTemporary(errno)) return;
  if (count < 0) {
    Lose(PeerGone(peer_, std::strerror(errno)));
  } else {
    Lose(PeerGone(peer_, peer_left_ ? "it has left the group" : "it closed the link"));
  }
}

void TcpLink::SendLater() {
  const int error = errno;
  if (IsTemporary(error)) return;
  // It may have said why before it went.
  if (receive_.active) {
    ReceiveMore();
  } else {
    ReadLastWord();
  }
  Lose(PeerGone(peer_, std::strerror(error)));
}

void TcpLink::SendMore() {
  if (sealer_ != nullptr) {
    SendSealed();
  } else {
    SendPlain();
  }
}

void TcpLink::SendPlain() {
  while (send_.active) {
    send_.message.PiecesOf(send_.done, send_.message.total() - send_.done, kMaxPieces,
                           send_.pieces);
    const int64_t sent = SendPieces(fd_, send_.pieces);
    if (sent <= 0) {
      SendLater();
      return;
    }
    send_.done += sent;
    send_.active = send_.done < send_.message.total();
  }
}

bool TcpLink::Flush() {
  while (out_begin_ < out_end_) {
    const int64_t sent =
        send(fd_, out_.data() + out_begin_, out_end_ - out_begin_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent <= 0) {
      SendLater();
      return false;
    }
    out_begin_ += sent;
  }
  return true;
}

void TcpLink::SendSealed() {
  for (;;) {
    if (!Flush()) return;
    const int64_t left = send_.message.total() - send_.done;
    if (left == 0) {
      send_.active = false;
      return;
    }
    const int64_t bytes = std::min(left, kRecordBytes);
    send_.message.PiecesOf(send_.done, bytes, SIZE_MAX, send_.pieces);
    sealer_->Seal(send_.pieces, bytes, out_.data());
    send_.done += bytes;
    out_begin_ = 0;
    out_end_ = bytes + kRecordOverhead;
  }
}

void TcpLink::ReceiveMore() {
  if (opener_ != nullptr) {
    ReceiveSealed();
  } else {
    ReceivePlain();
  }
}

bool TcpLink::AcceptHeader() {
  const WireHeader header = receive_.message.header();
  const int64_t expected = receive_.message.total() - kHeaderBytes;
  switch (header.kind) {
    case WireKind::kMessage:
      if (header.id == receive_.id && header.bytes == expected) return true;
      Lose({Disagreement(rank_, receive_.id, expected, peer_, header.id, header.bytes), -1});
      return false;
    case WireKind::kAbort:
      Lose(PeerAborted(peer_, header.blamed_rank));
      return false;
    case WireKind::kGoodbye:
      peer_left_ = true;
      Lose(PeerGone(peer_, "it has left the group"));
      return false;
  }
  Lose(PeerGone(peer_, "it sends what is no message"));
  return false;
}

void TcpLink::ReceivePlain() {
  while (receive_.active) {
    receive_.message.PiecesOf(receive_.done, receive_.message.total() - receive_.done, kMaxPieces,
                              receive_.pieces);
    const int64_t got = ReceivePieces(fd_, receive_.pieces);
    if (got <= 0) {
      ReceiveLater(got);
      return;
    }
    const bool had_header = receive_.done >= kHeaderBytes;
    receive_.done += got;
    if (!had_header && receive_.done >= kHeaderBytes && !AcceptHeader()) return;
    receive_.active = receive_.done < receive_.message.total();
  }
}

bool TcpLink::OpenRecord() {
  const int64_t have = in_end_ - in_begin_;
  if (have < 4) return false;
  const uint8_t* record = in_.data() + in_begin_;
  uint32_t length;
  std::memcpy(&length, record, 4);
  const int64_t expected = std::min(receive_.message.total() - receive_.done, kRecordBytes);
  // A last word is a record of its own, a header long.
  if (length != expected && !(length == kHeaderBytes && receive_.done == 0)) {
    Lose(PeerGone(peer_, absl::StrCat("a record of ", length, " bytes instead of ", expected)));
    return false;
  }
  if (have < length + kRecordOverhead) return false;
  receive_.message.PiecesOf(receive_.done, length, SIZE_MAX, receive_.pieces);
  if (!opener_->Open(record, receive_.pieces, length)) {
    Lose(PeerGone(peer_, "a record is not authentic"));
    return false;
  }
  in_begin_ += length + kRecordOverhead;
  if (in_begin_ == in_end_) in_begin_ = in_end_ = 0;
  const bool first = receive_.done == 0;
  receive_.done += length;
  if (first && !AcceptHeader()) return false;
  receive_.active = receive_.done < receive_.message.total();
  return receive_.active;
}

void TcpLink::ReceiveSealed() {
  for (;;) {
    while (OpenRecord()) {
    }
    if (!receive_.active || loss_.has_value()) return;
    if (in_begin_ > 0) {
      std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
      in_end_ -= in_begin_;
      in_begin_ = 0;
    }
    // Not beyond this message: the next may be for another call.
    const int64_t left = receive_.message.total() - receive_.done;
    const int64_t records = (left + kRecordBytes - 1) / kRecordBytes;
    const int64_t wire = left + records * kRecordOverhead - in_end_;
    const int64_t room = static_cast<int64_t>(in_.size()) - in_end_;
    const int64_t got = recv(fd_, in_.data() + in_end_, std::min(wire, room), MSG_DONTWAIT);
    if (got <= 0) {
      ReceiveLater(got);
      return;
    }
    in_end_ += got;
  }
}

void TcpLink::ReadLastWord() {
  // Only the next header is looked at. If it is of a message, the call that wants the message finds
  // out what comes after.
  if (opener_ == nullptr) {
    while (early_bytes_ < kHeaderBytes) {
      const int64_t got =
          recv(fd_, early_.data() + early_bytes_, kHeaderBytes - early_bytes_, MSG_DONTWAIT);
      if (got <= 0) {
        ReceiveLater(got);
        return;
      }
      early_bytes_ += got;
    }
    WireMessage word;
    std::memcpy(word.header_data(), early_.data(), kHeaderBytes);
    const WireHeader header = word.header();
    if (header.kind == WireKind::kAbort) Lose(PeerAborted(peer_, header.blamed_rank));
    if (header.kind == WireKind::kGoodbye) peer_left_ = true;
    return;
  }
  constexpr int64_t kWordBytes = kHeaderBytes + kRecordOverhead;
  while (in_end_ - in_begin_ < kWordBytes) {
    const int64_t want = kWordBytes - (in_end_ - in_begin_);
    if (in_end_ + want > static_cast<int64_t>(in_.size())) return;
    const int64_t got = recv(fd_, in_.data() + in_end_, want, MSG_DONTWAIT);
    if (got <= 0) {
      ReceiveLater(got);
      return;
    }
    in_end_ += got;
  }
  uint32_t length;
  std::memcpy(&length, in_.data() + in_begin_, 4);
  // A message without content is as long as a last word: the nonce tells nothing apart, so it stays
  // for the call that expects it.
  if (length != kHeaderBytes) return;
  WireMessage word({}, {});
  std::vector<Piece> pieces = {{word.header_data(), kHeaderBytes}};
  if (!opener_->Open(in_.data() + in_begin_, pieces, length)) {
    Lose(PeerGone(peer_, "a record is not authentic"));
    return;
  }
  in_begin_ = in_end_ = 0;
  const WireHeader header = word.header();
  if (header.kind == WireKind::kAbort) Lose(PeerAborted(peer_, header.blamed_rank));
  if (header.kind == WireKind::kGoodbye) peer_left_ = true;
  if (header.kind != WireKind::kMessage) return;
  std::memcpy(early_.data(), word.header_data(), kHeaderBytes);
  early_bytes_ = kHeaderBytes;
}

WatchedSocket::Attention TcpLink::Inspect(short events) {
  MutexLock lock(&mu_);
  if (closed_ || loss_.has_value() || peer_left_) return Attention::kDone;
  // While a message is awaited the call itself reads on; it must first get what came before.
  if (receive_.active) return Attention::kAgain;
  ReadLastWord();
  if (peer_left_ || loss_.has_value()) return Attention::kDone;
  if ((events & POLLERR) == 0) return Attention::kAgain;
  Lose(PeerGone(peer_, "it reset the link"));
  return Attention::kDone;
}

void TcpLink::Close(CloseKind kind, int blamed_rank) {
  MutexLock lock(&mu_);
  if (closed_) return;
  closed_ = true;
  // A last word fits in between messages only; without it the peer sees the link end.
  const bool whole = send_.done == send_.message.total() && out_begin_ == out_end_;
  const bool between = send_.done == 0 || whole;
  if (between && !loss_.has_value()) {
    const WireKind word = kind == CloseKind::kAbort ? WireKind::kAbort : WireKind::kGoodbye;
    WireMessage message({word, {}, 0, blamed_rank}, {});
    std::vector<Piece> pieces = {{message.header_data(), kHeaderBytes}};
    uint8_t sealed[kHeaderBytes + kRecordOverhead];
    if (sealer_ != nullptr) {
      sealer_->Seal(pieces, kHeaderBytes, sealed);
      pieces = {{sealed, static_cast<int64_t>(sizeof(sealed))}};
    }
    // Whether it arrives is not known, and nothing depends on it.
    SendPieces(fd_, pieces);
  }
  if (kind == CloseKind::kAbort) {
    ResetConnection(fd_);
    watch_->LookAgain();
    waker_->Wake();
  } else {
    shutdown(fd_, SHUT_WR);
  }
}

}  // namespace rempart::worker
