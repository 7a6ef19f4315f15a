// SPDX-License-Identifier: Apache-2.0
// What the API server says of one Model over time, on a thread of its own.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "operator/kube/client.h"
#include "proto/serving/v1alpha1/model.pb.h"

namespace rempart::cli {

class ModelWatch {
 public:
  // `client` outlives it. `clock` gives the seconds that are noted; any thread.
  ModelWatch(const op::Client* client, op::ObjectKey model, std::function<double()> clock)
      : client_(client), model_(std::move(model)), clock_(std::move(clock)) {
    thread_ = std::jthread([this](std::stop_token stop) { Run(stop); });
  }

  struct Seen {
    double at = 0;
    serving::v1alpha1::GroupStatus group = {};
  };
  // Every status so far that had this group in it.
  std::vector<Seen> Of(const std::string& group) const;

 private:
  void Run(std::stop_token stop);

  const op::Client* const client_;
  const op::ObjectKey model_;
  const std::function<double()> clock_;
  mutable Mutex mu_;
  std::vector<std::pair<double, serving::v1alpha1::Model>> seen_ ABSL_GUARDED_BY(mu_);
  std::jthread thread_;
};

// The first status after `since` that counts a loss which none before did, and how it names whom.
struct Blame {
  double at = 0;
  std::string text = {};
};
std::optional<Blame> FirstBlame(const std::vector<ModelWatch::Seen>& seen, double since);

}  // namespace rempart::cli
