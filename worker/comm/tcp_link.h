// SPDX-License-Identifier: Apache-2.0
// A link over a TCP connection whose two ends have proved to each other who they are
// (worker/comm/handshake.h). Plain messages are read straight into their place; encrypted ones pass
// through a buffer.
//
// An abort resets the connection, so that the peer learns it at once, whatever it has not read yet.
// A goodbye lets everything sent before arrive.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "worker/comm/link.h"
#include "worker/comm/link_watch.h"
#include "worker/comm/record_cipher.h"
#include "worker/comm/waker.h"
#include "worker/comm/wire_message.h"

namespace rempart::worker {

// A connection after its handshake.
struct TcpConnection {
  int fd = -1;              // non-blocking
  std::string send_secret;  // empty: plain
  std::string receive_secret;
};

class TcpLink : public Link, public WatchedSocket {
 public:
  // Owns the descriptor. `watch` notices the loss of the peer while no collective runs.
  TcpLink(int rank, int peer, TcpConnection connection, std::shared_ptr<Waker> waker,
          std::shared_ptr<LinkWatch> watch);
  ~TcpLink() override;

  void Start(const Message* send, const Message* receive) override;
  State Advance(Loss& loss) override;
  void Cancel() override;
  int fd() const override { return fd_; }
  short poll_events() const override;
  void Close(CloseKind kind, int blamed_rank) override;
  std::optional<Loss> loss() const override;
  Attention Inspect(short events) override;

 private:
  // What is still to be sent or received of one message.
  struct Flow {
    WireMessage message;
    MessageId id;
    int64_t done = 0;  // bytes of the message
    bool active = false;
    std::vector<Piece> pieces;
  };

  void Lose(Loss loss) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SendMore() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SendPlain() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SendSealed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Sends what is left of out_; false when the socket is full.
  bool Flush() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReceiveMore() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReceivePlain() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReceiveSealed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Opens the records at the front of in_; false when there is no whole one.
  bool OpenRecord() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Handles the header at the front of a message; false when it ends the link.
  bool AcceptHeader() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // After a read that returned `count` <= 0, or a write that failed: it is tried later, or the link
  // is lost.
  void ReceiveLater(int64_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SendLater() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Between messages: reads a last word of the peer, if one is there.
  void ReadLastWord() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const int rank_;
  const int peer_;
  const int fd_;
  const std::shared_ptr<Waker> waker_;
  const std::shared_ptr<LinkWatch> watch_;

  std::atomic<bool> lost_ = false;  // loss_ is set
  std::atomic<bool> wants_write_ = false;
  std::atomic<bool> wants_read_ = false;

  mutable Mutex mu_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;  // by this end
  bool peer_left_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<Loss> loss_ ABSL_GUARDED_BY(mu_);
  Flow send_ ABSL_GUARDED_BY(mu_);
  Flow receive_ ABSL_GUARDED_BY(mu_);
  // A header that arrived before its message was asked for; plain links only.
  std::array<uint8_t, kHeaderBytes> early_ ABSL_GUARDED_BY(mu_);
  int64_t early_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  // Encrypted links only.
  std::unique_ptr<RecordCipher> sealer_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<RecordCipher> opener_ ABSL_GUARDED_BY(mu_);
  std::vector<uint8_t> out_ ABSL_GUARDED_BY(mu_);  // [out_begin_, out_end_) is to be sent
  int64_t out_begin_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t out_end_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<uint8_t> in_ ABSL_GUARDED_BY(mu_);  // [in_begin_, in_end_) has arrived
  int64_t in_begin_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t in_end_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace rempart::worker
