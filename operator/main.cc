// SPDX-License-Identifier: Apache-2.0
// rempart-operator: flags, signals, exit status.
#include <malloc.h>

#include <csignal>
#include <cstdio>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "common/health/health_server.h"
#include "common/log.h"
#include "common/signals.h"
#include "operator/kube/access.h"
#include "operator/kube/curl_transport.h"
#include "operator/reconcile/operator_process.h"

namespace rempart::op {
namespace {

constexpr char kDefaultHealthAddress[] = "127.0.0.1:9092";

struct Flag {
  absl::string_view name;
  absl::string_view help;
  std::string* value;
};

struct CommandLine {
  std::string name_space = "rempart";
  std::string identity = "rempart-operator";
  std::string listen = "127.0.0.1:7080";
  std::string control_address;
  std::string own_ip;
  std::string tls_dir;
  std::string health_address = kDefaultHealthAddress;
  std::string worker_image;
  std::string worker_pull_policy = "IfNotPresent";
  std::string allow_node_paths = "false";
  std::string network_policies = "true";
  std::string gpu_runtime_class;
  std::string router_url;
  std::string kubeconfig;

  std::vector<Flag> Flags() {
    return {
        {"namespace", "namespace of the lease and of the Secret rempart-worker-tls", &name_space},
        {"identity", "name of this replica, different from every other's", &identity},
        {"listen", "where workers (Join) and routers (Topology) dial: host:port or unix:/path",
         &listen},
        {"control-address", "the same, as worker pods reach it; empty: as --listen",
         &control_address},
        {"own-ip",
         "IP of this pod, told to workers that come to a replica that does not lead; empty: they "
         "find the leader by trying",
         &own_ip},
        {"tls-dir", "folder with ca.crt, tls.crt and tls.key; required outside loopback", &tls_dir},
        {"health-address", "where /healthz, /readyz and /metrics are served; empty: nowhere",
         &health_address},
        {"worker-image", "image of worker pods (required)", &worker_image},
        {"worker-pull-policy", "Always, IfNotPresent or Never", &worker_pull_policy},
        {"allow-node-paths", "true or false: whether spec.source.uri may be file:///path",
         &allow_node_paths},
        {"network-policies", "true or false: whether groups of several pods get a NetworkPolicy",
         &network_policies},
        {"gpu-runtime-class", "RuntimeClass of pods with device: gpu; empty: none",
         &gpu_runtime_class},
        {"router-url",
         "what status.url tells; empty: http://rempart.NAMESPACE.svc.cluster.local/v1",
         &router_url},
        {"kubeconfig", "file to use instead of $KUBECONFIG or the pod's service account",
         &kubeconfig},
    };
  }
};

void PrintHelp(CommandLine defaults) {
  std::printf(
      "rempart-operator turns Model resources into worker groups.\n\n"
      "  rempart-operator [FLAGS]\n"
      "  rempart-operator probe [--address HOST:PORT] ready|live\n\n"
      "Flags, each as --name=value:\n");
  for (const Flag& flag : defaults.Flags()) {
    std::printf("  --%-20s %s%s\n", std::string(flag.name).c_str(), std::string(flag.help).c_str(),
                flag.value->empty() ? "" : absl::StrCat(" (", *flag.value, ")").c_str());
  }
  std::printf(
      "\nExit status: 0 stopped, 1 failed (also: the lease was lost), 2 a wrong flag,\n"
      "5 an address is in use or not permitted.\n");
}

int Fail(const std::string& message) {
  std::fprintf(stderr, "rempart-operator: %s\n", message.c_str());
  return kExitConfig;
}

// The problem, or nothing.
std::string ParseFlags(const std::vector<std::string>& arguments, CommandLine& line) {
  for (const std::string& argument : arguments) {
    absl::string_view rest = argument;
    bool known = false;
    for (const Flag& flag : line.Flags()) {
      absl::string_view value = rest;
      if (!absl::ConsumePrefix(&value, absl::StrCat("--", flag.name, "="))) continue;
      *flag.value = std::string(value);
      known = true;
    }
    if (!known) {
      return absl::StrCat("\"", argument, "\" is not a flag of the form --name=value; try --help");
    }
  }
  if (line.worker_image.empty()) return "--worker-image is missing";
  if (line.allow_node_paths != "true" && line.allow_node_paths != "false") {
    return absl::StrCat("--allow-node-paths is \"", line.allow_node_paths,
                        "\": it must be true or false");
  }
  if (line.network_policies != "true" && line.network_policies != "false") {
    return absl::StrCat("--network-policies is \"", line.network_policies,
                        "\": it must be true or false");
  }
  for (const char* policy : {"Always", "IfNotPresent", "Never"}) {
    if (line.worker_pull_policy == policy) return "";
  }
  return absl::StrCat("--worker-pull-policy is \"", line.worker_pull_policy,
                      "\": it must be Always, IfNotPresent or Never");
}

// The port of --listen at the pod's own IP; empty when either is missing.
std::string OwnAddress(const CommandLine& line) {
  const size_t colon = line.listen.rfind(':');
  if (line.own_ip.empty() || absl::StartsWith(line.listen, "unix:") || colon == std::string::npos) {
    return "";
  }
  const bool is_v6 = absl::StrContains(line.own_ip, ':');
  return absl::StrCat(is_v6 ? "[" : "", line.own_ip, is_v6 ? "]" : "", line.listen.substr(colon));
}

OperatorOptions OptionsFrom(const CommandLine& line) {
  OperatorOptions options;
  options.own_namespace = line.name_space;
  options.identity = line.identity;
  options.listen_address = line.listen;
  options.own_address = OwnAddress(line);
  options.tls_dir = line.tls_dir;
  options.health_address = line.health_address;
  options.settings.worker_image = line.worker_image;
  options.settings.worker_pull_policy = line.worker_pull_policy;
  options.settings.control_address =
      line.control_address.empty() ? line.listen : line.control_address;
  options.settings.allow_node_paths = line.allow_node_paths == "true";
  options.settings.network_policies = line.network_policies == "true";
  options.settings.gpu_runtime_class = line.gpu_runtime_class;
  options.settings.system_namespace = line.name_space;
  options.settings.url = line.router_url.empty() ? absl::StrCat("http://rempart.", line.name_space,
                                                                ".svc.cluster.local/v1")
                                                 : line.router_url;
  return options;
}

int RunProbe(const std::vector<std::string>& arguments) {
  std::string address = kDefaultHealthAddress;
  std::string what;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--address" && i + 1 < arguments.size()) {
      address = arguments[++i];
    } else {
      what = arguments[i];
    }
  }
  const absl::Status status = Probe(address, what, absl::Seconds(3));
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? kExitConfig : kExitRuntime;
}

