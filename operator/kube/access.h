// SPDX-License-Identifier: Apache-2.0
// Where the API server is and how this process proves who it is: a pod's service account, or a
// kubeconfig. Files are re-read when used, because mounted tokens and authorities rotate.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace rempart::op {

// A PEM text, or the file that holds it.
struct PemSource {
  std::string file;
  std::string text;
};

struct ClusterAccess {
  std::string server;  // "https://10.96.0.1:443", without a slash at the end
  PemSource authority;
  PemSource certificate;
  PemSource key;
  std::string token;
  std::string token_file;
};

// NotFound when this process does not run in a pod.
absl::StatusOr<ClusterAccess> AccessFromPod();
// The current context of a kubeconfig. InvalidArgument names what is missing; exec plugins and
// passwords are not supported.
absl::StatusOr<ClusterAccess> AccessFromKubeconfig(const std::string& path);
// `kubeconfig` if not empty, else $KUBECONFIG, else the pod.
absl::StatusOr<ClusterAccess> FindAccess(const std::string& kubeconfig);

}  // namespace rempart::op
