// SPDX-License-Identifier: Apache-2.0
#include "cli/drill/report.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace rempart::cli {
namespace {

constexpr double kDelaySeconds = 1;
constexpr double kDelayFactor = 3;

// The longest wait for a token of one request within [from, to].
double LongestSilence(const DrillAnswer& answer, double from, double to) {
  double last = std::max(answer.began, from);
  double longest = 0;
  for (const double at : answer.tokens_at) {
    if (at < last) continue;
    longest = std::max(longest, std::min(at, to) - last);
    last = at;
    if (last >= to) return longest;
  }
  return std::max(longest, std::min(answer.ended, to) - last);
}

// The longest time after the strike in which no client got a token.
double LongestGap(const DrillRecord& record) {
  std::vector<double> times = {record.struck};
  for (const DrillAnswer& answer : record.answers) {
    for (const double at : answer.tokens_at) {
      if (at > record.struck && at <= record.ended) times.push_back(at);
    }
  }
  std::sort(times.begin(), times.end());
  times.push_back(record.ended);
  double longest = 0;
  for (size_t i = 1; i < times.size(); ++i) longest = std::max(longest, times[i] - times[i - 1]);
  return longest;
}

bool IsBlamed(DrillOptions::Kind kind) { return kind != DrillOptions::Kind::kDrainNode; }

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') {
      absl::StrAppend(&quoted, "\\", std::string(1, letter));
    } else if (static_cast<unsigned char>(letter) < 0x20) {
      absl::StrAppend(&quoted, absl::StrFormat("\\u%04x", letter));
    } else {
      quoted.push_back(letter);
    }
  }
  return quoted + "\"";
}

std::string ReportJson(const DrillRecord& record, const DrillReport& report) {
  std::vector<std::string> findings;
  for (const std::string& finding : report.findings) findings.push_back(Quoted(finding));
  return absl::StrCat(
      "{\n  \"drill\": ", Quoted(DrillName(record.options.kind)),
      ",\n  \"model\": ", Quoted(record.options.model), ",\n  \"group\": ", record.options.group,
      ",\n  \"pod\": ", Quoted(record.pod), ",\n  \"node\": ", Quoted(record.node),
      ",\n  \"date\": ", Quoted(record.date), ",\n  \"clients\": ", record.options.clients,
      ",\n  \"detect_seconds\": ",
      report.detect_seconds.has_value() ? absl::StrFormat("%.2f", *report.detect_seconds) : "null",
      ",\n  \"recover_seconds\": ", absl::StrFormat("%.2f", report.recover_seconds),
      ",\n  \"completed_requests\": ", report.completed, ",\n  \"lost_requests\": ", report.lost,
      ",\n  \"delayed_requests\": ", report.delayed, ",\n  \"wrong_answers\": ", report.wrong,
      ",\n  \"served_again\": ", record.served_again ? "true" : "false",
      ",\n  \"named_as\": ", Quoted(record.named_as), ",\n  \"findings\": [",
      absl::StrJoin(findings, ", "), "]\n}\n");
}

void AddFindings(const DrillRecord& record, const std::set<std::string>& errors,
                 DrillReport& report) {
  std::vector<std::string>& findings = report.findings;
  if (!record.served_again) {
    findings.push_back(absl::StrCat("the group did not serve again within ",
                                    record.options.timeout_seconds, " s"));
  }
  if (report.lost > 0) {
    findings.push_back(
        absl::StrCat(report.lost, " requests were lost: ", absl::StrJoin(errors, "; ")));
  }
  if (report.wrong > 0) {
    findings.push_back(absl::StrCat(
        report.wrong, " answers differ from those to the same requests before the strike"));
  }
  if (!IsBlamed(record.options.kind)) return;
  if (!record.named.has_value()) {
    findings.push_back(absl::StrCat("no status named pod ", record.pod));
  } else if (!absl::StrContains(record.named_as, record.pod)) {
    findings.push_back(
        absl::StrCat("the wrong member was named: ", record.named_as, "; it was ", record.pod));
  }
}

}  // namespace

DrillReport Evaluate(const DrillRecord& record) {
  DrillReport report;
  double usual = 0;
  for (const DrillAnswer& answer : record.answers) {
    if (answer.began >= record.struck) continue;
    usual = std::max(usual, LongestSilence(answer, 0, record.struck));
  }
  const double bound = std::max(kDelaySeconds, kDelayFactor * usual);
  std::set<std::string> errors;
  for (const DrillAnswer& answer : record.answers) {
    if (!answer.error.empty()) {
      ++report.lost;
      errors.insert(answer.error);
    } else {
      ++report.completed;
      report.wrong += answer.differs ? 1 : 0;
    }
    const bool is_delayed = LongestSilence(answer, record.struck, answer.ended) > bound;
    report.delayed += answer.ended > record.struck && is_delayed ? 1 : 0;
  }
  report.recover_seconds = LongestGap(record);
  if (IsBlamed(record.options.kind) && record.named.has_value()) {
    report.detect_seconds = *record.named - record.struck;
  }
  AddFindings(record, errors, report);
  return report;
}

k8s::v1::ConfigMap StoredReport(const DrillRecord& record, const DrillReport& report) {
  k8s::v1::ConfigMap stored;
  std::string when;  // "20261128-062130" of "2026-11-28T06:21:30Z"
  for (const char letter : record.date.substr(0, 19)) {
    if (letter >= '0' && letter <= '9') when.push_back(letter);
    if (letter == 'T') when.push_back('-');
  }
  auto& metadata = *stored.mutable_metadata();
  metadata.set_namespace_(record.options.ns);
  metadata.set_name(absl::StrCat("drill-", record.options.model, "-", when));
  auto& labels = *metadata.mutable_labels();
  labels["app.kubernetes.io/name"] = "rempart";
  labels["app.kubernetes.io/component"] = "drill";
  labels["rempart.dev/drill"] = DrillName(record.options.kind);
  labels["rempart.dev/drill-model"] = record.options.model;
  (*stored.mutable_data())["report.json"] = ReportJson(record, report);
  return stored;
}

std::string ReportText(const DrillRecord& record, const DrillReport& report) {
  std::string text = absl::StrFormat(
      "%s: pod %s on node %s\n  no client got a token for   %.2f s\n"
      "  requests answered           %d\n  requests lost               %d\n"
      "  requests delayed            %d\n  answers that differ         %d\n",
      DrillName(record.options.kind), record.pod, record.node, report.recover_seconds,
      report.completed, report.lost, report.delayed, report.wrong);
  if (report.detect_seconds.has_value()) {
    absl::StrAppend(&text, absl::StrFormat("  named after                 %.2f s: %s\n",
                                           *report.detect_seconds, record.named_as));
  }
  for (const std::string& finding : report.findings) {
    absl::StrAppend(&text, "  DID NOT HOLD: ", finding, "\n");
  }
  return text;
}

}  // namespace rempart::cli
