// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/metrics.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <limits>
#include <vector>

namespace rempart::op {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily One(const char* name, const char* help, MetricType type, double value) {
  ClientMetric metric;
  if (type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return {name, help, type, {metric}};
}

MetricFamily Empty(const char* name, const char* help, MetricType type) {
  return {name, help, type, {}};
}

// Of what groups broke on, how long they took to come back, and where their time went.
void AddHistory(const std::vector<GroupFigures>& groups, std::vector<MetricFamily>& families) {
  MetricFamily aborts = Empty("rempart_operator_aborts_total",
                              "Epochs of a group that ended, by the first rank that is blamed for "
                              "it (none: nobody is); counted when the next begins.",
                              MetricType::Counter);
  MetricFamily recovery =
      Empty("rempart_operator_recovery_seconds",
            "From the end of an epoch until the group served again.", MetricType::Histogram);
  MetricFamily in_state = Empty(
      "rempart_operator_group_state_seconds_total",
      "How long a group has been in a state, as its leader tells it on Join.", MetricType::Counter);
  for (const GroupFigures& group : groups) {
    for (const auto& [state, seconds] : group.seconds_in_state) {
      ClientMetric metric;
      metric.label = {{"group", group.group}, {"state", state}};
      metric.counter.value = seconds;
      in_state.metric.push_back(std::move(metric));
    }
    if (!group.of_several) continue;
    for (const auto& [rank, count] : group.aborts_by_rank) {
      ClientMetric metric;
      metric.label = {{"group", group.group}, {"rank", rank < 0 ? "none" : std::to_string(rank)}};
      metric.counter.value = static_cast<double>(count);
      aborts.metric.push_back(std::move(metric));
    }
    ClientMetric times;
    times.label = {{"group", group.group}};
    times.histogram.sample_count = static_cast<uint64_t>(group.recoveries);
    times.histogram.sample_sum = group.recovery_seconds_sum;
    for (const auto& [bound, count] : group.recovery_buckets) {
      times.histogram.bucket.push_back({static_cast<uint64_t>(count), bound});
    }
    times.histogram.bucket.push_back(
        {static_cast<uint64_t>(group.recoveries), std::numeric_limits<double>::infinity()});
    recovery.metric.push_back(std::move(times));
  }
  for (MetricFamily* family : {&aborts, &recovery, &in_state}) {
    families.push_back(std::move(*family));
  }
}

void AddGroups(const std::vector<GroupFigures>& groups, std::vector<MetricFamily>& families) {
  MetricFamily blamed =
      Empty("rempart_operator_blamed_member",
            "1 for a member that its group lost and still waits for.", MetricType::Gauge);
  MetricFamily ended = Empty("rempart_operator_epochs_ended_total", "Epochs of a group that ended.",
                             MetricType::Counter);
  MetricFamily recovered =
      Empty("rempart_operator_recoveries_total",
            "Times that a group served again after an epoch ended.", MetricType::Counter);
  MetricFamily took =
      Empty("rempart_operator_last_recovery_seconds",
            "From the end of an epoch until the group served again.", MetricType::Gauge);
  MetricFamily noticed =
      Empty("rempart_operator_last_detection_seconds",
            "From a member's last sign of life until its epoch was ended.", MetricType::Gauge);
  for (const GroupFigures& group : groups) {
    if (!group.of_several) continue;
    const auto add = [&](MetricFamily& family, double value) {
      ClientMetric metric;
      metric.label = {{"group", group.group}};
      family.type == MetricType::Counter ? metric.counter.value = value
                                         : metric.gauge.value = value;
      family.metric.push_back(std::move(metric));
    };
    add(ended, static_cast<double>(group.epochs_ended));
    add(recovered, static_cast<double>(group.recoveries));
    add(took, group.last_recovery_seconds);
    add(noticed, group.last_detection_seconds);
    for (const BlamedMember& member : group.blamed) {
      ClientMetric metric;
      metric.label = {{"group", group.group},
                      {"pod", member.pod},
                      {"node", member.node},
                      {"rank", std::to_string(member.rank)}};
      metric.gauge.value = 1;
      blamed.metric.push_back(std::move(metric));
    }
  }
  for (MetricFamily* family : {&blamed, &ended, &recovered, &took, &noticed}) {
    families.push_back(std::move(*family));
  }
}

}  // namespace

std::string MetricsText(const OperatorFigures& figures, const std::string& version) {
  const auto gauge = [](const char* name, const char* help, int value) {
    return One(name, help, MetricType::Gauge, value);
  };
  const auto counter = [](const char* name, const char* help, int64_t value) {
    return One(name, help, MetricType::Counter, static_cast<double>(value));
  };
  MetricFamily info = One("rempart_operator_info", "Constant 1; the label tells the version.",
                          MetricType::Gauge, 1);
  info.metric[0].label = {{"version", version}};
  std::vector<MetricFamily> families = {
      std::move(info),
      gauge("rempart_operator_leading", "1 on the replica that acts.", figures.leading ? 1 : 0),
      counter("rempart_operator_reconciles_total", "Models looked at.", figures.reconciles),
      counter("rempart_operator_reconcile_errors_total", "Of these, those that will be retried.",
              figures.reconcile_errors),
      gauge("rempart_operator_queued", "Models that wait to be looked at, due or not.",
            figures.queued),
      gauge("rempart_operator_models", "Models in the cluster.", figures.models),
      gauge("rempart_operator_models_ready", "Of these, those that answer requests.",
            figures.models_ready),
      gauge("rempart_operator_workers_joined", "Open Join streams.", figures.workers_joined),
      counter("rempart_operator_workers_redirected_total",
              "Join streams sent to the replica that leads.", figures.workers_redirected),
      gauge("rempart_operator_routers_joined", "Open Topology streams.", figures.routers_joined),
      counter("rempart_operator_lists_total", "Lists taken from the API server.", figures.lists),
      counter("rempart_operator_watches_total", "Watches opened at the API server.",
              figures.watches),
      counter("rempart_operator_api_calls_total", "Requests sent to the API server, watches apart.",
              figures.api_calls),
      counter("rempart_operator_lease_writes_total",
              "Of the writes, those that keep the lease: they go on when nothing changes.",
              figures.lease_writes),
      counter("rempart_operator_api_writes_total", "Creations, patches and deletions sent.",
              figures.api_writes),
  };
  AddGroups(figures.groups, families);
  AddHistory(figures.groups, families);
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace rempart::op
