// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/group_plan.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "operator/plan/group_objects.h"

namespace rempart::op {
namespace {

constexpr char kGpu[] = "nvidia.com/gpu";
constexpr char kMigPrefix[] = "nvidia.com/mig-";
constexpr int32_t kLeastSharedMib = 1024;
constexpr int32_t kSharedMibOfRank = 256;

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
  engine.set_kv_cache_mib(spec.kv_cache_mib());
  engine.set_max_step_tokens(spec.max_step_tokens());
}

void FillAddresses(const Settings& settings, int32_t pod_count, worker::v1::WorkerConfig& config) {
  config.set_listen_address("0.0.0.0:7070");
  if (pod_count > 1) config.set_data_address("0.0.0.0:7071");
  config.set_health_address("127.0.0.1:9090");
  config.set_control_address(settings.control_address);
  worker::v1::TlsFiles& tls = *config.mutable_tls();
  tls.set_ca_file("/etc/rempart/tls/ca.crt");
  tls.set_certificate_file("/etc/rempart/tls/tls.crt");
  tls.set_key_file("/etc/rempart/tls/tls.key");
  tls.set_peer_name("rempart-operator");
}

void FillWeights(const ParsedSource& source, GroupPlan& group) {
  group.volume.claim = source.claim;
  if (!source.claim.empty()) {
    group.config.set_model_path(absl::StrCat(kModelsFolder, "/", source.path));
    return;
  }
  group.volume.node_paths = source.parts;
  const std::string base = source.path.substr(source.path.rfind('/') + 1);
  group.config.set_model_path(absl::StrCat(kModelsFolder, "/", base));
}

void FillCache(const serving::v1alpha1::EngineSpec& spec, GroupPlan& group) {
  if (!spec.has_repack_cache_claim()) return;
  group.volume.cache_claim = spec.repack_cache_claim();
  group.config.set_repack_cache_folder(absl::StrCat(kCacheMount, "/repacked"));
}

}  // namespace

std::set<std::string> GpuResources(const serving::v1alpha1::ModelSpec& spec) {
  std::set<std::string> names;
  for (const auto* quantities : {&spec.resources().limits(), &spec.resources().requests()}) {
    for (const auto& [resource, quantity] : *quantities) {
      // nvidia.com/gpu.shared is one of several on the same GPU.
      const bool is_gpu = resource == kGpu || absl::StartsWith(resource, absl::StrCat(kGpu, ".")) ||
                          absl::StartsWith(resource, kMigPrefix);
      if (is_gpu) names.insert(resource);
    }
  }
  return names;
}

std::string GpuResource(const serving::v1alpha1::ModelSpec& spec) {
  const std::set<std::string> named = GpuResources(spec);
  return named.empty() ? kGpu : *named.begin();
}

bool IsExtendedResource(const std::string& resource) {
  return absl::StrContains(resource, '/') && !absl::StrContains(resource, "kubernetes.io/");
}

serving::v1alpha1::Resources PodResources(const serving::v1alpha1::ModelSpec& spec) {
  serving::v1alpha1::Resources resources = spec.resources();
  auto& requests = *resources.mutable_requests();
  auto& limits = *resources.mutable_limits();
  // Kubernetes wants both of an extended resource, and both equal.
  for (const auto& [resource, quantity] : spec.resources().requests()) {
    if (IsExtendedResource(resource)) limits.insert({resource, quantity});
  }
  for (const auto& [resource, quantity] : spec.resources().limits()) {
    if (IsExtendedResource(resource)) requests.insert({resource, quantity});
  }
  if (spec.device() != "gpu" || !spec.resources().claims().empty()) return resources;
  requests[GpuResource(spec)] = limits[GpuResource(spec)] = absl::StrCat(RanksPerPod(spec));
  return resources;
}

bool LinksGpus(const serving::v1alpha1::ModelSpec& spec) {
  return spec.device() == "gpu" && spec.parallelism().tensor() > 1;
}

int32_t SharedMemoryMib(const serving::v1alpha1::ModelSpec& spec) {
  if (spec.parallelism().has_shared_memory_mib()) return spec.parallelism().shared_memory_mib();
  return std::max(kLeastSharedMib, kSharedMibOfRank * RanksPerPod(spec));
}

int32_t RanksPerPod(const serving::v1alpha1::ModelSpec& spec) {
  const int32_t tensor = std::max(spec.parallelism().tensor(), 1);
  return spec.parallelism().ranks_per_pod() > 0 ? spec.parallelism().ranks_per_pod() : tensor;
}

int32_t PodCount(const serving::v1alpha1::ModelSpec& spec) {
  const int32_t pods_per_stage = std::max(spec.parallelism().tensor(), 1) / RanksPerPod(spec);
  return std::max(spec.parallelism().pipeline(), 1) * pods_per_stage;
}

std::string GroupName(const Model& model, int32_t index) {
  return absl::StrCat(model.metadata().name(), "-", index);
}

const GroupObservation* FindGroup(const Observed& observed, int32_t index) {
  for (const GroupObservation& group : observed.groups) {
    if (group.index == index) return &group;
  }
  return nullptr;
}

int64_t SecondsOf(const std::string& timestamp) {
  absl::Time time;
  std::string error;
  return absl::ParseTime(absl::RFC3339_full, timestamp, &time, &error) ? absl::ToUnixSeconds(time)
                                                                       : 0;
}

std::vector<GroupPlan> MakeGroups(const Observed& observed,
                                  const serving::v1alpha1::ModelSpec& spec, int32_t count) {
  ParsedSource source;
  if (ParseSource(observed.settings, spec, source).has_value()) return {};
  Model model;
  *model.mutable_metadata() = observed.model.metadata();
  *model.mutable_spec() = spec;
  GroupPlan group;
  group.spec = spec;
  group.ranks_per_pod = RanksPerPod(spec);
  group.pod_count = PodCount(spec);
  worker::v1::WorkerConfig& config = group.config;
  config.set_model_name(FullName(model));
  for (const std::string& name : ServedNames(model)) config.add_served_names(name);
  config.set_tensor_parallel(std::max(spec.parallelism().tensor(), 1));
  if (spec.parallelism().pipeline() > 1) {
    config.set_pipeline_parallel(spec.parallelism().pipeline());
  }
  config.set_ranks_per_pod(group.ranks_per_pod);
  if (spec.device() == "gpu") config.set_device("gpu");
  *config.mutable_nccl() = spec.parallelism().nccl();
  FillEngine(spec.engine(), *config.mutable_engine());
  config.set_model_digest(spec.source().digest());
  if (observed.settings.local) {
    config.set_model_path(source.path);
  } else {
    FillWeights(source, group);
    FillCache(spec.engine(), group);
    FillAddresses(observed.settings, group.pod_count, config);
    group.config_hash = TemplateHash(observed, group);
    config.set_config_hash(group.config_hash);
  }
  std::vector<GroupPlan> groups(count, group);
  for (int32_t i = 0; i < count; ++i) {
    groups[i].index = i;
    groups[i].name = GroupName(model, i);
    groups[i].config.set_group_name(
        absl::StrCat(model.metadata().namespace_(), "/", groups[i].name));
  }
  return groups;
}

}  // namespace rempart::op
