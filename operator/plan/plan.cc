// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/plan.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "operator/plan/group_objects.h"
#include "operator/plan/status.h"
#include "operator/plan/validate.h"

namespace rempart::op {
namespace {

// The folder of a pod under which its weights are mounted.
constexpr char kMount[] = "/models";

const GroupObservation* FindGroup(const Observed& observed, int32_t index) {
  for (const GroupObservation& group : observed.groups) {
    if (group.index == index) return &group;
  }
  return nullptr;
}

void FillEngine(const serving::v1alpha1::EngineSpec& spec, worker::v1::EngineConfig& engine) {
  engine.set_context_length(spec.context_length());
  engine.set_max_sequences(spec.max_sequences());
  engine.set_kv_cache_type(spec.has_kv_cache_type() ? spec.kv_cache_type() : "auto");
  engine.set_arithmetic(spec.has_arithmetic() ? spec.arithmetic() : "fast");
  engine.set_threads(spec.threads());
  if (spec.has_prefix_cache()) engine.set_prefix_cache(spec.prefix_cache());
  if (spec.has_max_step_milliseconds()) {
    engine.set_max_step_milliseconds(spec.max_step_milliseconds());
  }
}

GroupPlan MakeGroup(const Observed& observed, const ParsedSource& source, int32_t index) {
  const Model& model = observed.model;
  GroupPlan group;
  group.index = index;
  group.name = absl::StrCat(model.metadata().name(), "-", index);
  worker::v1::WorkerConfig& config = group.config;
  config.set_model_name(FullName(model));
  for (const std::string& name : ServedNames(model)) config.add_served_names(name);
  config.set_group_name(absl::StrCat(model.metadata().namespace_(), "/", group.name));
  config.set_tensor_parallel(1);
  config.set_ranks_per_pod(1);
  FillEngine(model.spec().engine(), *config.mutable_engine());
  if (observed.settings.local) {
    config.set_model_path(source.path);
    return group;
  }
  group.volume.claim = source.claim;
  if (source.claim.empty()) {
    group.volume.node_path = source.path;
    const std::string base = source.path.substr(source.path.rfind('/') + 1);
    config.set_model_path(absl::StrCat(kMount, "/", base));
  } else {
    config.set_model_path(absl::StrCat(kMount, "/", source.path));
  }
  config.set_listen_address("0.0.0.0:7070");
  config.set_health_address("127.0.0.1:9090");
  config.set_control_address(observed.settings.control_address);
  worker::v1::TlsFiles& tls = *config.mutable_tls();
  tls.set_ca_file("/etc/rempart/tls/ca.crt");
  tls.set_certificate_file("/etc/rempart/tls/tls.crt");
  tls.set_key_file("/etc/rempart/tls/tls.key");
  tls.set_peer_name("rempart-operator");
  group.config_hash = TemplateHash(observed, group);
  return group;
}

bool IsSettled(const Observed& observed, const GroupPlan& group) {
  const GroupObservation* seen = FindGroup(observed, group.index);
  return seen != nullptr && seen->exists && seen->config_hash == group.config_hash &&
         GroupIsReady(*seen);
}

// Drain, then replace, one group at a time: of the groups that run an older template and still
// serve, one may change, and only when every other group serves.
void ScheduleRollout(const Observed& observed, std::vector<GroupPlan>& groups) {
  std::vector<GroupPlan*> serving_old;
  bool all_others_serve = true;
  for (GroupPlan& group : groups) {
    const GroupObservation* seen = FindGroup(observed, group.index);
    const bool old = seen != nullptr && seen->exists && seen->config_hash != group.config_hash;
    if (old && GroupIsReady(*seen)) {
      serving_old.push_back(&group);
    } else if (!IsSettled(observed, group)) {
      all_others_serve = false;
    }
  }
  for (size_t i = 0; i < serving_old.size(); ++i) {
    serving_old[i]->apply = all_others_serve && i == 0;
  }
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
  const auto& spec = observed.model.spec();
  const int32_t wanted = spec.has_replicas() ? spec.replicas() : 1;
  // A refused edit leaves what runs as it is: the message says what to do, and nothing stops.
  if (!refusal.has_value()) {
    for (int32_t i = 0; i < wanted; ++i) plan.groups.push_back(MakeGroup(observed, source, i));
    ScheduleRollout(observed, plan.groups);
    for (const GroupObservation& group : observed.groups) {
      if (group.index < wanted) continue;
      plan.removed_groups.push_back(
          absl::StrCat(observed.model.metadata().name(), "-", group.index));
    }
  }
  MakeStatus(observed, refusal, wanted, plan);
  return plan;
}

}  // namespace rempart::op
