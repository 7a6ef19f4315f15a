// SPDX-License-Identifier: Apache-2.0
// Keeps a sink equal to one collection of the API server: list, then watch from there, for ever.
//
//            list                     end of stream, broken connection
//   kEmpty ────────> kWatching ──┐ ───────────────────────────────────┐
//     ^  └─ failed: pause   │    └── event, bookmark                  │ resume from the last
//     version └──── 410, nonsense ──┘ <───────────────────────────────────────┘
//
// 1. A list is handed over whole; between lists the sink gets single changes.
// 2. Of one object, nothing older replaces something newer (versions are compared as numbers, as
//    the API server defines since 1.35), nor does it bring back what was deleted.
// One thread calls Run; the counters may be read by any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <random>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "operator/kube/client.h"

namespace rempart::op {

struct ReflectorOptions {
  std::string ns = {};
  std::string label_selector = {};
  int watch_timeout_seconds = 290;
  // All objects are told again this often, at the end of a watch.
  absl::Duration resync = absl::Minutes(10);
  absl::Duration first_pause = absl::Milliseconds(200);
  absl::Duration longest_pause = absl::Seconds(30);
};

// Where objects go, as JSON. An error means that the object could not be read.
struct ReflectorSink {
  // `list` hands over a whole list, object by object; when it fails, what was there stays.
  std::function<absl::Status(const std::function<absl::Status(const OnItem&)>& list)> replace;
  std::function<absl::Status(const WatchEvent& event)> change;
  std::function<void()> resync;
};

class Reflector {
 public:
  Reflector(const Client* client, ResourceType type, ReflectorOptions options, ReflectorSink sink);

  void Run(std::stop_token stop);

  // Whether a first list has been handed over.
  bool synced() const { return synced_; }
  int64_t lists() const { return lists_; }
  int64_t watches() const { return watches_; }

 private:
  enum class State { kEmpty, kWatching };

  absl::Status List();
  absl::Status Watch(std::stop_token stop);
  absl::Status TakeEvent(const WatchEvent& event);
  absl::Duration NextPause(bool failed);

  const Client* const client_;
  const ResourceType type_;
  const ReflectorOptions options_;
  const ReflectorSink sink_;

  // Owned by the thread in Run.
  State state_ = State::kEmpty;
  std::string resource_version_;
  int failures_ = 0;
  absl::Time last_resync_ = absl::InfinitePast();
  std::minstd_rand jitter_;

  std::atomic<bool> synced_ = false;
  std::atomic<int64_t> lists_ = 0;
  std::atomic<int64_t> watches_ = 0;
};

// Whether `a` is an older version than `b`; false when they are not numbers.
bool IsOlderVersion(absl::string_view a, absl::string_view b);

}  // namespace rempart::op
