// SPDX-License-Identifier: Apache-2.0
// What /metrics shows, as a function of the engine's figures. Names: rempart_worker_*.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/api/worker_status.h"
#include "worker/device/gpu_health.h"
#include "worker/engine/engine.h"
#include "worker/group/rank_progress.h"

namespace rempart::worker {

// What does not change once the model is loaded.
struct WorkerFacts {
  std::string model_name = {};
  std::string group_name = {};
  std::string version = {};
  std::string kernel_tier = {};
  int32_t threads = 0;  // 0: not loaded yet
};

// Prometheus text format 0.0.4. Without GPUs there are no metrics of them.
std::string MetricsText(const EngineLoad& load, const StatusSnapshot& status,
                        const WorkerFacts& facts, const std::vector<RankStatus>& ranks,
                        const GpuSnapshot& gpus);

}  // namespace rempart::worker
