// SPDX-License-Identifier: Apache-2.0
// rempart: commands and flags.
#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/doctor.h"
#include "cli/drill/drill.h"
#include "cli/drill/options.h"
#include "cli/manifest.h"
#include "cli/serve.h"
#include "common/signals.h"
#include "kernels/ops.h"

namespace rempart::cli {
namespace {

constexpr char kUsage[] =
    "rempart serves language models of a manifest on this machine, without Kubernetes; on a\n"
    "cluster it breaks groups to show what that costs.\n\n"
    "  rempart serve -f MODEL.yaml [--port 8000] [--host 127.0.0.1] [--dev | --api-keys FILE]\n"
    "                [--cache DIR] [--kernel-tier NAME] [--metrics PORT]\n"
    "  rempart plan -f MODEL.yaml     show what serve would start\n"
    "  rempart perplexity MODEL FILE [--context 512] [--chunks N] [--threads N]\n"
    "                [--kernel-tier NAME] [--kv-cache-type TYPE] [--exact] [--divergence]\n"
    "                                 how well a model file or folder predicts a text, counted as\n"
    "                                 llama-perplexity does; --divergence: and how far what is\n"
    "                                 served is from F32 arithmetic (--exact) and an F32 KV cache\n"
    "  rempart doctor [--kernel-tier NAME]\n"
    "                                 show what this machine has and lacks, and which kernel\n"
    "                                 computes which op and shape\n"
    "  rempart version\n\n"
    "  -f FILE          manifest, the same as for kubectl apply; source.uri is file:///path.\n"
    "                   \"-\" reads standard input\n"
    "  --dev            serve without API keys, on loopback only\n"
    "  --api-keys FILE  lines NAME:SHA256 of the keys that may call. Without it and without\n"
    "                   --dev, a key is drawn for this run and shown once\n"
    "  --cache DIR      where workers keep repacked weights, so that the next start only maps\n"
    "                   them; nobody else may write there. Default: ~/.cache/rempart/repacked\n"
    "                   ($XDG_CACHE_HOME); \"none\": nowhere\n"
    "  --kernel-tier NAME  compute with these kernels instead of the best of this machine, such\n"
    "                   as avx2; `rempart doctor` names them. Of device: cpu\n"
    "  --metrics PORT   serve Prometheus metrics of the router on 127.0.0.1:PORT/metrics, those\n"
    "                   of the workers on the ports after it\n\n"
    "Exit status: 0 stopped, 1 failed, 2 a wrong flag or manifest, 3 a model file is missing or\n"
    "not valid, 4 not enough memory, 5 the address is in use or not permitted, 6 no GPU to "
    "compute\n"
    "on.\n";

int UsageError(const std::string& problem) {
  std::fprintf(stderr, "rempart: %s\nTry `rempart help`.\n", problem.c_str());
  return kExitConfig;
}

std::string FolderOfThisBinary() {
  std::error_code error;
  const auto path = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "." : path.parent_path().string();
}

std::string DefaultCacheFolder() {
  const char* base = std::getenv("XDG_CACHE_HOME");
  if (base != nullptr && *base == '/') return absl::StrCat(base, "/rempart/repacked");
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home != '/') return "";
  return absl::StrCat(home, "/.cache/rempart/repacked");
}

// The problem, or nothing.
std::string ReadPort(const std::string& flag, const std::string& value, int& port) {
  if (absl::SimpleAtoi(value, &port) && port >= 1 && port <= 65535) return "";
  return absl::StrCat(flag, " ", value, " must be from 1 to 65535");
}

std::string ReadKernelTier(const std::string& value, std::string& tier) {
  tier = value;
  std::string why;
  if (kernels::ChooseOps(value, why) != nullptr) return "";
  return absl::StrCat("--kernel-tier ", why);
}

// The problem, or nothing.
std::string ReadFlag(const std::string& flag, const std::string& value, ServeOptions& options) {
  if (flag == "-f") options.manifest_path = value;
  if (flag == "--host") options.host = value;
  if (flag == "--api-keys") options.api_keys_file = value;
  if (flag == "--cache") {
    options.cache_folder = value == "none" ? "" : value;
    options.cache_is_named = true;
  }
  if (flag == "--kernel-tier") return ReadKernelTier(value, options.kernel_tier);
  if (flag == "--metrics") return ReadPort(flag, value, options.metrics_port);
  if (flag == "--port") return ReadPort(flag, value, options.port);
  return "";
}

// The problem, or nothing.
std::string ParseFlags(const std::vector<std::string>& arguments, ServeOptions& options) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& flag = arguments[i];
    if (flag == "--dev") {
      options.dev = true;
      continue;
    }
    const bool takes_value = flag == "-f" || flag == "--port" || flag == "--host" ||
                             flag == "--api-keys" || flag == "--cache" || flag == "--kernel-tier" ||
                             flag == "--metrics";
    if (!takes_value) return absl::StrCat("unknown argument ", flag);
    if (i + 1 == arguments.size()) return absl::StrCat(flag, " needs a value");
    const std::string problem = ReadFlag(flag, arguments[++i], options);
    if (!problem.empty()) return problem;
  }
  if (options.manifest_path.empty()) return "-f MODEL.yaml is missing";
  if (options.dev && !options.api_keys_file.empty()) {
    return "--dev and --api-keys exclude each other";
  }
  return "";
}

