// SPDX-License-Identifier: Apache-2.0
// NCCL's environment. NCCL reads some hundred variables, and files that set them: some load code,
// some name files or secrets, some make a group hang. A worker takes those on a list and refuses to
// start with any other (common/nccl_variables.h).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace rempart::worker {

// "NAME=value" entries, and where they are from: "the environment", "/etc/nccl.conf".
struct NcclSettingsSource {
  std::string name;
  std::vector<std::string> entries;
};

// FailedPrecondition names each variable that begins with NCCL_ and is not on the list, where it
// is set, and the list. Pure.
absl::Status CheckNcclSettings(const std::vector<NcclSettingsSource>& sources);

// The environment of this process and the files that NCCL would read.
std::vector<NcclSettingsSource> ReadNcclSettings();

// What the worker's configuration says; it has been checked (common/nccl_variables.h). It goes
// before the environment. Before there are other threads, and before NCCL is loaded.
void SetNcclVariables(const std::map<std::string, std::string>& variables);

// Of the memory that this process may lock, after its soft limit was raised to the hard one.
uint64_t RaiseLockedMemory();
// Why NCCL will leave the network cards for RDMA alone and take sockets, which it does without a
// word, and what to do; empty: nothing is known to be in the way. A card needs memory that is
// locked. The capability IPC_LOCK would not help: a process that is not root does not get it.
// `devices`: the folder of the cards, which is there when the pod has been given some.
std::string WhyNoRdma(const std::string& devices, uint64_t locked_bytes);

// Turns off every kind of plug-in, also those that NCCL looks for unasked. Before there are other
// threads, and before NCCL is loaded.
void TurnOffNcclPlugins();

}  // namespace rempart::worker
