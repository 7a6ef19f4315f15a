// SPDX-License-Identifier: Apache-2.0
// What a drill has seen, and what it comes to. Pure: times are seconds since the load began.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/drill/options.h"
#include "proto/k8s/v1/objects.pb.h"

namespace rempart::cli {

// One request of the load, from its beginning to its end.
struct DrillAnswer {
  double began = 0;
  double ended = 0;
  std::vector<double> tokens_at = {};
  std::string error = {};  // empty: it was answered
  bool differs = false;    // from what the same request was answered before the strike
};

struct DrillRecord {
  DrillOptions options;
  std::string pod;  // that was struck, on its node
  std::string node;
  std::string date;  // RFC 3339
  double struck = 0;
  double ended = 0;
  std::vector<DrillAnswer> answers;
  // The first status after the strike that names a pod as lost, and how.
  std::optional<double> named;
  std::string named_as;
  // Whether the group answered in a new epoch, or away from its node, before the time was over.
  bool served_again = false;
};

struct DrillReport {
  std::optional<double> detect_seconds;  // none where nobody is to blame, or nobody was blamed
  double recover_seconds = 0;            // the longest time in which no client got a token
  int completed = 0;
  int lost = 0;
  int delayed = 0;  // silent for a second or more, and thrice as long as any before the strike
  int wrong = 0;
  std::vector<std::string> findings;  // what did not hold, for a person; empty: all held
};

DrillReport Evaluate(const DrillRecord& record);

// The object that keeps it: a ConfigMap in the Model's namespace, with the labels
// rempart.dev/drill=KIND and rempart.dev/drill-model=NAME, and report.json.
k8s::v1::ConfigMap StoredReport(const DrillRecord& record, const DrillReport& report);

// For the terminal.
std::string ReportText(const DrillRecord& record, const DrillReport& report);

}  // namespace rempart::cli
