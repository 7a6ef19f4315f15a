// SPDX-License-Identifier: Apache-2.0
#include "operator/streams/gpus_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace rempart::op {
namespace {

constexpr int kMostGpus = 16;  // ranks of one pod
constexpr size_t kMostText = 512;

std::string Short(const std::string& text) { return text.substr(0, kMostText); }

std::string Named(const group::v1::Gpu& gpu) {
  return Short(absl::StrCat(gpu.name(), " ", gpu.uuid()));
}

// Empty: nothing is wrong.
std::string ConcernOf(const group::v1::Gpu& gpu) {
  std::vector<std::string> concerns;
  if (gpu.ecc_uncorrected() > 0) {
    concerns.push_back(absl::StrCat(gpu.ecc_uncorrected(),
                                    gpu.ecc_uncorrected() == 1 ? " memory error" : " memory errors",
                                    " that ECC could not correct"));
  }
  if (gpu.remap_failed()) concerns.emplace_back("memory that broke could not be replaced");
  if (gpu.remap_pending() || gpu.wants_reset()) {
    concerns.emplace_back("it wants a reset when nothing runs on it");
  }
  return concerns.empty() ? "" : absl::StrCat(Named(gpu), ": ", absl::StrJoin(concerns, ", "));
}

}  // namespace

GpusReport GpusFromWire(const group::v1::GpuReport& wire) {
  GpusReport report;
  std::vector<std::string> concerns;
  if (!wire.problem().empty()) concerns.push_back(wire.problem());
  const int count = std::min(wire.gpus_size(), kMostGpus);
  for (int i = 0; i < count; ++i) {
    report.gpus.push_back(Named(wire.gpus(i)));
    if (std::string concern = ConcernOf(wire.gpus(i)); !concern.empty()) {
      concerns.push_back(std::move(concern));
    }
  }
  report.concern = Short(absl::StrJoin(concerns, "; "));
  if (!wire.has_fault()) return report;
  GpuFaultReport& fault = report.fault.emplace();
  const int32_t gpu = wire.fault().gpu();
  if (gpu >= 0 && gpu < count) fault.gpu = report.gpus[static_cast<size_t>(gpu)];
  fault.xid = wire.fault().xid();
  fault.meaning = Short(wire.fault().meaning());
  fault.advice = Short(wire.fault().advice());
  fault.at = absl::FromUnixMillis(wire.fault().at_unix_ms());
  fault.is_broken = wire.fault().broken();
  return report;
}

}  // namespace rempart::op
