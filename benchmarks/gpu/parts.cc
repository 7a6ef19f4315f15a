// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/parts.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "benchmarks/gpu/conformance/harness.h"
#include "benchmarks/gpu/inputs.h"
#include "benchmarks/gpu/seeded_model.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace rempart::benchmarks {
namespace {

using worker::DecodeSequence;
using worker::DeviceTransformer;
using worker::StepBatch;

// Sequences that have computed a prompt each and are about to decode.
class Decoding {
 public:
  Decoding(DeviceTransformer& model, const SpeedSizes& sizes, int64_t batch)
      : model_(model), steps_(sizes.decode_steps) {
    const int64_t each = BlocksOf(sizes.prompt_tokens + steps_);
    for (int64_t i = 0; i < batch; ++i) {
      tables_.push_back(BlockTable(i * each, each));
      prompts_.push_back(
          SeededIds(sizes.prompt_tokens, model.config().vocabulary, static_cast<uint64_t>(i) + 1));
    }
    blocks_ = batch * each;
  }
  int64_t blocks() const { return blocks_; }

  absl::Status ComputePrompts() {
    for (size_t i = 0; i < prompts_.size(); ++i) {
      StepBatch step;
      step.slices = {{prompts_[i], 0, tables_[i], false}};
      RETURN_IF_ERROR(model_.Forward(step, {}));
      sequences_.push_back(
          {prompts_[i].back(), static_cast<int32_t>(prompts_[i].size()), tables_[i], {}});
    }
    return absl::OkStatus();
  }

  // Seconds of all steps, queued at once.
  absl::StatusOr<double> Decode(std::vector<int32_t>* tokens) {
    const absl::Time start = SteadyNow();
    RETURN_IF_ERROR(model_.DecodeMany(sequences_, steps_, tokens));
    return SecondsSince(start);
  }

  // The same tokens, each fetched before the next step begins.
  absl::StatusOr<double> DecodeOneByOne() {
    std::vector<DecodeSequence> sequences = sequences_;
    std::vector<int32_t> tokens;
    const absl::Time start = SteadyNow();
    for (int64_t step = 0; step < steps_; ++step) {
      RETURN_IF_ERROR(model_.DecodeMany(sequences, 1, &tokens));
      for (size_t i = 0; i < sequences.size(); ++i) {
        sequences[i].token_id = tokens[i];
        ++sequences[i].position;
      }
    }
    return SecondsSince(start);
  }

