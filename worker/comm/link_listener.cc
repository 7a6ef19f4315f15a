// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/link_listener.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Between two looks at the clock and at the stop token.
constexpr absl::Duration kTick = absl::Milliseconds(20);

void CloseAll(std::map<std::pair<int, int>, TcpConnection>& connections) {
  for (auto& [ranks, connection] : connections) close(connection.fd);
  connections.clear();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LinkListener>> LinkListener::Listen(const std::string& address) {
  ASSIGN_OR_RETURN(const SocketAddress parsed, ParseAddress(address));
  ASSIGN_OR_RETURN(Descriptor fd, ListenOn(parsed));
  ASSIGN_OR_RETURN(std::string local, LocalAddress(fd.get()));
  return std::unique_ptr<LinkListener>(new LinkListener(std::move(fd), std::move(local)));
}

LinkListener::LinkListener(Descriptor fd, std::string address)
    : fd_(std::move(fd)), address_(std::move(address)), thread_([this] { Run(); }) {}

LinkListener::~LinkListener() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  waker_.Wake();
  thread_.join();
  MutexLock lock(&mu_);
  CloseAll(accepted_);
}

void LinkListener::Admit(const Admission& admission) {
  MutexLock lock(&mu_);
  CloseAll(accepted_);
  admission_ = admission;
}

void LinkListener::Close() { Admit({}); }

absl::StatusOr<TcpConnection> LinkListener::Take(int from, int to, SteadyClock::time_point deadline,
                                                 const std::stop_token& stop) {
  MutexLock lock(&mu_);
  const std::pair<int, int> key = {from, to};
  const auto here = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return accepted_.contains(key); };
  while (!mu_.AwaitWithTimeout(absl::Condition(&here), kTick)) {
    if (stop.stop_requested()) return absl::CancelledError("the epoch was given up");
    if (SteadyClock::now() >= deadline) return absl::DeadlineExceededError("it has not dialled");
  }
  const auto found = accepted_.find(key);
  TcpConnection connection = found->second;
  accepted_.erase(found);
  return connection;
}

void LinkListener::Run() {
  std::vector<pollfd> fds;
  for (;;) {
    waker_.BeginParking();
    {
      MutexLock lock(&mu_);
      if (stopping_) return;
    }
    fds = {{waker_.fd(), POLLIN, 0}, {fd_.get(), POLLIN, 0}};
    for (const auto& stranger : strangers_) fds.push_back({stranger->fd.get(), POLLIN, 0});
    poll(fds.data(), fds.size(), strangers_.empty() ? 1000 : 20);
    waker_.EndParking();
    const auto now = SteadyClock::now();
    size_t index = 2;
    std::erase_if(strangers_, [&](const auto& stranger) {
      const bool readable = fds[index++].revents != 0;
      return (readable && !Serve(*stranger)) || now >= stranger->deadline;
    });
    if (fds[1].revents != 0) Accept();
  }
}

void LinkListener::Accept() {
  for (int i = 0; i < kMaxStrangers; ++i) {
    const int fd = accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    if (strangers_.size() >= kMaxStrangers) strangers_.erase(strangers_.begin());
    auto stranger = std::make_unique<Stranger>();
    stranger->fd = Descriptor(fd);
    stranger->deadline = SteadyClock::now() + std::chrono::milliseconds(kStrangerMs);
    strangers_.push_back(std::move(stranger));
  }
}

bool LinkListener::Serve(Stranger& stranger) {
  const size_t wanted = stranger.hello.empty() ? kHelloBytes : kProofBytes;
  char buffer[kHelloBytes];
  const ssize_t got = recv(stranger.fd.get(), buffer, wanted - stranger.read.size(), MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  if (got == 0) return false;
  stranger.read.append(buffer, got);
  if (stranger.read.size() < wanted) return true;
  return stranger.hello.empty() ? ServeHello(stranger) : ServeProof(stranger);
}

bool LinkListener::ServeHello(Stranger& stranger) {
  const absl::StatusOr<Hello> hello = DecodeHello(stranger.read);
  if (!hello.ok()) return false;
  {
    MutexLock lock(&mu_);
    stranger.admission = admission_;
  }
  const Admission& own = stranger.admission;
  Answer answer;
  answer.epoch = own.epoch;
  const int to = hello->to - own.first_rank;
  const bool remote = hello->from < own.first_rank || hello->from >= own.first_rank + own.ranks;
  if (own.key.empty() || hello->epoch != own.epoch) {
    answer.verdict = Verdict::kOtherEpoch;
  } else if (hello->size != own.size || to < 0 || to >= own.ranks || hello->from >= own.size ||
             !remote) {
    answer.verdict = Verdict::kOtherGroup;
  } else if (hello->encrypted != own.encrypted) {
    answer.verdict = Verdict::kOtherEncryption;
  } else {
    answer.nonce = RandomBytes(32);
  }
  stranger.hello.swap(stranger.read);
  stranger.read.clear();
  stranger.answer = EncodeAnswer(answer, own.key, stranger.hello);
  const ssize_t sent = send(stranger.fd.get(), stranger.answer.data(), stranger.answer.size(),
                            MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent == kAnswerBytes && answer.verdict == Verdict::kWelcome;
}

bool LinkListener::ServeProof(Stranger& stranger) {
  const Admission& own = stranger.admission;
  if (!CheckProof(stranger.read, own.key, stranger.hello, stranger.answer)) return false;
  const absl::StatusOr<Hello> hello = DecodeHello(stranger.hello);
  TcpConnection connection;
  if (own.encrypted) {
    const LinkSecrets secrets = DeriveSecrets(own.key, stranger.hello, stranger.answer);
    connection.send_secret = secrets.of_acceptor;
    connection.receive_secret = secrets.of_dialler;
  }
  SetLinkOptions(stranger.fd.get(), own.timeout);
  MutexLock lock(&mu_);
  if (admission_.epoch != own.epoch || admission_.key != own.key) return false;
  if (send(stranger.fd.get(), &kAcceptedByte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1) return false;
  connection.fd = stranger.fd.Release();
  // A rank that dials again has given up its last attempt.
  const auto [place, fresh] = accepted_.try_emplace({hello->from, hello->to}, connection);
  if (!fresh) {
    close(place->second.fd);
    place->second = connection;
  }
  return false;
}

}  // namespace rempart::worker
