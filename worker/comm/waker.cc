// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/waker.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

#include "common/check.h"

namespace rempart::worker {

Waker::Waker() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) { CHECK_GE(fd_, 0); }

Waker::~Waker() { close(fd_); }

void Waker::Wake() {
  if (!parked_.exchange(false)) return;
  const uint64_t one = 1;
  // It can fail only because the counter is full, and then poll() returns all the same.
  [[maybe_unused]] const ssize_t written = write(fd_, &one, sizeof(one));
}

void Waker::EndParking() {
  // Whoever took the flag writes, so the descriptor may become readable late: poll() then returns
  // once for nothing.
  parked_.store(false);
  uint64_t count;
  [[maybe_unused]] const ssize_t got = read(fd_, &count, sizeof(count));
}

}  // namespace rempart::worker
