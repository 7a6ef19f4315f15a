// SPDX-License-Identifier: Apache-2.0
// The words of `rempart drill`, checked: nothing is broken that was not named twice.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace rempart::cli {

struct DrillOptions {
  enum class Kind { kKillRank, kFreezeRank, kCutNode, kDrainNode };
  Kind kind = Kind::kKillRank;
  std::string ns = "default";
  std::string model;
  int group = 0;
  int rank = -1;    // -1: of the last pod
  std::string url;  // of the router, without "/v1"
  std::string api_key_file;
  int clients = 3;
  // How long a freeze, a cut or a cordon lasts; a killed rank is dead at once.
  int seconds = 30;
  // How long to wait for the group to serve again.
  int timeout_seconds = 240;
  std::string kubeconfig;        // empty: $KUBECONFIG, or the pod this runs in
  std::string helper_namespace;  // empty: that of the Model
};

inline constexpr char kDrillUsage[] =
    "  rempart drill kill-rank|freeze-rank|cut-node|drain-node --model NAME [-n NAMESPACE]\n"
    "                --url http://ROUTER/v1 [--api-key-file FILE] [--group I] [--rank R]\n"
    "                [--clients N] [--seconds S] [--timeout S] [--kubeconfig FILE]\n"
    "                [--helper-namespace NAMESPACE] --confirm NAMESPACE/NAME\n"
    "                                 break a live group under load and store what it cost\n";

// From the words after "drill". InvalidArgument names the flag and what it must be.
absl::StatusOr<DrillOptions> ParseDrillOptions(const std::vector<std::string>& words);

// "kill-rank".
std::string DrillName(DrillOptions::Kind kind);

}  // namespace rempart::cli