int Run(const std::vector<std::string>& arguments) {
  CommandLine line;
  if (const std::string problem = ParseFlags(arguments, line); !problem.empty()) {
    return Fail(problem);
  }
  absl::StatusOr<ClusterAccess> access = FindAccess(line.kubeconfig);
  if (!access.ok()) return Fail(std::string(access.status().message()));

  // Two dozen threads that mostly wait need no heap each, with a remainder that the others cannot
  // use.
  mallopt(M_ARENA_MAX, 2);
  // Pages of lists go back to the system at once, instead of leaving a hole in the heap. A
  // threshold that is set does not grow by itself.
  mallopt(M_MMAP_THRESHOLD, 128 << 10);
  // All threads inherit the mask; one waits for the signals.
  const sigset_t signals = BlockEndSignals();
  std::stop_source stop;
  std::jthread waiter([&] {
    int signal = 0;
    sigwait(&signals, &signal);
    stop.request_stop();
  });
  LogInfo(
      "operator", "starting",
      {{"version", REMPART_VERSION}, {"api_server", access->server}, {"identity", line.identity}});
  CurlTransport transport(*std::move(access));
  SystemClock clock;
  const int code = RunOperator(OptionsFrom(line), &transport, &clock, stop.get_token());
  // Wakes the waiter, if no signal has.
  pthread_kill(waiter.native_handle(), SIGTERM);
  return code;
}

}  // namespace
}  // namespace rempart::op

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && (arguments[0] == "--help" || arguments[0] == "help")) {
    rempart::op::PrintHelp({});
    return rempart::kExitOk;
  }
  if (!arguments.empty() && arguments[0] == "probe") {
    return rempart::op::RunProbe({arguments.begin() + 1, arguments.end()});
  }
  return rempart::op::Run(arguments);
}
