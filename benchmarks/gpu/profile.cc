// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/profile.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/gpu/inputs.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace rempart::benchmarks {
namespace {

// Starts of a graph between two waits, so that what a wait takes is shared.
constexpr int kStarts = 4;
constexpr char kChangesInputs[] = "advance";

// Whose table was asked for last: its ops have no other way to know.
thread_local const ProfilingDevice* asked = nullptr;

#define REMPART_PROFILE_OP(op, Args)                                           \
  void Profile_##op(const kernels::Args& args, kernels::DeviceStream stream) { \
    if (asked->Takes(#op, 0)) asked->behind().op(args, stream);                \
  }
REMPART_DEVICE_OPS(REMPART_PROFILE_OP)
#undef REMPART_PROFILE_OP

const char* Text(kernels::ProductWay way) {
  switch (way) {
    case kernels::ProductWay::kMatvec:
      return "matvec";
    case kernels::ProductWay::kTiles:
      return "tiles";
    case kernels::ProductWay::kLibrary:
      return "cuBLASLt";
  }
  return "nothing";
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A batch of sequences that have computed their prompts.
class Sequences {
 public:
  Sequences(worker::DeviceTransformer& model, int64_t batch, const ProfileSizes& sizes) {
    const int64_t each = BlocksOf(sizes.prompt_tokens + sizes.steps);
    for (int64_t i = 0; i < batch; ++i) {
      tables_.push_back(BlockTable(i * each, each));
      prompts_.push_back(
          SeededIds(sizes.prompt_tokens, model.config().vocabulary, static_cast<uint64_t>(i) + 1));
    }
  }
  absl::Status Compute(worker::DeviceTransformer& model) {
    for (size_t i = 0; i < prompts_.size(); ++i) {
      worker::StepBatch step;
      step.slices = {{prompts_[i], 0, tables_[i], false}};
      RETURN_IF_ERROR(model.Forward(step, {}));
      sequences_.push_back(
          {prompts_[i].back(), static_cast<int32_t>(prompts_[i].size()), tables_[i], {}});
    }
    return absl::OkStatus();
  }
  absl::Span<const worker::DecodeSequence> sequences() const { return sequences_; }

 private:
  std::vector<std::vector<int32_t>> tables_, prompts_;
  std::vector<worker::DecodeSequence> sequences_;
};

// By kind of op, in the order of the step.
void AddFigures(const std::string& name, const std::vector<StepOp>& step, double whole_micros,
                PartResult& result) {
  struct Kind {
    double micros = 0;
    int count = 0;
    int64_t bytes = 0;
  };
  std::map<std::string, Kind> kinds;
  std::vector<std::string> order;
  double counted = 0;
  for (const StepOp& op : step) {
    Kind& kind = kinds[op.name];
    if (kind.count++ == 0) order.push_back(op.name);
    kind.micros += op.micros;
    kind.bytes += op.weight_bytes;
    counted += op.micros;
  }
  for (const std::string& each : order) {
    const Kind& kind = kinds[each];
    std::string unit = absl::StrFormat("us in %d, %.1f %% of the step", kind.count,
                                       100 * kind.micros / whole_micros);
    if (kind.bytes > 0 && kind.micros > 0) {
      absl::StrAppendFormat(&unit, ", %.0f GB/s of weights",
                            static_cast<double>(kind.bytes) / kind.micros / 1e3);
    }
    result.figures.push_back({absl::StrCat(name, " ", each), kind.micros, unit});
  }
  result.figures.push_back({name + " rest", whole_micros - counted,
                            "us: the next step's inputs, the token's copy, the graph's start"});
  result.figures.push_back({name + " step", whole_micros, "us"});
}

}  // namespace

const kernels::DeviceOps& ProfilingDevice::ops() const {
  static constexpr kernels::DeviceOps kOps = {.name = "profiled",
#define REMPART_FILL_OP(op, Args) .op = Profile_##op,
                                              REMPART_DEVICE_OPS(REMPART_FILL_OP)
#undef REMPART_FILL_OP
  };
  asked = this;
  return kOps;
}

bool ProfilingDevice::Takes(const std::string& name, int64_t weight_bytes) const {
  if (repeats_ == 0) return true;
  seen_.push_back({name, weight_bytes});
  return most_ops_ < 0 || static_cast<int64_t>(seen_.size()) <= most_ops_;
}

absl::Status ProfilingDevice::Matmul(const kernels::DeviceMatmulArgs& args) {
  const std::string name =
      absl::StrCat("product ", args.w.rows, "x", args.w.cols, " by ", Text(device_->WayOf(args)));
  if (!Takes(name, kernels::DeviceMatrixBytes(args.w))) return absl::OkStatus();
  return device_->Matmul(args);
}

absl::StatusOr<double> ProfilingDevice::TimeFirst(absl::FunctionRef<absl::Status()> record,
                                                  int64_t ops) {
  most_ops_ = ops;
  seen_.clear();
  absl::StatusOr<std::unique_ptr<worker::DeviceGraph>> graph = device_->Record(record);
  most_ops_ = -1;
  RETURN_IF_ERROR(graph.status());
  std::vector<double> times;
  for (int i = 0; i < repeats_ + 1; ++i) {
    const absl::Time start = SteadyNow();
    for (int j = 0; j < kStarts; ++j) RETURN_IF_ERROR(device_->Start(**graph));
    RETURN_IF_ERROR(device_->Finish());
    if (i > 0) times.push_back(SecondsSince(start) / kStarts);  // the first brings it there
  }
  return Median(std::move(times));
}

absl::StatusOr<std::unique_ptr<worker::DeviceGraph>> ProfilingDevice::Record(
    absl::FunctionRef<absl::Status()> record) {
  if (repeats_ > 0) {
    ASSIGN_OR_RETURN(double before, TimeFirst(record, 0));
    std::vector<StepOp> step = seen_;
    const auto end = std::find_if(step.begin(), step.end(),
                                  [](const StepOp& op) { return op.name == kChangesInputs; });
    step.erase(end, step.end());
    for (size_t i = 0; i < step.size(); ++i) {
      ASSIGN_OR_RETURN(const double with, TimeFirst(record, static_cast<int64_t>(i) + 1));
      step[i].micros = (with - before) * 1e6;
      before = with;
    }
    step_ = std::move(step);
  }
  return device_->Record(record);
}

absl::StatusOr<PartResult> MeasureProfile(const DeviceOpener& open,
                                          const worker::ModelConfig& config,
                                          const worker::DeviceModelOptions& options,
                                          const ProfileSizes& sizes) {
  ProfilingDevice* device = nullptr;
  const DeviceOpener open_profiling = [&]() -> absl::StatusOr<std::unique_ptr<worker::Device>> {
    ASSIGN_OR_RETURN(std::unique_ptr<worker::Device> behind, open());
    auto made = std::make_unique<ProfilingDevice>(std::move(behind));
    device = made.get();
    return made;
  };
  ASSIGN_OR_RETURN(const Ready ready, GetReady(open_profiling, config, options));
  PartResult result;
  result.wrong = ready.times.wrong;
  for (const int64_t batch : sizes.batches) {
    Sequences sequences(*ready.model, batch, sizes);
    RETURN_IF_ERROR(sequences.Compute(*ready.model));
    std::vector<int32_t> tokens;
    device->TimeRecords(sizes.repeats);
    RETURN_IF_ERROR(ready.model->DecodeMany(sequences.sequences(), sizes.steps, &tokens));
    device->TimeRecords(0);
    const std::string name = absl::StrCat("batch ", batch);
    if (device->step().empty()) {
      result.wrong.push_back(name + ": the step was not recorded, so nothing is known of its ops");
      continue;
    }
    const absl::Time start = SteadyNow();
    RETURN_IF_ERROR(ready.model->DecodeMany(sequences.sequences(), sizes.steps, &tokens));
    const double micros = SecondsSince(start) / static_cast<double>(sizes.steps) * 1e6;
    AddFigures(name, device->step(), micros, result);
  }
  return result;
}

}  // namespace rempart::benchmarks
