// SPDX-License-Identifier: Apache-2.0
#include "cli/drill/watch.h"

#include "absl/time/time.h"
#include "operator/kube/wait.h"

namespace rempart::cli {

void ModelWatch::Run(std::stop_token stop) {
  const op::Api<serving::v1alpha1::Model> models(client_);
  while (!stop.stop_requested()) {
    op::WatchOptions options;
    options.ns = model_.ns;
    const auto on_event = [&](const op::WatchEvent& event) {
      serving::v1alpha1::Model model;
      const bool is_ours = event.kind != op::WatchKind::kBookmark &&
                           op::FromJson(event.object_json, model).ok() &&
                           model.metadata().name() == model_.name;
      if (!is_ours) return true;
      MutexLock lock(&mu_);
      seen_.emplace_back(clock_(), std::move(model));
      return true;
    };
    // Whatever ends it, an API server that is away included: it begins anew, with what is then.
    (void)client_->Watch(models.type(), options, on_event, stop);
    op::PauseUnlessStopped(stop, absl::Milliseconds(300));
  }
}

std::vector<ModelWatch::Seen> ModelWatch::Of(const std::string& group) const {
  std::vector<Seen> found;
  MutexLock lock(&mu_);
  for (const auto& [at, model] : seen_) {
    for (const auto& status : model.status().groups()) {
      if (status.name() == group) found.push_back({at, status});
    }
  }
  return found;
}

std::optional<Blame> FirstBlame(const std::vector<ModelWatch::Seen>& seen, double since) {
  std::string known;
  for (const ModelWatch::Seen& one : seen) {
    const std::string& time = one.group.last_failure_time();
    if (one.at <= since) {
      known = time;
    } else if (!time.empty() && time != known) {
      return Blame{one.at, one.group.last_failure()};
    }
  }
  return std::nullopt;
}

}  // namespace rempart::cli
