// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/group_objects.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/util/json_util.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "operator/plan/placement.h"

namespace rempart::op {
namespace {

constexpr int32_t kUser = 65532;
constexpr int32_t kAttachPort = 7070;
constexpr int32_t kDataPort = 7071;
constexpr int32_t kControlPort = 7080;
constexpr int32_t kDnsPort = 53;
constexpr int32_t kTerminationSeconds = 60;
// "weights", and "weights-2" and on for the other parts of a model in several files.
std::string WeightsName(size_t part) {
  return part == 0 ? "weights" : absl::StrCat("weights-", part + 1);
}

// "1Gi", "1536Mi".
std::string MibQuantity(int32_t mib) {
  return mib % 1024 == 0 ? absl::StrCat(mib / 1024, "Gi") : absl::StrCat(mib, "Mi");
}

void FillOwned(const Model& model, const std::string& name, k8s::v1::ObjectMeta& metadata) {
  const auto& owner = model.metadata();
  metadata.set_name(name);
  metadata.set_namespace_(owner.namespace_());
  auto& labels = *metadata.mutable_labels();
  labels["app.kubernetes.io/name"] = "rempart";
  labels["app.kubernetes.io/component"] = "worker";
  labels["app.kubernetes.io/managed-by"] = "rempart-operator";
  labels[kModelLabel] = owner.name();
  k8s::v1::OwnerReference& reference = *metadata.add_owner_references();
  reference.set_api_version("serving.rempart.dev/v1alpha1");
  reference.set_kind("Model");
  reference.set_name(owner.name());
  reference.set_uid(owner.uid());
  reference.set_controller(true);
  reference.set_block_owner_deletion(true);
}

void FillMetadata(const Observed& observed, const GroupPlan& group, k8s::v1::ObjectMeta& metadata) {
  FillOwned(observed.model, group.name, metadata);
  (*metadata.mutable_labels())[kGroupLabel] = group.name;
}

// Protobuf JSON; the field order of the schema, so that equal configurations are equal texts.
std::string Json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
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

void AddPort(k8s::v1::Container& container, const std::string& name, int32_t number) {
  k8s::v1::ContainerPort& port = *container.add_ports();
  port.set_name(name);
  port.set_container_port(number);
  port.set_protocol("TCP");
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
  AddFieldEnv(container, "REMPART_POD_UID", "metadata.uid");
  AddFieldEnv(container, "REMPART_POD_IP", "status.podIP");
  AddFieldEnv(container, "REMPART_NODE_NAME", "spec.nodeName");
  AddFieldEnv(container, "REMPART_POD_INDEX",
              absl::StrCat("metadata.labels['", kPodIndexLabel, "']"));
  AddPort(container, "attach", kAttachPort);
  if (group.pod_count > 1) AddPort(container, "data", kDataPort);
  const auto resources = PodResources(group.spec);
  *container.mutable_resources()->mutable_requests() = resources.requests();
  *container.mutable_resources()->mutable_limits() = resources.limits();
  for (const auto& claim : resources.claims()) {
    container.mutable_resources()->add_claims()->set_name(claim.name());
  }
  AddMount(container, "config", "/etc/rempart/config");
  AddMount(container, "tls", "/etc/rempart/tls");
  if (!group.volume.claim.empty()) AddMount(container, "weights", kModelsFolder);
  for (size_t part = 0; part < group.volume.node_paths.size(); ++part) {
    const std::string& path = group.volume.node_paths[part];
    AddMount(container, WeightsName(part),
             absl::StrCat(kModelsFolder, path.substr(path.rfind('/'))));
  }
  if (!group.volume.cache_claim.empty()) {
    AddMount(container, "repacked", kCacheMount);
    container.mutable_volume_mounts()->rbegin()->clear_read_only();
  }
  if (LinksGpus(group.spec)) {
    AddMount(container, "shared-memory", "/dev/shm");
    container.mutable_volume_mounts()->rbegin()->clear_read_only();
  }
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
  if (!group.volume.claim.empty()) {
    k8s::v1::Volume& weights = *pod.add_volumes();
    weights.set_name("weights");
    weights.mutable_persistent_volume_claim()->set_claim_name(group.volume.claim);
    weights.mutable_persistent_volume_claim()->set_read_only(true);
  }
  for (size_t part = 0; part < group.volume.node_paths.size(); ++part) {
    k8s::v1::Volume& weights = *pod.add_volumes();
    weights.set_name(WeightsName(part));
    weights.mutable_host_path()->set_path(group.volume.node_paths[part]);
  }
  if (!group.volume.cache_claim.empty()) {
    k8s::v1::Volume& repacked = *pod.add_volumes();
    repacked.set_name("repacked");
    repacked.mutable_persistent_volume_claim()->set_claim_name(group.volume.cache_claim);
  }
  if (!LinksGpus(group.spec)) return;
  k8s::v1::Volume& shared = *pod.add_volumes();
  shared.set_name("shared-memory");
  shared.mutable_empty_dir()->set_medium("Memory");
  shared.mutable_empty_dir()->set_size_limit(MibQuantity(SharedMemoryMib(group.spec)));
}

k8s::v1::NodeSelectorTerm& RequiredTerm(k8s::v1::PodSpec& pod) {
  auto& terms = *pod.mutable_affinity()->mutable_node_affinity()->mutable_required();
  return terms.node_selector_terms().empty() ? *terms.add_node_selector_terms()
                                             : *terms.mutable_node_selector_terms(0);
}

void AddHosts(const std::vector<std::string>& nodes, k8s::v1::NodeSelectorTerm& term) {
  k8s::v1::NodeRequirement& elsewhere = *term.add_match_expressions();
  elsewhere.set_key(kHostnameLabel);
  elsewhere.set_operator_("NotIn");
  for (const std::string& node : nodes) elsewhere.add_values(node);
}

void KeepOffSmallNodes(const GroupPlan& group, k8s::v1::PodSpec& pod) {
  if (group.small_nodes.empty()) return;
  std::vector<std::string> nodes;
  for (const auto& [node, mib] : group.small_nodes) nodes.push_back(node);
  AddHosts(nodes, RequiredTerm(pod));
}

// What decides where the next pod goes and is no reason to replace one: not part of the hash.
void AddPlacement(const Observed& observed, const GroupPlan& group, k8s::v1::PodTemplate& pod) {
  const auto& labels = observed.model.metadata().labels();
  if (const auto queue = labels.find(kQueueLabel); queue != labels.end()) {
    KeepOffSmallNodes(group, *pod.mutable_spec());
    auto& metadata = *pod.mutable_metadata();
    (*metadata.mutable_labels())[kQueueLabel] = queue->second;
    (*metadata.mutable_labels())["kueue.x-k8s.io/pod-group-name"] = group.name;
    (*metadata.mutable_annotations())["kueue.x-k8s.io/pod-group-total-count"] =
        absl::StrCat(group.pod_count);
    return;
  }
  if (IsGated(group)) {
    pod.mutable_spec()->add_scheduling_gates()->set_name(kPlacementGate);
    return;
  }
  KeepOffSmallNodes(group, *pod.mutable_spec());
  // A wish, not a demand: on a cluster of one node, a single pod that was killed twice must come
  // back.
  const auto avoid = [&](const std::vector<std::string>& nodes, int32_t weight) {
    if (nodes.empty()) return;
    auto& rather =
        *pod.mutable_spec()->mutable_affinity()->mutable_node_affinity()->add_preferred();
    rather.set_weight(weight);
    AddHosts(nodes, *rather.mutable_preference());
  };
  avoid(group.excluded_nodes, 100);
  avoid(group.suspect_nodes, 50);
}

void FillPod(const Observed& observed, const GroupPlan& group, k8s::v1::PodSpec& pod) {
  FillContainer(observed, group, *pod.add_containers());
  AddVolumes(group, pod);
  for (const auto& claim : group.spec.resources().claims()) {
    k8s::v1::PodResourceClaim& wanted = *pod.add_resource_claims();
    wanted.set_name(claim.name());
    wanted.set_resource_claim_template_name(claim.template_());
  }
  *pod.mutable_node_selector() = group.spec.placement().node_selector();
  const auto& jurisdictions = group.spec.placement().jurisdictions();
  if (!jurisdictions.empty()) {
    k8s::v1::NodeRequirement& within = *RequiredTerm(pod).add_match_expressions();
    within.set_key(kJurisdictionLabel);
    within.set_operator_("In");
    for (const std::string& country : jurisdictions) within.add_values(country);
  }
  if (group.spec.device() == "gpu") {
    k8s::v1::Toleration& toleration = *pod.add_tolerations();
    toleration.set_key(kGpuTaint);
    toleration.set_operator_("Exists");
    toleration.set_effect("NoSchedule");
    pod.set_runtime_class_name(observed.settings.gpu_runtime_class);
  }
  pod.set_automount_service_account_token(false);
  pod.set_enable_service_links(false);
  pod.set_termination_grace_period_seconds(kTerminationSeconds);
  k8s::v1::PodSecurityContext& security = *pod.mutable_security_context();
  security.set_run_as_non_root(true);
  security.set_run_as_user(kUser);
  security.set_run_as_group(kUser);
  security.set_fs_group(kUser);
  security.mutable_seccomp_profile()->set_type("RuntimeDefault");
  // At every mount the kubelet would open the worker's own folder to the group, and the worker does
  // not trust a folder that others may write to.
  if (!group.volume.cache_claim.empty()) security.set_fs_group_change_policy("OnRootMismatch");
}

void FillStatefulSet(const Observed& observed, const GroupPlan& group, k8s::v1::StatefulSet& set) {
  set.set_api_version("apps/v1");
  set.set_kind("StatefulSet");
  FillMetadata(observed, group, *set.mutable_metadata());
  k8s::v1::StatefulSetSpec& spec = *set.mutable_spec();
  spec.set_replicas(group.pod_count);
  spec.set_service_name(group.name);
  spec.set_pod_management_policy("Parallel");
  // The plan says which pod goes when: the leader first, so that what runs is finished.
  spec.mutable_update_strategy()->set_type("OnDelete");
  auto& match = *spec.mutable_selector()->mutable_match_labels();
  match["app.kubernetes.io/name"] = "rempart";
  match[kModelLabel] = observed.model.metadata().name();
  match[kGroupLabel] = group.name;
  *spec.mutable_template_()->mutable_metadata()->mutable_labels() = set.metadata().labels();
  FillPod(observed, group, *spec.mutable_template_()->mutable_spec());
}

template <typename Rule>
void AddPolicyPort(Rule& rule, int32_t port, const char* protocol) {
  k8s::v1::PolicyPort& one = *rule.add_ports();
  one.set_port(port);
  one.set_protocol(protocol);
}

void FillSystemPeer(const Observed& observed, const char* component, k8s::v1::PolicyPeer& peer) {
  (*peer.mutable_namespace_selector()->mutable_match_labels())["kubernetes.io/metadata.name"] =
      observed.settings.system_namespace;
  auto& labels = *peer.mutable_pod_selector()->mutable_match_labels();
  labels["app.kubernetes.io/name"] = "rempart";
  labels["app.kubernetes.io/component"] = component;
}

// Closes all that the pods of the group do not need: routers dial the leader (7070), pods of this
// group dial each other (7070, 7071; where a stage has GPUs in several NCCL too, on ports that the
// system gives), and all dial the operator (7080) and DNS.
k8s::v1::NetworkPolicy MakeNetworkPolicy(const Observed& observed, const GroupPlan& group) {
  k8s::v1::NetworkPolicy policy;
  policy.set_api_version("networking.k8s.io/v1");
  policy.set_kind("NetworkPolicy");
  FillMetadata(observed, group, *policy.mutable_metadata());
  k8s::v1::NetworkPolicySpec& spec = *policy.mutable_spec();
  k8s::v1::LabelSelector members;
  (*members.mutable_match_labels())[kModelLabel] = observed.model.metadata().name();
  (*members.mutable_match_labels())[kGroupLabel] = group.name;
  *spec.mutable_pod_selector() = members;
  spec.add_policy_types("Ingress");
  spec.add_policy_types("Egress");

  k8s::v1::IngressRule& requests = *spec.add_ingress();
  AddPolicyPort(requests, kAttachPort, "TCP");
  FillSystemPeer(observed, "router", *requests.add_from());
  k8s::v1::IngressRule& links = *spec.add_ingress();
  AddPolicyPort(links, kAttachPort, "TCP");
  AddPolicyPort(links, kDataPort, "TCP");
  *links.add_from()->mutable_pod_selector() = members;

  k8s::v1::EgressRule& peers = *spec.add_egress();
  AddPolicyPort(peers, kAttachPort, "TCP");
  AddPolicyPort(peers, kDataPort, "TCP");
  *peers.add_to()->mutable_pod_selector() = members;
  if (LinksGpus(group.spec) && group.config.tensor_parallel() > group.ranks_per_pod) {
    *spec.add_ingress()->add_from()->mutable_pod_selector() = members;
    *spec.add_egress()->add_to()->mutable_pod_selector() = members;
  }
  k8s::v1::EgressRule& control = *spec.add_egress();
  AddPolicyPort(control, kControlPort, "TCP");
  FillSystemPeer(observed, "operator", *control.add_to());
  k8s::v1::EgressRule& names = *spec.add_egress();
  AddPolicyPort(names, kDnsPort, "UDP");
  AddPolicyPort(names, kDnsPort, "TCP");
  return policy;
}

}  // namespace

std::string PodSelector(const Model& model) {
  return absl::StrCat(kModelLabel, "=", model.metadata().name());
}

bool IsGated(const GroupPlan& group) { return group.pod_count > 1; }

std::string LastGoodName(const Model& model) {
  return absl::StrCat(model.metadata().name(), "-last-good");
}

k8s::v1::PodDisruptionBudget MakeDisruptionBudget(const Model& model) {
  k8s::v1::PodDisruptionBudget budget;
  budget.set_api_version("policy/v1");
  budget.set_kind("PodDisruptionBudget");
  FillOwned(model, model.metadata().name(), *budget.mutable_metadata());
  budget.mutable_spec()->set_max_unavailable(0);
  (*budget.mutable_spec()->mutable_selector()->mutable_match_labels())[kModelLabel] =
      model.metadata().name();
  return budget;
}

k8s::v1::ConfigMap MakeLastGoodRecord(const Model& model, const LastGood& last_good) {
  k8s::v1::ConfigMap record;
  record.set_api_version("v1");
  record.set_kind("ConfigMap");
  FillOwned(model, LastGoodName(model), *record.mutable_metadata());
  (*record.mutable_data())["revision"] = last_good.revision;
  (*record.mutable_data())["spec.json"] = Json(last_good.spec);
  return record;
}

std::optional<LastGood> ReadLastGoodRecord(const k8s::v1::ConfigMap& record) {
  const auto revision = record.data().find("revision");
  const auto spec = record.data().find("spec.json");
  if (revision == record.data().end() || spec == record.data().end()) return std::nullopt;
  LastGood last_good;
  last_good.revision = revision->second;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto parsed =
      google::protobuf::util::JsonStringToMessage(spec->second, &last_good.spec, options);
  if (!parsed.ok()) return std::nullopt;
  return last_good;
}

std::string TemplateHash(const Observed& observed, const GroupPlan& named) {
  // Groups of one configuration share its hash.
  GroupPlan group = named;
  group.name = "group";
  group.config.clear_group_name();
  group.config.clear_config_hash();
  k8s::v1::StatefulSet set;
  FillStatefulSet(observed, group, set);
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    group.config.SerializeToCodedStream(&coded);
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
  (*objects.config_map.mutable_data())["worker.json"] = Json(group.config);

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
  AddPlacement(observed, group, *objects.stateful_set.mutable_spec()->mutable_template_());
  if (group.pod_count > 1 && observed.settings.network_policies) {
    objects.network_policy = MakeNetworkPolicy(observed, group);
  }
  return objects;
}

}  // namespace rempart::op
