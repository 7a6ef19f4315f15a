// SPDX-License-Identifier: Apache-2.0
// The environment variables of NCCL that a site may set: what it needs to say of its network and
// its GPUs, and logs. NCCL reads some hundred more; some load code, some name files or secrets,
// some make a group hang.
#pragma once

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

namespace rempart {

inline constexpr std::array<absl::string_view, 34> kNcclVariables = {
    "NCCL_ALGO",
    "NCCL_BUFFSIZE",
    "NCCL_CROSS_NIC",
    "NCCL_CUMEM_ENABLE",
    "NCCL_CUMEM_HOST_ENABLE",
    "NCCL_DEBUG",
    "NCCL_DEBUG_SUBSYS",
    "NCCL_GRAPH_MIXING_SUPPORT",
    "NCCL_IB_ADDR_FAMILY",
    "NCCL_IB_AR_THRESHOLD",
    "NCCL_IB_DISABLE",
    "NCCL_IB_GID_INDEX",
    "NCCL_IB_HCA",
    "NCCL_IB_PCI_RELAXED_ORDERING",
    "NCCL_IB_QPS_PER_CONNECTION",
    "NCCL_IB_RETRY_CNT",
    "NCCL_IB_ROCE_VERSION_NUM",
    "NCCL_IB_SL",
    "NCCL_IB_TC",
    "NCCL_IB_TIMEOUT",
    "NCCL_MAX_CTAS",
    "NCCL_MIN_CTAS",
    "NCCL_MNNVL_ENABLE",
    "NCCL_MULTI_RANK_GPU_ENABLE",
    "NCCL_NET_GDR_LEVEL",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_PROTO",
    "NCCL_RUNTIME_CONNECT",
    "NCCL_SHM_DISABLE",
    "NCCL_SOCKET_FAMILY",
    "NCCL_SOCKET_IFNAME",
    "NCCL_WIN_ENABLE",
};

inline bool IsNcclVariable(absl::string_view name) {
  return std::find(kNcclVariables.begin(), kNcclVariables.end(), name) != kNcclVariables.end();
}

// "these may be set: NCCL_ALGO, ...".
inline std::string NcclVariablesInWords() {
  return absl::StrCat("these may be set: ", absl::StrJoin(kNcclVariables, ", "));
}

// What is wrong with a variable that somebody wants to set, and what to do; empty: nothing. The
// value is not told: it may be a secret.
inline std::string WhyNotSetNccl(absl::string_view name, absl::string_view value) {
  constexpr size_t kMaxLength = 256;
  if (!IsNcclVariable(name)) {
    return absl::StrCat(name, absl::EndsWith(name, "_PLUGIN") ? " would load code, and" : "",
                        " is none of NCCL's variables that may be set: remove it; ",
                        NcclVariablesInWords());
  }
  const bool is_printable = std::all_of(value.begin(), value.end(), [](char c) {
    return absl::ascii_isprint(static_cast<unsigned char>(c));
  });
  if (!value.empty() && value.size() <= kMaxLength && is_printable) return "";
  return absl::StrCat("the value of ", name, " must have 1 to ", kMaxLength,
                      " printable characters");
}

}  // namespace rempart
