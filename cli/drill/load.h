// SPDX-License-Identifier: Apache-2.0
// The load of a drill: clients that stream the same few chat completions again and again, each with
// its own seed, and note when every token came. What is right is what the same request was answered
// before anything was broken. One thread per client; call the methods from one thread.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cli/drill/report.h"
#include "common/mutex.h"
#include "operator/kube/curl_transport.h"

namespace rempart::cli {

// One line of a streamed chat completion: "data: {...}".
struct ChatLine {
  std::string text = {};
  bool finished = false;  // has a finish reason
  std::string error = {};
};
// Other lines are empty ones. InvalidArgument for what is no JSON.
absl::StatusOr<ChatLine> ParseChatLine(absl::string_view line);

class DrillLoad {
 public:
  // `served` is what clients put in "model"; seconds() counts from here.
  DrillLoad(const std::string& url, const std::string& api_key, std::string served);
  ~DrillLoad();

  // Asks every question once, for the right answers. The first error, in words for a person.
  absl::Status Learn(std::stop_token stop);
  void Start(int clients);
  // Ends when the requests that are open have ended, or after `wait`.
  void Stop(double wait_seconds);

  double seconds() const;
  int completed() const;
  std::vector<DrillAnswer> answers() const;

 private:
  struct Asked {
    DrillAnswer answer;
    std::string text;
  };
  Asked Ask(size_t question, std::stop_token stop);
  void RunClient(size_t first, std::stop_token stop);

  op::CurlTransport transport_;
  const std::string served_;
  const double began_;
  std::vector<std::string> expected_;  // constant once clients run
  std::stop_source cut_off_;           // for requests that do not end
  mutable Mutex mu_;
  std::vector<DrillAnswer> answers_ ABSL_GUARDED_BY(mu_);
  int running_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::jthread> clients_;
};

}  // namespace rempart::cli
