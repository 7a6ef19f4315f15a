// SPDX-License-Identifier: Apache-2.0
#include "worker/api/health_server.h"

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

std::string StatusJson(const StatusSnapshot& status) {
  return absl::StrCat("\"phase\":\"", PhaseName(status.phase),
                      "\",\"bytes_done\":", status.bytes_done,
                      ",\"bytes_total\":", status.bytes_total);
}

}  // namespace

HealthReply LivenessReply(const EngineLoad& load, const StatusSnapshot& status, absl::Time now,
                          absl::Duration limit) {
  const bool idle = load.busy_since == absl::InfiniteFuture();
  const absl::Duration stuck = idle ? absl::ZeroDuration() : now - load.busy_since;
  const std::string age =
      load.steps == 0 ? "null" : absl::StrCat(absl::ToInt64Milliseconds(now - load.last_step));
  return {stuck > limit ? 503 : 200,
          absl::StrCat("{", StatusJson(status), ",\"steps\":", load.steps, ",\"last_step_age_ms\":",
                       age, ",\"step_due_since_ms\":", absl::ToInt64Milliseconds(stuck), "}\n")};
}

HealthReply ReadinessReply(const StatusSnapshot& status) {
  return {status.phase == Phase::kReady ? 200 : 503, absl::StrCat("{", StatusJson(status), "}\n")};
}

}  // namespace rempart::worker