 private:
  DeviceTransformer& model_;
  const int64_t steps_;
  int64_t blocks_ = 0;
  std::vector<std::vector<int32_t>> tables_, prompts_;
  std::vector<DecodeSequence> sequences_;
};

// What one step at batch 1 must read, in the middle of the decode: all weights but the embedding,
// of which it looks up a row, and the sequence's keys and values.
double BytesPerToken(const DeviceTransformer& model, const SpeedSizes& sizes) {
  const worker::ModelConfig& config = model.config();
  const int64_t embedding = config.vocabulary * config.hidden * 2;
  const double context =
      static_cast<double>(sizes.prompt_tokens) + static_cast<double>(sizes.decode_steps) / 2;
  return static_cast<double>(model.plan().weights_bytes - embedding) +
         context * static_cast<double>(model.plan().kv_block_bytes) / kBlock;
}

// Multiplications and additions: of the layers' products, and of causal attention. The head
// computes one row.
double PrefillFlops(const worker::ModelConfig& config, int64_t tokens) {
  const auto n = static_cast<double>(tokens);
  const auto queries = static_cast<double>(config.heads * config.head_dim);
  const auto keys = static_cast<double>(config.kv_heads * config.head_dim);
  const auto hidden = static_cast<double>(config.hidden);
  const double products =
      hidden * (2 * queries + 2 * keys) + 3 * hidden * static_cast<double>(config.ffn);
  const double layer = 2 * n * products + 2 * n * n * queries;
  return layer * static_cast<double>(config.layers.size()) +
         2 * hidden * static_cast<double>(config.vocabulary);
}

// Dense products with F32 sums, in TFLOP/s, from NVIDIA's data sheets: what they say "with
// sparsity" is halved. They stand for clocks below the highest that the driver names. A GPU that
// cannot multiply FP8 computes FP8 weights in BF16.
struct DataSheet {
  const char* name;  // what the driver's begins with, after "NVIDIA"
  int compute_major, compute_minor;
  int multiprocessors;  // a part of a GPU (MIG) has fewer
  double bf16, fp8;
};
constexpr DataSheet kDataSheets[] = {
    {"A100", 8, 0, 108, 312, 312},      {"L40S", 8, 9, 142, 362, 733},
    {"L4", 8, 9, 58, 121, 242},         {"H100 PCIe", 9, 0, 114, 756, 1513},
    {"H100 NVL", 9, 0, 132, 835, 1671}, {"H100 80GB HBM3", 9, 0, 132, 989, 1979},  // SXM
    {"H200 NVL", 9, 0, 132, 835, 1671}, {"H200", 9, 0, 132, 989, 1979},
    {"B200", 10, 0, 148, 2250, 4500},
};

// Of one multiprocessor in one clock, from the architectures' white papers, at the highest clock.
double FlopsByClock(const worker::CudaDeviceInfo& card, ProductType type) {
  static const auto* const bf16_per_clock = new std::map<std::pair<int, int>, double>{
      {{8, 0}, 2048}, {{8, 6}, 1024}, {{8, 9}, 1024}, {{9, 0}, 4096}, {{10, 0}, 8192}};
  const auto found = bf16_per_clock->find({card.compute_major, card.compute_minor});
  if (found == bf16_per_clock->end()) return 0;
  const bool is_double = type == ProductType::kFP8 && found->first >= std::pair(8, 9);
  return (is_double ? 2 : 1) * found->second * card.multiprocessors *
         static_cast<double>(card.clock_hz);
}

absl::Status MeasureDecode(DeviceTransformer& model, const Peaks& peaks, const SpeedSizes& sizes,
                           PartResult& result) {
  for (const int64_t batch : sizes.batches) {
    Decoding decoding(model, sizes, batch);
    if (decoding.blocks() > model.plan().kv_blocks) continue;
    RETURN_IF_ERROR(decoding.ComputePrompts());
    std::vector<int32_t> first, tokens;
    RETURN_IF_ERROR(decoding.Decode(&first).status());  // makes the graphs
    ASSIGN_OR_RETURN(const double seconds, decoding.Decode(&tokens));
    const std::string name = absl::StrCat("decode_", batch);
    if (tokens != first) result.wrong.push_back(name + ": other tokens the second time");
    const double step = seconds / static_cast<double>(sizes.decode_steps);
    result.figures.push_back({name + "_tokens_per_s", static_cast<double>(batch) / step, "tok/s"});
    if (batch != 1) continue;
    const double bytes_per_second = BytesPerToken(model, sizes) / step;
    result.figures.push_back({name + "_read", bytes_per_second / 1e9, "GB/s"});
    if (peaks.bytes_per_second > 0) {
      result.figures.push_back({name + "_of_memory_bound",
                                100 * bytes_per_second / peaks.bytes_per_second, "%; target 80"});
    }
    ASSIGN_OR_RETURN(const double one_by_one, decoding.DecodeOneByOne());
    result.figures.push_back(
        {"host_gap", (one_by_one - seconds) / static_cast<double>(sizes.decode_steps) * 1e6,
         "us; target: at most 20"});
  }
  return absl::OkStatus();
}

absl::Status MeasurePrefill(DeviceTransformer& model, const Peaks& peaks, const SpeedSizes& sizes,
                            PartResult& result) {
  const std::vector<int32_t> ids = SeededIds(sizes.prefill_tokens, model.config().vocabulary, 5);
  const std::vector<int32_t> table = BlockTable(0, BlocksOf(sizes.prefill_tokens));
  StepBatch step;
  step.slices = {{ids, 0, table, true}};
  std::vector<float> logits(static_cast<size_t>(model.config().vocabulary));
  RETURN_IF_ERROR(model.Forward(step, absl::MakeSpan(logits)));
  std::vector<double> times;
  for (int i = 0; i < sizes.prefill_repeats; ++i) {
    const absl::Time start = SteadyNow();
    RETURN_IF_ERROR(model.Forward(step, absl::MakeSpan(logits)));
    times.push_back(SecondsSince(start));
  }
  std::sort(times.begin(), times.end());
  const double seconds = times[times.size() / 2];
  const std::string name = absl::StrCat("prefill_", sizes.prefill_tokens);
  result.figures.push_back(
      {name + "_tokens_per_s", static_cast<double>(sizes.prefill_tokens) / seconds, "tok/s"});
  const double flops = PrefillFlops(model.config(), sizes.prefill_tokens) / seconds;
  result.figures.push_back({name + "_computed", flops / 1e12, "TFLOP/s"});
  if (peaks.flops > 0) {
    result.figures.push_back({name + "_of_peak", 100 * flops / peaks.flops, "%"});
    result.figures.push_back({"peak", peaks.flops / 1e12, "TFLOP/s, of " + peaks.flops_are_of});
    result.figures.push_back(
        {"highest_clock", static_cast<double>(peaks.clock_hz) / 1e6, "MHz, as the driver says"});
  }
  return absl::OkStatus();
}

}  // namespace

