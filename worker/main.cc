// SPDX-License-Identifier: Apache-2.0
// rempart-worker --config FILE
// rempart-worker probe --address HOST:PORT ready|live
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "common/log.h"
#include "worker/api/health_server.h"
#include "worker/api/load_model.h"
#include "worker/api/worker_process.h"
#include "worker/config/worker_config.h"

namespace rempart::worker {
namespace {

constexpr char kUsage[] =
    "usage: rempart-worker --config FILE\n"
    "       rempart-worker probe --address HOST:PORT ready|live\n"
    "FILE is JSON as proto/worker/v1/config.proto describes it.\n"
    "Exit status: 0 ended as asked, 1 failed while running, 2 wrong flags or configuration,\n"
    "3 no valid model, 4 not enough memory, 5 address in use or not permitted.\n";

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

int Run(const std::string& config) {
  const absl::StatusOr<WorkerSettings> settings = ReadWorkerSettings(config);
  if (!settings.ok()) {
    std::cerr << "rempart-worker: " << settings.status().message() << "\n";
    return kExitConfig;
  }
  // Signals go to one thread, which may take locks. Blocked before any other thread starts.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
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
  return RunWorker(*settings, LoadModelFile, stop);
}

int Main(const std::vector<std::string>& arguments) {
  if (!arguments.empty() && arguments[0] == "probe") return RunProbe(arguments);
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
