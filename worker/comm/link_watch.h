// SPDX-License-Identifier: Apache-2.0
// One thread for all connections of a communicator: it sleeps until a peer closes or resets one, so
// that a loss is known also while nobody reads.
#pragma once

#include <poll.h>

#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "worker/comm/waker.h"

namespace rempart::worker {

class WatchedSocket {
 public:
  enum class Attention {
    kAgain,  // the peer has closed its side, but data before that is not read yet: soon again
    kDone,
  };
  virtual ~WatchedSocket() = default;
  // Called by the watch's thread with what poll() said.
  virtual Attention Inspect(short events) = 0;
};

class LinkWatch {
 public:
  LinkWatch();
  ~LinkWatch();
  LinkWatch(const LinkWatch&) = delete;
  LinkWatch& operator=(const LinkWatch&) = delete;

  void Add(int fd, WatchedSocket* socket);
  // Afterwards the socket is not touched any more.
  void Remove(WatchedSocket* socket);
  // Lets go of descriptors that now are something else: a connection lives on, even closed, for as
  // long as a poll() looks at it.
  void LookAgain() { waker_.Wake(); }

 private:
  struct Entry {
    int fd;
    WatchedSocket* socket;
    bool again = false;
  };
  void Run();
  void Inspect(const std::vector<pollfd>& fds);

  Mutex mu_;
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  Waker waker_;
  std::thread thread_;
};

}  // namespace rempart::worker
