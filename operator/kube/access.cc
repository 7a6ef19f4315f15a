// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/access.h"

#include <yaml-cpp/yaml.h>

#include <cstdlib>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace rempart::op {
namespace {

constexpr char kServiceAccount[] = "/var/run/secrets/kubernetes.io/serviceaccount/";

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string Text(const YAML::Node& node) { return node && node.IsScalar() ? node.Scalar() : ""; }

// The entry of a list of {name, <what>} with this name.
YAML::Node Named(const YAML::Node& list, const std::string& name, const char* what) {
  for (const YAML::Node& entry : list) {
    if (Text(entry["name"]) == name) return entry[what];
  }
  return YAML::Node(YAML::NodeType::Undefined);
}

// `field` names a file, relative to the kubeconfig; `field`-data holds the base64 of the text.
absl::StatusOr<PemSource> ReadPem(const YAML::Node& node, const std::string& field,
                                  const std::filesystem::path& folder) {
  PemSource source;
  const std::string data = Text(node[field + "-data"]);
  if (!data.empty() && !absl::Base64Unescape(data, &source.text)) {
    return absl::InvalidArgumentError(absl::StrCat(field, "-data is not base64"));
  }
  const std::string file = Text(node[field]);
  if (data.empty() && !file.empty()) source.file = (folder / file).string();
  return source;
}

absl::StatusOr<ClusterAccess> ReadContext(const YAML::Node& config,
                                          const std::filesystem::path& folder) {
  const std::string context_name = Text(config["current-context"]);
  const YAML::Node context = Named(config["contexts"], context_name, "context");
  if (!context) {
    return absl::InvalidArgumentError(
        absl::StrCat("current-context \"", context_name, "\" is not among its contexts"));
  }
  const YAML::Node cluster = Named(config["clusters"], Text(context["cluster"]), "cluster");
  const YAML::Node user = Named(config["users"], Text(context["user"]), "user");
  if (!cluster || Text(cluster["server"]).empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cluster \"", Text(context["cluster"]), "\" has no server"));
  }
  ClusterAccess access;
  access.server = std::string(absl::StripSuffix(Text(cluster["server"]), "/"));
  ASSIGN_OR_RETURN(access.authority, ReadPem(cluster, "certificate-authority", folder));
  if (!user) return access;
  if (user["exec"] || user["auth-provider"] || user["password"]) {
    return absl::InvalidArgumentError(
        absl::StrCat("user \"", Text(context["user"]),
                     "\" logs in by a plugin or a password: use a certificate or a token"));
  }
  ASSIGN_OR_RETURN(access.certificate, ReadPem(user, "client-certificate", folder));
  ASSIGN_OR_RETURN(access.key, ReadPem(user, "client-key", folder));
  access.token = Text(user["token"]);
  if (const std::string file = Text(user["tokenFile"]); !file.empty()) {
    access.token_file = (folder / file).string();
  }
  return access;
}

}  // namespace

absl::StatusOr<ClusterAccess> AccessFromPod() {
  const std::string host = Environment("KUBERNETES_SERVICE_HOST");
  const std::string port = Environment("KUBERNETES_SERVICE_PORT");
  if (host.empty() || port.empty()) {
    return absl::NotFoundError(
        "KUBERNETES_SERVICE_HOST is not set: this process does not run in a pod; name a "
        "kubeconfig by --kubeconfig or $KUBECONFIG");
  }
  ClusterAccess access;
  const bool is_v6 = absl::StrContains(host, ':');
  access.server = absl::StrCat("https://", is_v6 ? "[" : "", host, is_v6 ? "]" : "", ":", port);
  access.authority.file = absl::StrCat(kServiceAccount, "ca.crt");
  access.token_file = absl::StrCat(kServiceAccount, "token");
  return access;
}

absl::StatusOr<ClusterAccess> AccessFromKubeconfig(const std::string& path) {
  // yaml-cpp throws; its exceptions end here.
  try {
    const YAML::Node config = YAML::LoadFile(path);
    if (!config.IsMap()) {
      return absl::InvalidArgumentError(absl::StrCat("kubeconfig ", path, " is not a mapping"));
    }
    absl::StatusOr<ClusterAccess> access =
        ReadContext(config, std::filesystem::path(path).parent_path());
    if (access.ok()) return access;
    return absl::InvalidArgumentError(
        absl::StrCat("kubeconfig ", path, ": ", access.status().message()));
  } catch (const YAML::BadFile&) {
    return absl::NotFoundError(absl::StrCat("cannot read kubeconfig ", path));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("kubeconfig ", path, ": ", error.what()));
  }
}

absl::StatusOr<ClusterAccess> FindAccess(const std::string& kubeconfig) {
  if (!kubeconfig.empty()) return AccessFromKubeconfig(kubeconfig);
  const std::string environment = Environment("KUBECONFIG");
  return environment.empty() ? AccessFromPod() : AccessFromKubeconfig(environment);
}

}  // namespace rempart::op
