// SPDX-License-Identifier: Apache-2.0
// How the thread of a rank that has parked in poll() is woken by others of its process.
#pragma once

#include <atomic>

namespace rempart::worker {

class Waker {
 public:
  Waker();
  ~Waker();
  Waker(const Waker&) = delete;
  Waker& operator=(const Waker&) = delete;

  // Any thread, after it has changed what the rank waits for. A system call only when it is parked.
  void Wake();

  // The rank's thread: BeginParking, look once more whether there is something to do, poll fd(),
  // EndParking.
  void BeginParking() { parked_.store(true); }
  void EndParking();
  int fd() const { return fd_; }

 private:
  const int fd_;  // an eventfd
  std::atomic<bool> parked_ = false;
};

}  // namespace rempart::worker
