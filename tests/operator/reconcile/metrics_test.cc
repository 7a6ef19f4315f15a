// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "operator/reconcile/members.h"

namespace rempart::op {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Metrics, TellWhoBrokeGroupsHowLongRecoveriesTookAndWhereTheTimeWent) {
  GroupReport report;
  report.pod_count = 2;
  report.recoveries = 2;
  report.aborts_by_rank = {{-1, 1}, {3, 2}};
  report.recovery_times.Add(absl::Seconds(3));
  report.recovery_times.Add(absl::Seconds(400));
  report.time_in_phase = {{WorkerPhase::kReady, absl::Seconds(60)}};
  OperatorFigures figures;
  figures.groups = {FiguresOf("ia/m-0", report)};
  const std::string text = MetricsText(figures, "1");
  EXPECT_THAT(text, HasSubstr("rempart_operator_aborts_total{group=\"ia/m-0\",rank=\"3\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("rempart_operator_aborts_total{group=\"ia/m-0\",rank=\"none\"} 1\n"));
  const auto bucket = [](const char* bound, int count) {
    return HasSubstr(absl::StrCat("rempart_operator_recovery_seconds_bucket{group=\"ia/m-0\",le=\"",
                                  bound, "\"} ", count, "\n"));
  };
  EXPECT_THAT(text, bucket("2", 0));
  EXPECT_THAT(text, bucket("4", 1));
  EXPECT_THAT(text, bucket("+Inf", 2));
  EXPECT_THAT(text, HasSubstr("rempart_operator_recovery_seconds_sum{group=\"ia/m-0\"} 403\n"));
  EXPECT_THAT(text, HasSubstr("rempart_operator_group_state_seconds_total{group=\"ia/m-0\","
                              "state=\"Ready\"} 60\n"));
}

TEST(Metrics, OfAGroupOfOnePodTellItsTimesOnly) {
  GroupReport report;
  report.time_in_phase = {{WorkerPhase::kLoading, absl::Seconds(2)}};
  OperatorFigures figures;
  figures.groups = {FiguresOf("ia/m-0", report)};
  const std::string text = MetricsText(figures, "1");
  EXPECT_THAT(text, HasSubstr("state=\"Loading\"} 2\n"));
  EXPECT_THAT(text, Not(HasSubstr("rempart_operator_recoveries_total{")));
}

}  // namespace
}  // namespace rempart::op
