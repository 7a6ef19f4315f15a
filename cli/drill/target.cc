// SPDX-License-Identifier: Apache-2.0
#include "cli/drill/target.h"

#include <simdjson.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/substitute.h"
#include "operator/plan/plan.h"

namespace rempart::cli {
namespace {

// 0: the helper's name, 1: namespace, 2: drill, 3: owner, 4: node, 5: which of the node's
// namespaces it is in, 6: image, 7: pull policy, 8: command, 9: rights.
constexpr char kHelper[] = R"({
  "apiVersion": "v1", "kind": "Pod",
  "metadata": {
    "name": "$0", "namespace": "$1",
    "labels": {"app.kubernetes.io/name": "rempart", "app.kubernetes.io/component": "drill",
               "rempart.dev/drill": "$2"}$3
  },
  "spec": {
    "nodeName": "$4", $5, "restartPolicy": "Never", "automountServiceAccountToken": false,
    "enableServiceLinks": false, "activeDeadlineSeconds": 900, "terminationGracePeriodSeconds": 10,
    "tolerations": [{"operator": "Exists"}],
    "containers": [{
      "name": "strike", "image": "$6", "imagePullPolicy": "$7", "command": [$8],
      "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
      "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                          "seccompProfile": {"type": "RuntimeDefault"}, $9},
      "terminationMessagePolicy": "FallbackToLogsOnError"
    }]
  }
})";
// The user that workers run as may signal them; more it need not be.
constexpr char kSignalRights[] =
    R"("runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "capabilities": {"drop": ["ALL"]})";
// Capabilities are root's; of these it has one.
constexpr char kNetworkRights[] =
    R"("runAsUser": 0, "runAsGroup": 0, "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]})";

int PodIndex(const k8s::v1::Pod& pod) {
  const std::string& name = pod.metadata().name();
  int index = -1;
  return absl::SimpleAtoi(name.substr(name.rfind('-') + 1), &index) ? index : -1;
}

absl::Status CheckServes(const DrillOptions& options, const serving::v1alpha1::Model& model,
                         const std::string& group_name) {
  for (const auto& group : model.status().groups()) {
    if (group.name() != group_name) continue;
    if (group.phase() == "Ready") return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("group ", group_name, " is ", group.phase(),
                     ", not Ready: a drill breaks what serves. See kubectl -n ", options.ns,
                     " describe model ", options.model));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("model ", options.ns, "/", options.model, " has no group ", options.group,
                   "; --group is from 0 to ", std::max(model.status().groups_size() - 1, 0)));
}

std::string CommandOf(const DrillOptions& options, const DrillTarget& target) {
  std::vector<std::string> words = {"/rempart-worker", "strike"};
  const std::string seconds = absl::StrCat(options.seconds);
  switch (options.kind) {
    case DrillOptions::Kind::kKillRank:
      words.insert(words.end(), {"kill", target.container_id});
      break;
    case DrillOptions::Kind::kFreezeRank:
      words.insert(words.end(), {"freeze", seconds, target.container_id});
      break;
    case DrillOptions::Kind::kCutNode:
      words.insert(words.end(), {"cut", seconds});
      words.insert(words.end(), target.node_networks.begin(), target.node_networks.end());
      break;
    case DrillOptions::Kind::kDrainNode:
      break;
  }
  return absl::StrJoin(words, ", ", [](std::string* out, const std::string& word) {
    absl::StrAppend(out, "\"", word, "\"");
  });
}

}  // namespace

absl::StatusOr<DrillTarget> ChooseTarget(const DrillOptions& options,
                                         const serving::v1alpha1::Model& model,
                                         const std::vector<k8s::v1::Pod>& pods) {
  const std::string group_name = absl::StrCat(options.model, "-", options.group);
  if (absl::Status serves = CheckServes(options, model, group_name); !serves.ok()) return serves;
  const int ranks_per_pod = op::RanksPerPod(model.spec());
  const k8s::v1::Pod* chosen = nullptr;
  int count = 0;
  for (const k8s::v1::Pod& pod : pods) {
    const auto group = pod.metadata().labels().find("rempart.dev/group");
    if (group == pod.metadata().labels().end() || group->second != group_name) continue;
    ++count;
    const bool is_wanted = options.rank < 0 ? chosen == nullptr || PodIndex(pod) > PodIndex(*chosen)
                                            : PodIndex(pod) == options.rank / ranks_per_pod;
    if (is_wanted) chosen = &pod;
  }
  if (chosen == nullptr || chosen->spec().node_name().empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("group ", group_name, " has ", count, " pods of ", ranks_per_pod,
                     " ranks, and none on a node with rank ", options.rank));
  }
  DrillTarget target;
  target.pod = chosen->metadata().name();
  target.node = chosen->spec().node_name();
  target.model_uid = model.metadata().uid();
  target.image = chosen->spec().containers(0).image();
  target.pull_policy = chosen->spec().containers(0).image_pull_policy();
  return target;
}

absl::Status AddFacts(const std::string& pod_json, const std::string& node_json,
                      DrillTarget& target) {
  simdjson::dom::parser parser;
  simdjson::dom::element pod;
  if (parser.parse(pod_json).get(pod) != simdjson::SUCCESS) {
    return absl::InternalError("the API server's answer is no JSON");
  }
  std::string_view id;
  if (pod.at_pointer("/status/containerStatuses/0/containerID").get(id) != simdjson::SUCCESS ||
      id.find("://") == std::string_view::npos) {
    return absl::FailedPreconditionError(
        absl::StrCat("pod ", target.pod, " has no container that runs"));
  }
  target.container_id = std::string(id.substr(id.find("://") + 3));
  simdjson::dom::element node;
  simdjson::dom::array networks;
  if (parser.parse(node_json).get(node) != simdjson::SUCCESS) {
    return absl::InternalError("the API server's answer is no JSON");
  }
  if (node.at_pointer("/spec/podCIDRs").get(networks) != simdjson::SUCCESS) {
    return absl::OkStatus();  // an address plan of its own: its pods are cut off, too
  }
  for (const simdjson::dom::element network : networks) {
    std::string_view text;
    if (network.get(text) == simdjson::SUCCESS) target.node_networks.emplace_back(text);
  }
  return absl::OkStatus();
}

std::string HelperManifest(const DrillOptions& options, const DrillTarget& target,
                           const std::string& name) {
  const bool cuts = options.kind == DrillOptions::Kind::kCutNode;
  // Owners are of one's own namespace.
  const std::string owner =
      options.helper_namespace != options.ns
          ? ""
          : absl::Substitute(R"(, "ownerReferences": [{"apiVersion": "serving.rempart.dev/v1alpha1",
      "kind": "Model", "name": "$0", "uid": "$1"}])",
                             options.model, target.model_uid);
  return absl::Substitute(kHelper, name, options.helper_namespace, DrillName(options.kind), owner,
                          target.node, cuts ? R"("hostNetwork": true)" : R"("hostPID": true)",
                          target.image, target.pull_policy, CommandOf(options, target),
                          cuts ? kNetworkRights : kSignalRights);
}

}  // namespace rempart::cli
