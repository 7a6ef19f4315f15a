// SPDX-License-Identifier: Apache-2.0
// A client's socket: writes bytes as they are given, reads answers. Every wait has a deadline.
#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace rempart::router {

struct Answer {
  int status = 0;  // 0: the connection ended before an answer
  std::string head;
  std::string body;
};

class HttpClient {
 public:
  explicit HttpClient(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~HttpClient() { Close(); }
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  bool connected() const { return connected_; }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  void Send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t n = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += static_cast<size_t>(n);
    }
  }
  // Reads until `text` was received or the connection ends.
  bool WaitFor(const std::string& text) {
    while (!absl::StrContains(received_, text)) {
      if (!ReadMore()) return false;
    }
    return true;
  }
  bool WaitForEnd() {
    while (ReadMore()) {
    }
    return ended_;
  }
  const std::string& received() const { return received_; }

  // The next whole answer; chunked bodies are put together.
  Answer Read() {
    Answer answer;
    if (!WaitFor("\r\n\r\n")) return answer;
    const size_t end = received_.find("\r\n\r\n");
    answer.head = received_.substr(0, end);
    received_.erase(0, end + 4);
    if (answer.head.size() < 12 || !absl::SimpleAtoi(answer.head.substr(9, 3), &answer.status)) {
      return answer;
    }
    if (answer.status == 100) return Read();
    if (absl::StrContains(answer.head, "Transfer-Encoding: chunked")) {
      ReadChunks(answer);
    } else {
      const std::string name = "Content-Length: ";
      size_t length = 0;
      const size_t at = answer.head.find(name);
      if (at == std::string::npos) return answer;
      const std::string rest = answer.head.substr(at + name.size());
      (void)absl::SimpleAtoi(rest.substr(0, rest.find('\r')), &length);
      answer.body = Take(length);
    }
    return answer;
  }

 private:
  bool ReadMore() {
    pollfd watched{fd_, POLLIN, 0};
    if (ended_ || poll(&watched, 1, 20'000) <= 0) return false;
    char buffer[65536];
    const ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
    if (n <= 0) {
      ended_ = true;
      return false;
    }
    received_.append(buffer, static_cast<size_t>(n));
    return true;
  }
  std::string Take(size_t bytes) {
    while (received_.size() < bytes && ReadMore()) {
    }
    const std::string taken = received_.substr(0, bytes);
    received_.erase(0, taken.size());
    return taken;
  }
  void ReadChunks(Answer& answer) {
    while (WaitFor("\r\n")) {
      const size_t end = received_.find("\r\n");
      const size_t length = std::stoul(received_.substr(0, end), nullptr, 16);
      received_.erase(0, end + 2);
      answer.body += Take(length);
      Take(2);
      if (length == 0) return;
    }
    answer.status = 0;  // cut off
  }

  int fd_;
  bool connected_ = false;
  bool ended_ = false;
  std::string received_;
};

inline std::string Post(const std::string& path, const std::string& body,
                        const std::string& headers = "") {
  return absl::StrCat("POST ", path,
                      " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n", headers,
                      "Content-Length: ", body.size(), "\r\n\r\n", body);
}
inline std::string Get(const std::string& path, const std::string& headers = "") {
  return absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: test\r\n", headers, "\r\n");
}
inline std::string Chat(const std::string& prompt, const std::string& more = "") {
  return Post("/v1/chat/completions",
              absl::StrCat(R"({"model":"tiny","messages":[{"role":"user","content":")", prompt,
                           R"("}])", more, "}"));
}

// True as soon as the condition holds; false after ten seconds.
template <typename Condition>
bool Eventually(const Condition& condition) {
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

}  // namespace rempart::router
