// SPDX-License-Identifier: Apache-2.0
// rempart-router --config FILE [--dev]: serves clients until SIGTERM or SIGINT, then drains. It
// supervises a process of its own program that serves, which has --listeners and --restarts
// besides. rempart-router probe --address HOST:PORT ready|live: exit 0 when the router there says
// so. Exit codes: 0 done, 1 failure at run time, 2 flags or configuration, 5 address not to be had.
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/clock.h"
#include "common/health/health_server.h"
#include "common/log.h"
#include "common/signals.h"
#include "router/config/router_config.h"
#include "router/http/listening_sockets.h"
#include "router/http/router_process.h"
#include "router/supervise/supervisor.h"

namespace rempart::router {
namespace {

constexpr char kUsage[] =
    "usage: rempart-router --config FILE [--dev]\n"
    "       rempart-router probe --address HOST:PORT ready|live\n"
    "       rempart-router version\n"
    "  --config FILE  configuration, proto/router/v1/config.proto as JSON\n"
    "  --dev          serve without API keys; only on a loopback address\n";

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
      return 2;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kPermissionDenied:
      return 5;
    default:
      return 1;
  }
}

int Complain(const absl::Status& status) {
  std::fprintf(stderr, "rempart-router: %s\n", std::string(status.message()).c_str());
  return ExitCode(status);
}

int UsageError(const std::string& problem) {
  std::fprintf(stderr, "rempart-router: %s\n%s", problem.c_str(), kUsage);
  return 2;
}

int RunProbe(const std::vector<std::string>& args) {
  if (args.size() != 4 || args[1] != "--address") return UsageError("probe needs --address");
  const absl::Status status = Probe(args[2], args[3], absl::Seconds(2));
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  if (status.ok()) return 0;
  return status.code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
}

struct Flags {
  std::string config_path;
  bool dev = false;
  bool supervised = false;
  RouterProcess::Inheritance inheritance;
};

// The process that serves.
int Serve(const Flags& flags) {
  // Blocked before any thread starts, so that only sigwait sees them.
  const sigset_t signals = BlockEndSignals();
  auto settings = ReadRouterSettings(flags.config_path, flags.dev);
  if (!settings.ok()) return Complain(settings.status());
  SystemClock clock;
  auto process = RouterProcess::Start(*std::move(settings), &clock, flags.inheritance);
  if (!process.ok()) return Complain(process.status());
  LogInfo("router", "serving",
          {{"port", (*process)->port()}, {"health_port", (*process)->health_port()}});
  int signal = 0;
  sigwait(&signals, &signal);
  LogInfo("router", "stopping: finishing what runs", {{"signal", signal}});
  // A second signal ends the process at once.
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGINT, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  (*process)->Stop();
  LogInfo("router", "stopped");
  return 0;
}

// The process that holds the sockets, and has nothing else that could fail.
int Keep(const Flags& flags) {
  const auto settings = ReadRouterSettings(flags.config_path, flags.dev);
  if (!settings.ok()) return Complain(settings.status());
  const auto sockets = OpenListeningSockets(*settings);
  if (!sockets.ok()) return Complain(sockets.status());
  const auto command = [&](int restarts) {
    std::vector<std::string> words = {"rempart-router", "--config", flags.config_path};
    if (flags.dev) words.push_back("--dev");
    words.insert(words.end(), {"--listeners", absl::StrJoin(*sockets, ","), "--restarts",
                               absl::StrCat(restarts)});
    return words;
  };
  return Supervise(command, *sockets);
}

// Descriptors by number, comma separated.
bool ReadListeners(const std::string& text, std::vector<int>& listeners) {
  for (const absl::string_view word : absl::StrSplit(text, ',')) {
    if (!absl::SimpleAtoi(word, &listeners.emplace_back())) return false;
  }
  return true;
}

// A complaint, or nothing.
std::string ReadFlags(const std::vector<std::string>& args, Flags& flags) {
  for (size_t i = 0; i < args.size(); ++i) {
    const bool has_value = i + 1 < args.size();
    if (args[i] == "--dev") {
      flags.dev = true;
    } else if (args[i] == "--config" && has_value) {
      flags.config_path = args[++i];
    } else if (args[i] == "--listeners" && has_value) {
      flags.supervised = true;
      if (!ReadListeners(args[++i], flags.inheritance.listeners)) return "--listeners is no list";
    } else if (args[i] == "--restarts" && has_value) {
      if (!absl::SimpleAtoi(args[++i], &flags.inheritance.restarts))
        return "--restarts is no count";
    } else {
      return absl::StrCat("unknown argument ", args[i]);
    }
  }
  return flags.config_path.empty() ? "--config FILE is missing" : "";
}

int Main(const std::vector<std::string>& args) {
  if (!args.empty() && args[0] == "probe") return RunProbe(args);
  if (args.size() == 1 && (args[0] == "version" || args[0] == "--version")) {
    std::printf("rempart-router %s\n", REMPART_VERSION);
    return 0;
  }
  if (args.size() == 1 && (args[0] == "help" || args[0] == "--help")) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  Flags flags;
  const std::string complaint = ReadFlags(args, flags);
  if (!complaint.empty()) return UsageError(complaint);
  return flags.supervised ? Serve(flags) : Keep(flags);
}

}  // namespace
}  // namespace rempart::router

int main(int argc, char** argv) {
  return rempart::router::Main(std::vector<std::string>(argv + 1, argv + argc));
}
