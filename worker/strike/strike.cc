// SPDX-License-Identifier: Apache-2.0
#include "worker/strike/strike.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "worker/strike/routing_rules.h"

namespace rempart::worker {
namespace {

constexpr int kLongestSeconds = 600;
// What is printed before the network goes must have left the node by then.
constexpr absl::Duration kLastWords = absl::Milliseconds(300);

void Say(const char* word) {
  std::printf("%s\n", word);
  std::fflush(stdout);
}

// Whether it was told to end.
bool WaitOrEnd(absl::Duration wait) {
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  const timespec time = absl::ToTimespec(wait);
  return sigtimedwait(&ends, nullptr, &time) > 0;
}

absl::Status SignalAll(const std::string& container_id, int number) {
  const std::vector<int> processes = ProcessesOf(container_id, "/proc");
  if (processes.empty()) {
    return absl::NotFoundError(absl::StrCat(
        "no process of container ", container_id,
        " on this node; does the helper see the node's processes (hostPID), and its own user's?"));
  }
  for (const int process : processes) {
    if (kill(process, number) != 0 && errno != ESRCH) {
      return absl::ErrnoToStatus(errno, absl::StrCat("signal ", number, " to process ", process));
    }
  }
  return absl::OkStatus();
}

absl::Status Freeze(const Strike& strike) {
  RETURN_IF_ERROR(SignalAll(strike.container_id, SIGSTOP));
  Say("struck");
  WaitOrEnd(strike.lasts);
  const absl::Status status = SignalAll(strike.container_id, SIGCONT);
  // What has been replaced meanwhile needs no mending.
  if (!status.ok() && !absl::IsNotFound(status)) return status;
  Say("mended");
  return absl::OkStatus();
}

absl::Status Cut(const Strike& strike) {
  std::vector<Network> kept;
  for (const std::string& text : strike.kept_networks) {
    ASSIGN_OR_RETURN(Network network, ParseNetwork(text));
    kept.push_back(std::move(network));
  }
  Say("struck");
  if (WaitOrEnd(kLastWords)) return absl::CancelledError("ended before the cut");
  const absl::Status cut = CutAllBut(kept);
  if (cut.ok()) WaitOrEnd(strike.lasts);
  const absl::Status mended = MendCut();
  if (!cut.ok()) return cut;
  RETURN_IF_ERROR(mended);
  Say("mended");
  return absl::OkStatus();
}

absl::Status ParseSeconds(const std::string& text, absl::Duration& lasts) {
  int seconds = 0;
  if (!absl::SimpleAtoi(text, &seconds) || seconds < 1 || seconds > kLongestSeconds) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" must be seconds from 1 to ", kLongestSeconds));
  }
  lasts = absl::Seconds(seconds);
  return absl::OkStatus();
}

absl::Status ParseContainer(const std::string& text, std::string& container_id) {
  const bool is_hex = std::all_of(text.begin(), text.end(), [](char letter) {
    return (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'f');
  });
  // Short ones would match others, too.
  if (text.size() != 64 || !is_hex) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" must be a container's id: 64 hex digits"));
  }
  container_id = text;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Strike> ParseStrike(const std::vector<std::string>& words) {
  Strike strike;
  if (words.size() == 2 && words[0] == "kill") {
    RETURN_IF_ERROR(ParseContainer(words[1], strike.container_id));
    return strike;
  }
  if (words.size() == 3 && words[0] == "freeze") {
    strike.kind = Strike::Kind::kFreeze;
    RETURN_IF_ERROR(ParseSeconds(words[1], strike.lasts));
    RETURN_IF_ERROR(ParseContainer(words[2], strike.container_id));
    return strike;
  }
  if (words.size() >= 2 && words[0] == "cut") {
    strike.kind = Strike::Kind::kCut;
    RETURN_IF_ERROR(ParseSeconds(words[1], strike.lasts));
    strike.kept_networks.assign(words.begin() + 2, words.end());
    for (const std::string& text : strike.kept_networks) {
      RETURN_IF_ERROR(ParseNetwork(text).status());
    }
    return strike;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", absl::StrJoin(words, " "),
                   "\" is none of: kill ID, freeze SECONDS ID, cut SECONDS [NETWORK...]"));
}

std::vector<int> ProcessesOf(const std::string& container_id, const std::string& proc_folder) {
  std::vector<int> processes;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(proc_folder, error)) {
    int process = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &process)) continue;
    std::ifstream file(entry.path() / "cgroup");
    const std::string groups((std::istreambuf_iterator<char>(file)), {});
    if (groups.find(container_id) != std::string::npos) processes.push_back(process);
  }
  std::sort(processes.begin(), processes.end());
  return processes;
}

absl::Status RunStrike(const Strike& strike) {
  Say("ready");
  // Whoever follows these lines has the time to begin.
  if (WaitOrEnd(absl::Seconds(2))) return absl::CancelledError("ended before it struck");
  switch (strike.kind) {
    case Strike::Kind::kKill: {
      RETURN_IF_ERROR(SignalAll(strike.container_id, SIGKILL));
      Say("struck");
      return absl::OkStatus();
    }
    case Strike::Kind::kFreeze:
      return Freeze(strike);
    case Strike::Kind::kCut:
      return Cut(strike);
  }
  return absl::InternalError("no such strike");
}

}  // namespace rempart::worker
