// SPDX-License-Identifier: Apache-2.0
// rempart-worker --config FILE
// rempart-worker probe --address HOST:PORT ready|live
// rempart-worker strike ...: what a drill does to a node
// rempart-worker perplexity MODEL FILE: how well a model predicts a text
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/log.h"
#include "common/signals.h"
#include "common/status_macros.h"
#include "worker/api/health_server.h"
#include "worker/api/load_model.h"
#include "worker/api/perplexity.h"
#include "worker/api/worker_process.h"
#include "worker/comm/nccl_environment.h"
#include "worker/comm/nccl_library.h"
#include "worker/comm/one_shot.h"
#include "worker/config/worker_config.h"
#include "worker/device/gpu.h"
#include "worker/model/file_pages.h"
#include "worker/strike/strike.h"

namespace rempart::worker {
namespace {

constexpr char kUsage[] =
    "usage: rempart-worker --config FILE\n"
    "       rempart-worker probe --address HOST:PORT ready|live\n"
    "       rempart-worker strike kill ID | freeze SECONDS ID | cut SECONDS [NETWORK...]\n"
    "       rempart-worker perplexity MODEL FILE [--context 512] [--chunks N] [--threads N]\n"
    "                      [--kernel-tier NAME] [--kv-cache-type TYPE] [--exact]\n"
    "                      [--divergence]\n"
    "FILE is JSON as proto/worker/v1/config.proto describes it. `rempart drill` uses strike.\n"
    "Exit status: 0 ended as asked, 1 failed while running, 2 wrong flags or configuration,\n"
    "3 no valid model, or it cannot be read any more, 4 not enough memory, 5 address in use\n"
    "or not permitted, 6 no GPU to compute on.\n";

int RunProbe(const std::vector<std::string>& arguments) {
  if (arguments.size() != 4 || arguments[1] != "--address" ||
      (arguments[3] != "ready" && arguments[3] != "live")) {
    std::cerr << kUsage;
    return kExitConfig;
  }
  const absl::Status status = Probe(arguments[2], arguments[3], absl::Seconds(3));
  if (status.ok()) return kExitOk;
  std::cerr << "rempart-worker: " << status.message() << "\n";
  return kExitRuntime;
}

int RunOneStrike(const std::vector<std::string>& words) {
  const absl::StatusOr<Strike> strike = ParseStrike(words);
  if (!strike.ok()) {
    std::cerr << "rempart-worker: strike: " << strike.status().message() << "\n";
    return kExitConfig;
  }
  BlockEndSignals();
  const absl::Status status = RunStrike(*strike);
  if (status.ok()) return kExitOk;
  std::cerr << "rempart-worker: strike: " << status.message() << "\n";
  return kExitRuntime;
}

// While there is one thread: what NCCL will read when it is loaded.
absl::Status PrepareForNccl(const WorkerSettings& settings) {
  if (settings.device != DeviceKind::kGpu || settings.tensor_parallel == 1) return absl::OkStatus();
  SetNcclVariables(settings.nccl);
  RETURN_IF_ERROR(CheckNcclSettings(ReadNcclSettings()));
  TurnOffNcclPlugins();
  if (const std::string why = WhyNoRdma("/dev/infiniband", RaiseLockedMemory()); !why.empty()) {
    LogWarning("worker", why);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CollectiveLibrary>> LoadCollectives() {
  ASSIGN_OR_RETURN(std::unique_ptr<CollectiveLibrary> nccl, Nccl::Load(""));
  // Whoever forbids NCCL to let GPUs read each other's memory does not want us to, either.
  if (const char* const off = std::getenv("NCCL_P2P_DISABLE"); off != nullptr && *off == '1') {
    return nccl;
  }
  return std::make_unique<OneShot>(std::move(nccl));
}

int Run(const std::string& config) {
  const absl::StatusOr<WorkerSettings> settings = ReadWorkerSettings(config);
  if (!settings.ok()) {
    std::cerr << "rempart-worker: " << settings.status().message() << "\n";
    return kExitConfig;
  }
  if (const absl::Status linked = PrepareForNccl(*settings); !linked.ok()) {
    std::cerr << "rempart-worker: " << linked.message() << "\n";
    return kExitConfig;
  }
  EndOnUnreadablePages(kExitModel);
  // Signals go to one thread, which may take locks.
  const sigset_t signals = BlockEndSignals();
  static StopRequest stop;  // outlives the thread below, which nobody joins
  std::thread([signals] {
    for (;;) {
      int number = 0;
      if (sigwait(&signals, &number) != 0) continue;
      if (stop.Signal() == AfterSignal::kWait) continue;
      LogInfo("worker", "stopped while loading");
      _exit(kExitOk);
    }
  }).detach();
  const ModelLoader load = [](const WorkerSettings& wanted, WorkerStatus& status) {
    return LoadModelFile(wanted, OpenGpu, LoadCollectives, status);
  };
  return RunWorker(
      *settings, load, stop,
      {.find = FindGpuAddresses, .end_process = [](int exit_code) { _exit(exit_code); }});
}

int Main(const std::vector<std::string>& arguments) {
  if (!arguments.empty() && arguments[0] == "probe") return RunProbe(arguments);
  if (!arguments.empty() && arguments[0] == "strike") {
    return RunOneStrike({arguments.begin() + 1, arguments.end()});
  }
  if (!arguments.empty() && arguments[0] == "perplexity") {
    EndOnUnreadablePages(kExitModel);
    return RunPerplexity({arguments.begin() + 1, arguments.end()});
  }
  if (arguments.size() == 1 && (arguments[0] == "--help" || arguments[0] == "-h")) {
    std::cout << kUsage;
    return kExitOk;
  }
  if (arguments.size() == 2 && arguments[0] == "--config") return Run(arguments[1]);
  std::cerr << kUsage;
  return kExitConfig;
}

}  // namespace
}  // namespace rempart::worker

int main(int argc, char** argv) {
  return rempart::worker::Main(std::vector<std::string>(argv + 1, argv + argc));
}
