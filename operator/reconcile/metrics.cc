// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/metrics.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

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
      counter("rempart_operator_api_writes_total", "Creations, patches and deletions sent.",
              figures.api_writes),
  };
  AddGroups(figures.groups, families);
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace rempart::op
