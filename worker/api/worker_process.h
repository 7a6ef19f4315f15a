// SPDX-License-Identifier: Apache-2.0
// One worker process from start to exit: opens its doors, takes part in one epoch of its group
// after the other (worker/api/epoch_run.h), drains. A group of one pod needs nobody's word for its
// epoch. The order matters: ports are taken before gigabytes are read, and the operator hears of a
// failure before the process ends.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "common/exit_code.h"
#include "common/mutex.h"
#include "worker/api/request_reader.h"
#include "worker/api/worker_status.h"
#include "worker/config/worker_config.h"
#include "worker/device/gpu_watch.h"
#include "worker/device/memory_limit.h"
#include "worker/engine/engine.h"
#include "worker/group/rank_model.h"

namespace rempart::worker {

// The exit status of a process that a ModelLoader's error (below) has ended.
int ExitCodeOf(const absl::Status& status);

// A model that can serve: computing, naming and encoding tokens.
struct LoadedModel {
  // Links the devices of the ranks in each epoch; null in a group of one rank, and on CPU. The
  // ranks hold memory of it.
  std::unique_ptr<CollectiveLibrary> collectives;
  std::vector<std::unique_ptr<RankModel>> ranks;  // of this pod
  std::unique_ptr<Vocabulary> vocabulary;
  std::unique_ptr<PromptEncoder> encoder;
  EngineOptions engine;
  std::string kernel_tier;
  int32_t threads = 0;  // that compute, of all ranks
  // What remains to be checked of the model's files while it serves; an error ends the process.
  // Cancelled when asked to stop. May be empty.
  std::function<absl::Status(std::stop_token stop)> check_later;
  int64_t layers = 0;
  int64_t hidden = 0;
};

// NotFound: no such file. InvalidArgument: not a valid model file. Unimplemented: an architecture
// that is not served. ResourceExhausted: not enough memory. FailedPrecondition: a setting that this
// model cannot honour. DeviceUnavailable (worker/device/device.h): no GPU to compute on. May call
// the status's setters.
using ModelLoader = std::function<absl::StatusOr<LoadedModel>(const WorkerSettings& settings,
                                                              WorkerStatus& status)>;

// What the one who asks a process to stop has left to do.
enum class AfterSignal {
  kWait,  // it drains and returns
  kExit,  // nothing is served yet and loading cannot be interrupted: end the process
};

// The request to stop, from a signal or a test. Any thread.
class StopRequest {
 public:
  // The first call asks to drain, the second to stop at once.
  AfterSignal Signal();
  // The worker loads its model between these two.
  void BeginLoad();
  void EndLoad();
  // 0, 1 or 2.
  int signals() const;
  // Returns when there are at least `signals`, or at `until`.
  void Wait(int signals, absl::Time until) const;

 private:
  mutable Mutex mu_;
  int signals_ ABSL_GUARDED_BY(mu_) = 0;
  bool loading_ ABSL_GUARDED_BY(mu_) = false;
};

// What a process with device: gpu watches its GPUs through. Without a finder nothing is watched.
struct GpuHost {
  GpuFinder find = {};
  std::string nvml_library = {};  // empty: the loader's path
  // Ends the process at once when a GPU is broken: taking down what is on it may never return.
  std::function<void(int exit_code)> end_process = {};
};

// How much memory this process may use, and uses.
using MemoryReader = std::function<MemoryUse()>;

// Runs to the end and returns the process's exit status; what went wrong has been logged.
int RunWorker(
    const WorkerSettings& settings, const ModelLoader& load, StopRequest& stop,
    const GpuHost& gpus = {}, const MemoryReader& read_memory = [] { return ReadMemoryUse(""); });

}  // namespace rempart::worker
