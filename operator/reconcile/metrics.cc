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
  const std::vector<MetricFamily> families = {
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
      gauge("rempart_operator_routers_joined", "Open Topology streams.", figures.routers_joined),
      counter("rempart_operator_lists_total", "Lists taken from the API server.", figures.lists),
      counter("rempart_operator_watches_total", "Watches opened at the API server.",
              figures.watches),
  };
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace rempart::op
