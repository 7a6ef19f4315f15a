// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/group_objects.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/json_util.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace rempart::op {
namespace {

constexpr int32_t kUser = 65532;
constexpr int32_t kAttachPort = 7070;
constexpr int32_t kTerminationSeconds = 60;

void FillMetadata(const Observed& observed, const GroupPlan& group, k8s::v1::ObjectMeta& metadata) {
  const auto& owner = observed.model.metadata();
  metadata.set_name(group.name);
  metadata.set_namespace_(owner.namespace_());
  auto& labels = *metadata.mutable_labels();
  labels["app.kubernetes.io/name"] = "rempart";
  labels["app.kubernetes.io/component"] = "worker";
  labels["app.kubernetes.io/managed-by"] = "rempart-operator";
  labels[kModelLabel] = owner.name();
  labels[kGroupLabel] = group.name;
  k8s::v1::OwnerReference& reference = *metadata.add_owner_references();
  reference.set_api_version("serving.rempart.dev/v1alpha1");
  reference.set_kind("Model");
  reference.set_name(owner.name());
  reference.set_uid(owner.uid());
  reference.set_controller(true);
  reference.set_block_owner_deletion(true);
}

// Protobuf JSON; the field order of the schema, so that equal configurations are equal texts.
std::string WorkerJson(const worker::v1::WorkerConfig& config) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(config, &json, options);
  return status.ok() ? json : std::string();
}

void AddProbe(k8s::v1::Probe& probe, const std::string& question, int32_t period,
              int32_t failures) {
  for (const std::string& word :
       {std::string("/rempart-worker"), std::string("probe"), std::string("--address"),
        std::string("127.0.0.1:9090"), question}) {
    probe.mutable_exec()->add_command(word);
  }
  probe.set_period_seconds(period);
  probe.set_timeout_seconds(5);
  probe.set_failure_threshold(failures);
}

void AddFieldEnv(k8s::v1::Container& container, const std::string& name, const std::string& path) {
  k8s::v1::EnvVar& variable = *container.add_env();
  variable.set_name(name);
  variable.mutable_value_from()->mutable_field_ref()->set_field_path(path);
}

void AddMount(k8s::v1::Container& container, const std::string& name, const std::string& path) {
  k8s::v1::VolumeMount& mount = *container.add_volume_mounts();
  mount.set_name(name);
  mount.set_mount_path(path);
  mount.set_read_only(true);
}

void FillContainer(const Observed& observed, const GroupPlan& group,
                   k8s::v1::Container& container) {
  container.set_name("worker");
  container.set_image(observed.settings.worker_image);
  container.set_image_pull_policy(observed.settings.worker_pull_policy);
  for (const char* word : {"/rempart-worker", "--config", "/etc/rempart/config/worker.json"}) {
    container.add_command(word);
  }
  AddFieldEnv(container, "REMPART_POD_NAME", "metadata.name");
  AddFieldEnv(container, "REMPART_POD_IP", "status.podIP");
  AddFieldEnv(container, "REMPART_NODE_NAME", "spec.nodeName");
  k8s::v1::EnvVar& index = *container.add_env();
  index.set_name("REMPART_POD_INDEX");
  index.set_value("0");
  k8s::v1::ContainerPort& port = *container.add_ports();
  port.set_name("attach");
  port.set_container_port(kAttachPort);
  port.set_protocol("TCP");
  const auto& resources = observed.model.spec().resources();
  *container.mutable_resources()->mutable_requests() = resources.requests();
  *container.mutable_resources()->mutable_limits() = resources.limits();
  AddMount(container, "config", "/etc/rempart/config");
  AddMount(container, "tls", "/etc/rempart/tls");
  AddMount(container, "weights",
           group.volume.claim.empty() ? group.config.model_path() : std::string("/models"));
  AddProbe(*container.mutable_readiness_probe(), "ready", 3, 2);
  AddProbe(*container.mutable_liveness_probe(), "live", 10, 6);
  k8s::v1::SecurityContext& security = *container.mutable_security_context();
  security.set_allow_privilege_escalation(false);
  security.set_read_only_root_filesystem(true);
  security.mutable_capabilities()->add_drop("ALL");
  container.set_termination_message_policy("FallbackToLogsOnError");
}