Peaks PeaksOf(const worker::CudaDeviceInfo& card, ProductType type) {
  Peaks peaks;
  peaks.bytes_per_second = static_cast<double>(card.memory_bytes_per_second);
  peaks.clock_hz = card.clock_hz;
  for (const DataSheet& sheet : kDataSheets) {
    const bool is_this = card.compute_major == sheet.compute_major &&
                         card.compute_minor == sheet.compute_minor &&
                         card.multiprocessors == sheet.multiprocessors &&
                         absl::StartsWith(card.name, absl::StrCat("NVIDIA ", sheet.name));
    if (!is_this) continue;
    peaks.flops = 1e12 * (type == ProductType::kFP8 ? sheet.fp8 : sheet.bf16);
    peaks.flops_are_of = absl::StrCat("the data sheet of the ", sheet.name);
    return peaks;
  }
  peaks.flops = FlopsByClock(card, type);
  peaks.flops_are_of = "the units' number and highest clock, no data sheet";
  return peaks;
}

absl::StatusOr<PartResult> CheckConformance(worker::Device& device) {
  std::vector<Finding> findings;
  const std::vector<OpError> errors = RunConformance(device, findings);
  PartResult result;
  std::map<std::string, std::pair<double, int>> by_op;
  for (const Finding& finding : findings) {
    auto& [worst, count] = by_op[finding.op];
    worst = std::max(worst, finding.percent);
    ++count;
    if (finding.percent <= 100) continue;
    result.wrong.push_back(absl::StrCat(finding.op, " ", finding.what, ": ", finding.percent,
                                        " % of what is allowed"));
  }
  for (const auto& [op, seen] : by_op) {
    result.figures.push_back(
        {op, seen.first, absl::StrCat("% of tolerance, ", seen.second, " comparisons")});
  }
  for (const OpError& error : errors) {
    result.wrong.push_back(absl::StrCat(error.op, ": ", std::string(error.status.message())));
  }
  return result;
}

absl::StatusOr<PartResult> MeasureSpeed(DeviceTransformer& model, const Peaks& peaks,
                                        const SpeedSizes& sizes) {
  PartResult result;
  RETURN_IF_ERROR(MeasureDecode(model, peaks, sizes, result));
  RETURN_IF_ERROR(MeasurePrefill(model, peaks, sizes, result));
  return result;
}

absl::StatusOr<Ready> GetReady(const DeviceOpener& open, const worker::ModelConfig& config,
                               const worker::DeviceModelOptions& options) {
  const SeededModel model(config, 3, LayerWeightsAre::kShared);
  ASSIGN_OR_RETURN(const worker::Weights weights, model.Weights());
  Ready ready;
  absl::Time start = SteadyNow();
  ASSIGN_OR_RETURN(ready.device, open());
  const double opened = SecondsSince(start);
  start = SteadyNow();
  ASSIGN_OR_RETURN(ready.model, DeviceTransformer::Create(*ready.device, config, weights, options));
  const double loaded = SecondsSince(start);
  start = SteadyNow();
  const std::vector<int32_t> ids = {1}, table = {0};
  StepBatch step;
  step.slices = {{ids, 0, table, true}};
  std::vector<float> logits(static_cast<size_t>(config.vocabulary));
  RETURN_IF_ERROR(ready.model->Forward(step, absl::MakeSpan(logits)));
  const double first = SecondsSince(start);
  if (!std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); })) {
    ready.times.wrong.emplace_back("the first token's logits are not finite");
  }
  const auto bytes = static_cast<double>(ready.model->plan().weights_bytes);
  ready.times.figures = {{"open", opened, "s"},
                         {"copy_weights", loaded, "s"},
                         {"copied", bytes / 1e9, "GB"},
                         {"first_token", first, "s"},
                         {"ready", opened + loaded + first, "s"}};
  return ready;
}

}  // namespace rempart::benchmarks
