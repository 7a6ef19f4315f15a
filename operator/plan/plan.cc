// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/plan.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "operator/plan/drain.h"
#include "operator/plan/recovery.h"
#include "operator/plan/rollout.h"
#include "operator/plan/status.h"
#include "operator/plan/validate.h"

namespace rempart::op {
namespace {

void PlanGroups(const Observed& observed, int32_t wanted, const Memory& memory, Plan& plan) {
  PlanRollout(observed, wanted, plan);
  ReplaceLost(observed, memory, plan);
  PlacePods(observed, plan);
  ReviveOthers(observed, plan);
}

}  // namespace

std::string FullName(const Model& model) {
  return absl::StrCat(model.metadata().namespace_(), "/", model.metadata().name());
}

std::vector<std::string> ServedNames(const Model& model) {
  const auto& names = model.spec().served_names();
  if (names.empty()) return {model.metadata().name()};
  return {names.begin(), names.end()};
}

std::string ClaimOf(const Model& model) {
  absl::string_view uri = model.spec().source().uri();
  if (!absl::ConsumePrefix(&uri, "pvc://")) return "";
  return std::string(uri.substr(0, uri.find('/')));
}

Plan MakePlan(const Observed& observed) {
  Plan plan;
  ParsedSource source;
  const std::optional<Refusal> refusal = Validate(observed, source);
  // Scaling is no part of a refusal's cause that could be told apart: it waits with the rest.
  const auto& spec = refusal.has_value() && !observed.last_good.revision.empty()
                         ? observed.last_good.spec
                         : observed.model.spec();
  const int32_t wanted = spec.has_replicas() ? spec.replicas() : 1;
  const Memory memory = Remember(observed, plan);
  if (!refusal.has_value()) {
    PlanGroups(observed, wanted, memory, plan);
  } else if (!observed.last_good.revision.empty()) {
    // A refused edit leaves what runs as it is: the message says what to do, and nothing stops.
    Observed served = observed;
    *served.model.mutable_spec() = observed.last_good.spec;
    PlanGroups(served, wanted, memory, plan);
    plan.last_good.reset();
  }
  MakeStatus(observed, refusal, wanted, memory, plan);
  return plan;
}

}  // namespace rempart::op
