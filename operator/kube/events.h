// SPDX-License-Identifier: Apache-2.0
// Kubernetes events about objects. Record never waits: what does not fit the queue is dropped. The
// same event about the same object is one Event object whose count grows.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <stop_token>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "operator/kube/client.h"

namespace rempart::op {

struct EventRecord {
  k8s::v1::ObjectReference about;
  std::string type;    // Normal, Warning
  std::string reason;  // CamelCase
  std::string message;
};

class EventRecorder {
 public:
  // `instance` names this process.
  EventRecorder(const Client* client, std::string instance, const Clock* clock)
      : events_(client), instance_(std::move(instance)), clock_(clock) {}

  // Any thread.
  void Record(EventRecord record);

  // Writes what is recorded, until a stop. One thread.
  void Run(std::stop_token stop);

 private:
  struct Seen {
    int32_t count = 0;
    absl::Time first;
  };
  static constexpr size_t kMaxQueued = 1000;
  static constexpr size_t kMaxSeen = 4096;

  void Write(const EventRecord& record);

  const Api<k8s::v1::Event> events_;
  const std::string instance_;
  const Clock* const clock_;
  std::map<std::string, Seen> seen_;  // by name of the Event; owned by the thread in Run

  Mutex mu_;
  std::deque<EventRecord> queued_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::op
