// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/conformance/harness.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

namespace rempart::benchmarks {
namespace {

double WorstPercent(absl::Span<const float> actual, absl::Span<const float> expected,
                    double absolute, double relative) {
  double worst = actual.size() == expected.size() && !actual.empty() ? 0.0 : 1000.0;
  for (size_t i = 0; i < expected.size() && i < actual.size(); ++i) {
    const double limit = absolute + relative * std::fabs(expected[i]);
    const double error = std::fabs(static_cast<double>(actual[i]) - expected[i]);
    // A NaN is as wrong as can be.
    worst = std::max(worst, error <= limit
                                ? error / limit * 100.0
                                : std::min(1e6, std::isnan(error) ? 1e6 : error / limit * 100.0));
  }
  return worst;
}

}  // namespace

void Trial::Compare(const std::string& what, absl::Span<const float> actual,
                    absl::Span<const float> expected, double absolute, double relative) {
  findings_.push_back({op_, what, WorstPercent(actual, expected, absolute, relative)});
}

void Trial::CompareEither(const std::string& what, absl::Span<const float> actual,
                          absl::Span<const Expectation> expected, double relative) {
  double best = std::numeric_limits<double>::max();
  for (const Expectation& each : expected) {
    best = std::min(best, WorstPercent(actual, each.values, each.absolute, relative));
  }
  findings_.push_back({op_, what, best});
}

void Trial::Require(const std::string& what, bool holds) {
  findings_.push_back({op_, what, holds ? 0.0 : 1000.0});
}

const std::vector<Case>& Cases() {
  static const auto* cases = new std::vector<Case>{
      {"embed", EmbedCase},
      {"add_norm", AddNormCase},
      {"rope_store", RopeStoreCase},
      {"attention_prefill", AttentionPrefillCase},
      {"attention_decode", AttentionDecodeCase},
      {"activate", ActivateCase},
      {"matvec", MatvecCase},
      {"matmul", MatmulCase},
      {"quantize_rows", QuantizeRowsCase},
      {"scale_sums", ScaleSumsCase},
      {"sample", SampleCase},
      {"advance", AdvanceCase},
      {"copy_blocks", CopyBlocksCase},
      {"hash", HashCase},
      {"all_reduce", AllReduceCase},
      {"all_reduce_norm", AllReduceNormCase},
  };
  return *cases;
}

std::vector<OpError> RunConformance(worker::Device& device, std::vector<Finding>& findings) {
  std::vector<OpError> errors;
  absl::Status lost;
  for (const Case& each : Cases()) {
    if (!lost.ok()) {
      errors.push_back({each.op, lost});
      continue;
    }
    Trial trial(device, each.op, findings);
    const absl::Status status = each.run(trial);
    if (status.ok()) continue;
    errors.push_back({each.op, status});
    if (const absl::Status broken = device.Check(); !broken.ok()) {
      lost =
          absl::Status(broken.code(), absl::StrCat("has not run: the device was lost in ", each.op,
                                                   ": ", std::string(broken.message())));
    }
  }
  return errors;
}

std::vector<float> RandomFloats(std::mt19937& random, int64_t count, float deviation) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<uint16_t> ToBits(absl::Span<const float> values) {
  std::vector<uint16_t> bits;
  bits.reserve(values.size());
  for (const float value : values) bits.push_back(kernels::cuda::ToBf16(value).bits);
  return bits;
}

std::vector<float> ToFloats(absl::Span<const uint16_t> bits) {
  std::vector<float> values;
  values.reserve(bits.size());
  for (const uint16_t each : bits)
    values.push_back(kernels::cuda::ToFloat(kernels::cuda::Bf16{each}));
  return values;
}

void RoundToBf16(std::vector<float>& values) {
  for (float& value : values) value = kernels::cuda::ToFloat(kernels::cuda::ToBf16(value));
}

}  // namespace rempart::benchmarks