void AddVolumes(const GroupPlan& group, k8s::v1::PodSpec& pod) {
  k8s::v1::Volume& config = *pod.add_volumes();
  config.set_name("config");
  config.mutable_config_map()->set_name(group.name);
  k8s::v1::Volume& tls = *pod.add_volumes();
  tls.set_name("tls");
  tls.mutable_secret()->set_secret_name("rempart-worker-tls");
  tls.mutable_secret()->set_default_mode(0440);
  k8s::v1::Volume& weights = *pod.add_volumes();
  weights.set_name("weights");
  if (group.volume.claim.empty()) {
    weights.mutable_host_path()->set_path(group.volume.node_path);
  } else {
    weights.mutable_persistent_volume_claim()->set_claim_name(group.volume.claim);
    weights.mutable_persistent_volume_claim()->set_read_only(true);
  }
}

void FillPod(const Observed& observed, const GroupPlan& group, k8s::v1::PodSpec& pod) {
  FillContainer(observed, group, *pod.add_containers());
  AddVolumes(group, pod);
  *pod.mutable_node_selector() = observed.model.spec().placement().node_selector();
  pod.set_automount_service_account_token(false);
  pod.set_enable_service_links(false);
  pod.set_termination_grace_period_seconds(kTerminationSeconds);
  k8s::v1::PodSecurityContext& security = *pod.mutable_security_context();
  security.set_run_as_non_root(true);
  security.set_run_as_user(kUser);
  security.set_run_as_group(kUser);
  security.set_fs_group(kUser);
  security.mutable_seccomp_profile()->set_type("RuntimeDefault");
}

void FillStatefulSet(const Observed& observed, const GroupPlan& group, k8s::v1::StatefulSet& set) {
  set.set_api_version("apps/v1");
  set.set_kind("StatefulSet");
  FillMetadata(observed, group, *set.mutable_metadata());
  k8s::v1::StatefulSetSpec& spec = *set.mutable_spec();
  spec.set_replicas(1);
  spec.set_service_name(group.name);
  spec.set_pod_management_policy("Parallel");
  auto& match = *spec.mutable_selector()->mutable_match_labels();
  match["app.kubernetes.io/name"] = "rempart";
  match[kModelLabel] = observed.model.metadata().name();
  match[kGroupLabel] = group.name;
  *spec.mutable_template_()->mutable_metadata()->mutable_labels() = set.metadata().labels();
  FillPod(observed, group, *spec.mutable_template_()->mutable_spec());
}

}  // namespace

std::string PodSelector(const Model& model) {
  return absl::StrCat(kModelLabel, "=", model.metadata().name());
}

std::string TemplateHash(const Observed& observed, const GroupPlan& group) {
  k8s::v1::StatefulSet set;
  FillStatefulSet(observed, group, set);
  std::string bytes = WorkerJson(group.config);
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    set.spec().template_().SerializeToCodedStream(&coded);
  }
  // FNV-1a, 64 bits: to notice a change, not to withstand an attacker.
  uint64_t hash = 14695981039346656037u;
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<uint8_t>(byte)) * 1099511628211u;
  }
  return absl::StrFormat("%016x", hash);
}

GroupObjects MakeGroupObjects(const Observed& observed, const GroupPlan& group) {
  GroupObjects objects;
  objects.config_map.set_api_version("v1");
  objects.config_map.set_kind("ConfigMap");
  FillMetadata(observed, group, *objects.config_map.mutable_metadata());
  (*objects.config_map.mutable_data())["worker.json"] = WorkerJson(group.config);

  objects.service.set_api_version("v1");
  objects.service.set_kind("Service");
  FillMetadata(observed, group, *objects.service.mutable_metadata());
  k8s::v1::ServiceSpec& service = *objects.service.mutable_spec();
  service.set_cluster_ip("None");
  service.set_publish_not_ready_addresses(true);
  (*service.mutable_selector())[kGroupLabel] = group.name;
  k8s::v1::ServicePort& port = *service.add_ports();
  port.set_name("attach");
  port.set_port(kAttachPort);
  port.set_protocol("TCP");

  FillStatefulSet(observed, group, objects.stateful_set);
  auto& pod = *objects.stateful_set.mutable_spec()->mutable_template_()->mutable_metadata();
  (*pod.mutable_annotations())[kConfigAnnotation] = group.config_hash;
  return objects;
}

}  // namespace rempart::op
