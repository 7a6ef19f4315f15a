// SPDX-License-Identifier: Apache-2.0
// The phases of group/v1 Progress, as the operator's decisions know them.
#pragma once

namespace rempart::op {

enum class WorkerPhase {
  kUnknown,
  kStarting,
  kLoading,
  kWarmingUp,
  kReady,
  kDraining,
  kFailed,
  kConnecting,
  kLoaded,
};

}  // namespace rempart::op
