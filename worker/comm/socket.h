// SPDX-License-Identifier: Apache-2.0
// The few socket calls that links need, over addresses like "10.1.2.3:7071" and "[fd00::1]:7071".
// Names are not resolved: members learn each other's addresses from the operator.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <string>

#include "absl/status/statusor.h"

namespace rempart::worker {

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return fd_; }
  int Release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t length = 0;
};

// InvalidArgument says what an address looks like.
absl::StatusOr<SocketAddress> ParseAddress(const std::string& text);
std::string FormatAddress(const SocketAddress& address);
bool IsLoopback(const SocketAddress& address);

// Non-blocking sockets.
absl::StatusOr<Descriptor> ListenOn(const SocketAddress& address);
// The address with the port that the system has chosen.
absl::StatusOr<std::string> LocalAddress(int fd);
// Connected, or Unavailable with the reason.
absl::StatusOr<Descriptor> DialOnce(const SocketAddress& address,
                                    std::chrono::steady_clock::time_point deadline);
// No delay; and unanswered data or probes end the connection after about `timeout`.
void SetLinkOptions(int fd, std::chrono::milliseconds timeout);

// Whole buffers on a non-blocking socket; DeadlineExceeded or Unavailable.
absl::Status WriteAll(int fd, const std::string& bytes,
                      std::chrono::steady_clock::time_point deadline);
absl::StatusOr<std::string> ReadExactly(int fd, int64_t bytes,
                                        std::chrono::steady_clock::time_point deadline);

}  // namespace rempart::worker
