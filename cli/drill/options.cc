// SPDX-License-Identifier: Apache-2.0
#include "cli/drill/options.h"

#include <algorithm>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace rempart::cli {
namespace {

const std::map<std::string, DrillOptions::Kind>& Kinds() {
  static const auto* const kinds = new std::map<std::string, DrillOptions::Kind>{
      {"kill-rank", DrillOptions::Kind::kKillRank},
      {"freeze-rank", DrillOptions::Kind::kFreezeRank},
      {"cut-node", DrillOptions::Kind::kCutNode},
      {"drain-node", DrillOptions::Kind::kDrainNode}};
  return *kinds;
}

struct Number {
  int* value;
  int least;
  int most;
};

absl::Status ReadNumber(const std::string& flag, const std::string& text, const Number& number) {
  if (absl::SimpleAtoi(text, number.value) && *number.value >= number.least &&
      *number.value <= number.most) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " ", text, " must be from ", number.least, " to ", number.most));
}

// What goes into paths and manifests is a name of Kubernetes, and nothing else.
absl::Status CheckName(const std::string& flag, const std::string& name) {
  const bool is_name =
      !name.empty() && name.size() <= 63 && std::all_of(name.begin(), name.end(), [](char letter) {
        return (letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9') ||
               letter == '-' || letter == '.';
      });
  if (is_name) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag, " ", name.empty() ? "is missing" : name,
                                                 ": it must be a name of Kubernetes"));
}

absl::Status Check(const std::string& confirmed, DrillOptions& options) {
  RETURN_IF_ERROR(CheckName("--model", options.model));
  RETURN_IF_ERROR(CheckName("-n", options.ns));
  if (options.helper_namespace.empty()) options.helper_namespace = options.ns;
  RETURN_IF_ERROR(CheckName("--helper-namespace", options.helper_namespace));
  options.url = std::string(absl::StripSuffix(absl::StripSuffix(options.url, "/"), "/v1"));
  if (!absl::StartsWith(options.url, "http://") && !absl::StartsWith(options.url, "https://")) {
    return absl::InvalidArgumentError(
        "--url must say where the router answers, as clients do: http://HOST:PORT/v1. Without an "
        "ingress: kubectl -n rempart port-forward service/rempart 8080:80");
  }
  const std::string wanted = absl::StrCat(options.ns, "/", options.model);
  if (confirmed != wanted) {
    return absl::InvalidArgumentError(absl::StrCat(
        "this breaks a group that serves: its requests wait until it is back. Say --confirm ",
        wanted, confirmed.empty() ? "" : absl::StrCat(", not ", confirmed), " if you mean it"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DrillOptions> ParseDrillOptions(const std::vector<std::string>& words) {
  DrillOptions options;
  const auto kind = words.empty() ? Kinds().end() : Kinds().find(words[0]);
  if (kind == Kinds().end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("drill ", words.empty() ? "needs what to do" : words[0],
                     ": one of kill-rank, freeze-rank, cut-node, drain-node"));
  }
  options.kind = kind->second;
  std::string confirmed;
  const std::map<std::string, std::string*> texts = {
      {"--model", &options.model},
      {"-n", &options.ns},
      {"--namespace", &options.ns},
      {"--url", &options.url},
      {"--api-key-file", &options.api_key_file},
      {"--kubeconfig", &options.kubeconfig},
      {"--helper-namespace", &options.helper_namespace},
      {"--confirm", &confirmed}};
  const std::map<std::string, Number> numbers = {
      {"--group", {&options.group, 0, 1023}},
      {"--rank", {&options.rank, 0, 1023}},
      {"--clients", {&options.clients, 1, 64}},
      {"--seconds", {&options.seconds, 1, 600}},
      {"--timeout", {&options.timeout_seconds, 10, 3600}}};
  for (size_t i = 1; i < words.size(); i += 2) {
    const auto text = texts.find(words[i]);
    const auto number = numbers.find(words[i]);
    if (text == texts.end() && number == numbers.end()) {
      return absl::InvalidArgumentError(absl::StrCat("drill: unknown argument ", words[i]));
    }
    if (i + 1 == words.size()) {
      return absl::InvalidArgumentError(absl::StrCat(words[i], " needs a value"));
    }
    if (text != texts.end()) *text->second = words[i + 1];
    if (number != numbers.end()) {
      RETURN_IF_ERROR(ReadNumber(words[i], words[i + 1], number->second));
    }
  }
  RETURN_IF_ERROR(Check(confirmed, options));
  return options;
}

std::string DrillName(DrillOptions::Kind kind) {
  for (const auto& [name, known] : Kinds()) {
    if (known == kind) return name;
  }
  return "";
}

}  // namespace rempart::cli
