// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/sanitize.h"

#include <algorithm>
#include <csignal>
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "benchmarks/gpu/child.h"
#include "benchmarks/gpu/conformance/harness.h"
#include "benchmarks/gpu/course.h"
#include "benchmarks/gpu/parity.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace rempart::benchmarks {
namespace {

// What the sanitizer exits with when it has found something.
constexpr int kFound = 87;
constexpr char kMark[] = "=========";
// "ERROR SUMMARY: 3 errors", "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)".
constexpr char kSummary[] = " SUMMARY: ";
constexpr size_t kMostLines = 8;  // of a finding, that are told

absl::StatusOr<std::unique_ptr<Child>> StartSanitizer(const SanitizeOptions& options,
                                                      const std::string& tool) {
  absl::Status last;
  for (const std::string& sanitizer : options.sanitizers) {
    absl::StatusOr<std::unique_ptr<Child>> child =
        Child::Start({sanitizer, "--tool", tool, "--error-exitcode", absl::StrCat(kFound),
                      options.program, "--sanitized"},
                     {});
    if (child.ok()) return child;
    last = child.status();
  }
  return NotRun(absl::StrCat(
      "there is no compute-sanitizer (", absl::StrJoin(options.sanitizers, ", "),
      "): ", std::string(last.message()), ". It comes with the CUDA toolkit; put it on PATH"));
}

// What a line of the sanitizer says, or nothing.
std::string Said(const std::string& line) {
  absl::string_view text = line;
  if (!absl::ConsumePrefix(&text, kMark)) return "";
  return std::string(absl::StripAsciiWhitespace(text));
}

absl::Status RunTool(const SanitizeOptions& options, const std::string& tool, PartResult& result) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Child> child, StartSanitizer(options, tool));
  const absl::Time start = SteadyNow();
  const absl::Time deadline = std::min(start + options.limit, options.deadline);
  std::vector<std::string> lines;
  std::string summary;
  absl::StatusOr<std::string> line = child->Hear(deadline);
  for (; line.ok(); line = child->Hear(deadline)) {
    const std::string said = Said(*line);
    if (absl::StrContains(said, kSummary)) {
      summary = said;
    } else if (!said.empty() && said != "COMPUTE-SANITIZER" && lines.size() < kMostLines) {
      lines.push_back(said);
    }
  }
  const absl::StatusOr<std::string> ended = child->Wait(deadline);
  const auto wrong = [&](const std::string& what) {
    result.wrong.push_back(
        absl::StrCat(tool, ": ", what, lines.empty() ? "" : ": ", absl::StrJoin(lines, "; ")));
  };
  if (!ended.ok()) {
    wrong(absl::StrCat("not done within ", absl::FormatDuration(deadline - start)));
    return absl::OkStatus();
  }
  int64_t errors = 0;
  const std::vector<std::string> parts = absl::StrSplit(summary, kSummary);
  const bool is_known =
      parts.size() == 2 &&
      absl::SimpleAtoi(parts[1].substr(0, parts[1].find_first_not_of("0123456789")), &errors);
  if (is_known) result.figures.push_back({tool + "_errors", static_cast<double>(errors), ""});
  if (*ended != kEndedWell) {
    wrong(absl::StrCat("ended with ", *ended, is_known ? ", " + summary : ""));
  } else if (!is_known || errors > 0) {
    wrong(is_known ? summary : "it gives no summary");
  }
  return absl::OkStatus();
}

absl::Status ComputeAll(const worker::GpuOpener& open) {
  ASSIGN_OR_RETURN(const std::unique_ptr<worker::Device> device, open(0));
  std::vector<Finding> findings;
  if (const auto errors = RunConformance(*device, findings); !errors.empty()) {
    return absl::Status(errors[0].status.code(),
                        absl::StrCat(errors[0].op, ": ", std::string(errors[0].status.message())));
  }
  return CheckParity(*device, {SmallDecoders()[0]}).status();
}

}  // namespace

absl::StatusOr<PartResult> CheckSanitized(const SanitizeOptions& options) {
  PartResult result;
  for (const std::string& tool : options.tools) {
    RETURN_IF_ERROR(RunTool(options, tool, result));
  }
  return result;
}

int RunSanitized(const worker::GpuOpener& open) {
  EndWithParent();
  const absl::Status status = ComputeAll(open);
  if (status.ok()) return 0;
  std::cerr << "gpu_bench: under the sanitizer: " << status.message() << "\n";
  return 1;
}

}  // namespace rempart::benchmarks