int RunServe(const std::vector<std::string>& arguments) {
  ServeOptions options;
  options.binaries = FolderOfThisBinary();
  options.cache_folder = DefaultCacheFolder();
  const std::string problem = ParseFlags(arguments, options);
  return problem.empty() ? Serve(options) : UsageError(problem);
}

int RunDoctorCommand(const std::vector<std::string>& arguments) {
  std::string tier;
  if (arguments.empty()) return RunDoctor(tier);
  if (arguments.size() != 2 || arguments[0] != "--kernel-tier") {
    return UsageError("doctor takes --kernel-tier NAME, or nothing");
  }
  const std::string problem = ReadKernelTier(arguments[1], tier);
  return problem.empty() ? RunDoctor(tier) : UsageError(problem);
}

int RunPlan(const std::vector<std::string>& arguments) {
  ServeOptions options;
  const std::string problem = ParseFlags(arguments, options);
  if (!problem.empty()) return UsageError(problem);
  const auto models = ReadManifests(options.manifest_path);
  if (!models.ok()) return UsageError(std::string(models.status().message()));
  const auto plans = PlanLocally(*models);
  if (!plans.ok()) return UsageError(std::string(plans.status().message()));
  google::protobuf::util::JsonPrintOptions pretty;
  pretty.add_whitespace = true;
  for (const op::Plan& plan : *plans) {
    for (const op::GroupPlan& group : plan.groups) {
      std::string json;
      (void)google::protobuf::util::MessageToJsonString(group.config, &json, pretty);
      std::printf("# group %s: %s\n%s", group.config.group_name().c_str(),
                  ProcessesInWords(group).c_str(), json.c_str());
    }
  }
  return kExitOk;
}

// The worker computes; its words, figures and exit status are ours.
int RunPerplexity(const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {FolderOfThisBinary() + "/rempart-worker", "perplexity"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  execv(pointers[0], pointers.data());
  std::fprintf(stderr, "rempart: %s: %s; it is installed beside rempart\n", pointers[0],
               std::strerror(errno));
  return kExitRuntime;
}

int RunDrillCommand(const std::vector<std::string>& arguments) {
  const auto options = ParseDrillOptions(arguments);
  if (!options.ok()) return UsageError(std::string(options.status().message()));
  // Blocked before any thread starts; the first asks the drill to mend and end, and no other ends
  // it before it has.
  const sigset_t signals = BlockEndSignals();
  std::stop_source stop;
  const std::jthread listener([&](std::stop_token over) {
    while (!over.stop_requested()) {
      const timespec turn = {0, 100'000'000};
      if (sigtimedwait(&signals, nullptr, &turn) > 0) stop.request_stop();
    }
  });
  return RunDrill(*options, stop.get_token());
}

bool AsksForHelp(const std::string& argument) { return argument == "--help" || argument == "-h"; }

int Main(const std::vector<std::string>& arguments) {
  if (arguments.empty() || arguments[0] == "help" ||
      std::any_of(arguments.begin(), arguments.end(), AsksForHelp)) {
    std::printf("%s\n%s", kUsage, kDrillUsage);
    return kExitOk;
  }
  const std::string& command = arguments[0];
  const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  if (command == "serve") return RunServe(rest);
  if (command == "plan") return RunPlan(rest);
  if (command == "drill") return RunDrillCommand(rest);
  if (command == "perplexity") return RunPerplexity(rest);
  if (command == "doctor") return RunDoctorCommand(rest);
  if (command == "version" || command == "--version") {
    std::printf("rempart %s\n", REMPART_VERSION);
    return kExitOk;
  }
  return UsageError(absl::StrCat("unknown command ", command));
}

}  // namespace
}  // namespace rempart::cli

int main(int argc, char** argv) {
  return rempart::cli::Main(std::vector<std::string>(argv + 1, argv + argc));
}
