// SPDX-License-Identifier: Apache-2.0
// Where the ranks of other pods link to those of this one. One per process, for its whole life: its
// address is announced before any epoch is known. One thread accepts, and lets in who proves to
// belong to the epoch that is being connected.
//
// Bounds: kMaxStrangers connections that have proved nothing, each for kStrangerMs at most; the
// oldest makes room. A stranger costs a few hundred bytes.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "worker/comm/handshake.h"
#include "worker/comm/socket.h"
#include "worker/comm/tcp_link.h"
#include "worker/comm/waker.h"

namespace rempart::worker {

class LinkListener {
 public:
  static constexpr int kMaxStrangers = 64;
  static constexpr int kStrangerMs = 1000;

  // "10.1.2.3:0" lets the system choose a port.
  static absl::StatusOr<std::unique_ptr<LinkListener>> Listen(const std::string& address);
  ~LinkListener();
  const std::string& address() const { return address_; }

  // From now on lets in ranks of this epoch, and of no other; drops what was accepted for another.
  struct Admission {
    int32_t epoch = 0;
    std::string key;
    int first_rank = 0;  // of this pod
    int ranks = 0;       // of this pod
    int size = 0;        // of the group
    bool encrypted = false;
    std::chrono::milliseconds timeout{};
  };
  void Admit(const Admission& admission);
  // Lets in nobody any more.
  void Close();

  // The link that rank `from` has dialled to rank `to`; DeadlineExceeded, or Cancelled when `stop`
  // was asked for.
  absl::StatusOr<TcpConnection> Take(int from, int to,
                                     std::chrono::steady_clock::time_point deadline,
                                     const std::stop_token& stop);

 private:
  struct Stranger {
    Descriptor fd;
    std::chrono::steady_clock::time_point deadline;
    std::string read;
    std::string hello, answer;  // once exchanged
    Admission admission;        // under which the answer was given
  };

  LinkListener(Descriptor fd, std::string address);
  void Run();
  void Accept();
  // False when the connection is finished with, one way or the other.
  bool Serve(Stranger& stranger);
  bool ServeHello(Stranger& stranger);
  bool ServeProof(Stranger& stranger);

  // Constant after construction.
  const Descriptor fd_;
  const std::string address_;

  // Of the listener's thread.
  std::vector<std::unique_ptr<Stranger>> strangers_;  // oldest first

  Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  Admission admission_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<int, int>, TcpConnection> accepted_ ABSL_GUARDED_BY(mu_);  // by (from, to)
  Waker waker_;
  std::thread thread_;
};

}  // namespace rempart::worker
