// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/link_watch.h"

#include <algorithm>

namespace rempart::worker {
namespace {

constexpr int kAgainMs = 20;

}  // namespace

LinkWatch::LinkWatch() : thread_([this] { Run(); }) {}

LinkWatch::~LinkWatch() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  waker_.Wake();
  thread_.join();
}

void LinkWatch::Add(int fd, WatchedSocket* socket) {
  {
    MutexLock lock(&mu_);
    entries_.push_back({fd, socket});
  }
  waker_.Wake();
}

void LinkWatch::Remove(WatchedSocket* socket) {
  MutexLock lock(&mu_);
  std::erase_if(entries_, [&](const Entry& entry) { return entry.socket == socket; });
}

void LinkWatch::Run() {
  std::vector<pollfd> fds;
  for (;;) {
    waker_.BeginParking();
    fds.clear();
    int timeout_ms = 1000;
    {
      MutexLock lock(&mu_);
      if (stopping_) return;
      for (const Entry& entry : entries_) {
        // Errors are always reported.
        const short events = entry.again ? 0 : POLLRDHUP;
        fds.push_back({entry.fd, events, 0});
        if (entry.again) timeout_ms = kAgainMs;
      }
    }
    fds.push_back({waker_.fd(), POLLIN, 0});
    poll(fds.data(), fds.size(), timeout_ms);
    waker_.EndParking();
    fds.pop_back();
    Inspect(fds);
  }
}

void LinkWatch::Inspect(const std::vector<pollfd>& fds) {
  // Under the lock, so that Remove waits for an inspection that runs.
  MutexLock lock(&mu_);
  for (const pollfd& polled : fds) {
    const auto entry = std::find_if(entries_.begin(), entries_.end(),
                                    [&](const Entry& each) { return each.fd == polled.fd; });
    if (entry == entries_.end() || (polled.revents == 0 && !entry->again)) continue;
    entry->again = entry->socket->Inspect(polled.revents) == WatchedSocket::Attention::kAgain;
    if (!entry->again) entries_.erase(entry);
  }
}

}  // namespace rempart::worker
