// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/parity.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/course.h"
#include "benchmarks/gpu/inputs.h"
#include "benchmarks/gpu/seeded_model.h"
#include "common/status_macros.h"
#include "kernels/ops.h"
#include "worker/device/thread_pool.h"
#include "worker/model/device_transformer.h"
#include "worker/model/families/families.h"
#include "worker/model/gguf.h"
#include "worker/model/mapped_file.h"
#include "worker/model/transformer.h"

namespace rempart::benchmarks {
namespace {

using worker::DeviceTransformer;

// What BF16 may do to the logits of three layers. Roundings are independent, so they grow as the
// square root of their number.
constexpr double kMostError = 0.02;
constexpr double kMostErrorLayers = 3;
// So much of a log-probability may BF16 change.
constexpr double kRounding = 0.1;
// FP8 rounds to 2^-4 of a number, BF16 to 2^-9, but not all that BF16 rounds: a device's
// activations between products stay in BF16 or F32, and those of few tokens are never FP8.
constexpr double kFp8Coarser = 5;

worker::DeviceModelOptions Options(const worker::ModelConfig& config, Fp8Is fp8) {
  worker::DeviceModelOptions options;
  options.context_length = 128;
  options.max_step_tokens = 64;
  options.max_sequences = 1;
  options.reserve_bytes = 0;
  options.weights_to_fp8 = fp8 == Fp8Is::kInWeights;
  options.kv_is_fp8 = fp8 == Fp8Is::kInKv;
  options.kv_bytes =
      BlocksOf(options.context_length) * static_cast<int64_t>(config.layers.size()) *
      kernels::DeviceKvBlockBytes(options.kv_is_fp8, config.kv_heads, config.head_dim);
  return options;
}

absl::Status CompareWithCpu(worker::Device& device, const NamedConfig& named,
                            const worker::Weights& weights, PartResult& result) {
  const worker::ModelConfig& config = named.config;
  const worker::DeviceModelOptions options = Options(config, named.fp8);
  ASSIGN_OR_RETURN(const std::unique_ptr<DeviceTransformer> on_device,
                   DeviceTransformer::Create(device, config, weights, options));
  worker::ThreadPool pool({});
  worker::TransformerOptions exact;
  exact.kv_blocks = BlocksOf(options.context_length);
  exact.kv_type = kernels::DType::kF32;
  exact.exact = true;
  ASSIGN_OR_RETURN(const std::unique_ptr<worker::Transformer> on_cpu,
                   worker::Transformer::Create(config, weights, kernels::BestOps(), pool, exact));
  const std::vector<int32_t> table = BlockTable(0, exact.kv_blocks);
  std::vector<int32_t> ids = SeededIds(kParityPrompt, config.vocabulary, 11);
  std::vector<float> expected(static_cast<size_t>(config.vocabulary));
  std::vector<float> actual(expected.size());
  Agreement agreement(named.name, config.layers.size(), named.fp8);
  size_t done = 0;
  for (int step = 0; step < kParityTokens; ++step) {
    worker::StepBatch batch;
    const absl::Span<const int32_t> fresh = absl::MakeConstSpan(ids).subspan(done);
    batch.slices = {{fresh, static_cast<int32_t>(done), table, true}};
    RETURN_IF_ERROR(on_cpu->Forward(batch, absl::MakeSpan(expected)));
    RETURN_IF_ERROR(on_device->Forward(batch, absl::MakeSpan(actual)));
    agreement.Take(actual, expected);
    done = ids.size();
    ids.push_back(static_cast<int32_t>(Best(expected)));
  }
  agreement.Report(result);
  return absl::OkStatus();
}

}  // namespace

Agreement::Agreement(std::string name, size_t layers, Fp8Is fp8)
    : name_(std::move(name)),
      coarser_(fp8 == Fp8Is::kNowhere ? 1 : kFp8Coarser),
      most_error_(coarser_ * kMostError *
                  std::sqrt(std::max(1.0, static_cast<double>(layers) / kMostErrorLayers))) {}

size_t Best(absl::Span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

void Agreement::Take(absl::Span<const float> actual, absl::Span<const float> expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(actual[i]) - expected[i], 2);
    size += std::pow(static_cast<double>(expected[i]), 2);
  }
  const double relative = std::isfinite(error) ? std::sqrt(error / size) : INFINITY;
  worst_error_ = std::max(worst_error_, relative);
  if (relative >= most_error_) {
    wrong_.push_back(absl::StrCat(name_, ", token ", steps_, ": logits differ by ", 100 * relative,
                                  " %, and ", 100 * most_error_, " are allowed"));
  }
  JudgeToken(Best(actual), expected);
}

void Agreement::TakeToken(int32_t actual, absl::Span<const float> expected) {
  if (actual >= 0 && actual < static_cast<int32_t>(expected.size())) {
    return JudgeToken(static_cast<size_t>(actual), expected);
  }
  wrong_.push_back(absl::StrCat(name_, ", token ", steps_++, ": ", actual, " is no token"));
}

void Agreement::JudgeToken(size_t actual, absl::Span<const float> expected) {
  const size_t best = Best(expected);
  if (actual == best) {
    ++same_;
  } else if (!(expected[best] - expected[actual] < coarser_ * kRounding)) {
    wrong_.push_back(
        absl::StrCat(name_, ", token ", steps_, ": ", actual, " instead of ", best, ", no tie"));
  }
  ++steps_;
}

void Agreement::Report(PartResult& result) const {
  result.figures.push_back({name_ + "_same_tokens", 100.0 * same_ / std::max(1, steps_), "%"});
  result.figures.push_back({name_ + "_worst_logits_error", 100.0 * worst_error_, "%"});
  result.wrong.insert(result.wrong.end(), wrong_.begin(), wrong_.end());
}

absl::StatusOr<PartResult> CheckParity(worker::Device& device,
                                       const std::vector<NamedConfig>& decoders) {
  PartResult result;
  for (const NamedConfig& named : decoders) {
    const auto digits = named.fp8 == Fp8Is::kInWeights ? DigitsAre::kOfFp8 : DigitsAre::kOfBf16;
    const SeededModel model(named.config, 7, LayerWeightsAre::kOwn, named.head, digits);
    ASSIGN_OR_RETURN(const worker::Weights weights, model.Weights());
    RETURN_IF_ERROR(CompareWithCpu(device, named, weights, result));
  }
  return result;
}

absl::StatusOr<PartResult> CheckFileParity(worker::Device& device, const std::string& path) {
  absl::StatusOr<worker::MappedFile> file = worker::MappedFile::Open(path);
  if (!file.ok()) return NotRun(file.status().message());
  const absl::StatusOr<worker::GgufFile> gguf = worker::ParseGguf(path, file->bytes());
  if (!gguf.ok()) return NotRun(gguf.status().message());
  const absl::StatusOr<worker::ModelConfig> config = worker::ReadModelConfig(*gguf);
  if (!config.ok()) return NotRun(absl::StrCat(path, ": ", std::string(config.status().message())));
  worker::ThreadPool pool({});
  const absl::StatusOr<worker::Weights> weights =
      worker::BindWeights(gguf->tensors, *config, kernels::BestOps(), {.pack = false}, pool);
  if (!weights.ok()) {
    return NotRun(absl::StrCat(path, ": ", std::string(weights.status().message())));
  }
  PartResult result;
  const std::string name = std::filesystem::path(path).stem().string();
  RETURN_IF_ERROR(CompareWithCpu(device, {name.c_str(), *config}, *weights, result));
  return result;
}

}  // namespace rempart::benchmarks
