// SPDX-License-Identifier: Apache-2.0
// `rempart drill`: breaks one member of a live group, or its node, under a load of its own; watches
// what the Model's status says and what clients get; mends what it broke; stores a report in the
// cluster. It uses the rights of the kubeconfig alone: to read Models, pods and nodes, and either
// to make a pod with access to its node's processes or network, or to cordon a node.
#pragma once

#include <stop_token>

#include "cli/drill/options.h"

namespace rempart::cli {

// The exit status: 0 all held, 1 something did not, or the drill could not be done; 2 a wrong flag.
// A stop mends and ends early, without a report.
int RunDrill(const DrillOptions& options, std::stop_token stop);

}  // namespace rempart::cli
