// SPDX-License-Identifier: Apache-2.0
#include "worker/api/load_on_device.h"

#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "worker/api/worker_process.h"
#include "worker/device/cpu_count.h"

namespace rempart::worker {
namespace {

// NCCL's buffers and channels, at most: what they take is not known before they are made.
constexpr int64_t kCommunicatorBytes = int64_t{1} << 30;
// More do not make a disk faster.
constexpr int kMaxLoadThreads = 8;
// The driver may know why a GPU broke (an XID), and whoever watches it ends the process then with
// that reason. It comes within milliseconds of the error.
constexpr absl::Duration kForTheCause = absl::Milliseconds(500);

class RankOnDevice : public RankModel, private StepPipeline {
 public:
  RankOnDevice(DevicePart part, WorkerStatus* status) : part_(std::move(part)), status_(status) {}

  int32_t vocabulary_size() const override {
    return static_cast<int32_t>(part_.transformer->config().vocabulary);
  }

  // The cache was made with the rest and holds at least what the group has agreed on. What an
  // earlier epoch left in it is written over before it is read.
  absl::Status Begin(Communicator* communicator, int32_t kv_blocks) override {
    const int64_t has = part_.transformer->plan().kv_blocks;
    if (kv_blocks > has) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the GPU's KV cache has ", has, " blocks, not ", kv_blocks));
    }
    MutexLock lock(&mu_);
    part_.transformer->DropSteps();
    part_.transformer->SetGroup(communicator);
    return absl::OkStatus();
  }

  Device* device() override { return part_.device.get(); }
  void SetDeviceCommunicator(DeviceCommunicator* communicator) override {
    MutexLock lock(&mu_);
    part_.transformer->SetCommunicator(communicator);
  }
  const CollectiveBuffer* exchange() override { return &part_.transformer->exchange(); }

  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn) override {
    MutexLock lock(&mu_);
    return EndIfBroken(part_.transformer->Forward(batch, logits, drawn));
  }

  // Stages hand over step by step.
  StepPipeline* pipeline() override { return part_.transformer->is_staged() ? nullptr : this; }

 private:
  absl::StatusOr<bool> Start(const StepBatch& batch) override {
    MutexLock lock(&mu_);
    absl::StatusOr<bool> started = part_.transformer->Start(batch, /*draws=*/true);
    EndIfBroken(started.status()).IgnoreError();
    return started;
  }
  absl::Status Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn) override {
    MutexLock lock(&mu_);
    return EndIfBroken(part_.transformer->Finish(logits, drawn));
  }

  absl::Status EndIfBroken(const absl::Status& status) {
    if (status.ok()) return status;
    absl::Status broken = part_.device->Check();
    if (broken.ok() && IsDeviceUnavailable(status)) broken = status;
    if (!broken.ok()) {
      LogError("worker", "the GPU is broken: ending the process", {{"error", broken.message()}});
      status_->Fail("Failed",
                    absl::StrCat("computing on the GPU failed, and the worker starts again: ",
                                 std::string(broken.message())));
      absl::SleepFor(kForTheCause);
      _exit(kExitRuntime);
    }
    return status;
  }

  // The communicator is set and taken away by another thread than the one that computes, between
  // steps.
  Mutex mu_;
  DevicePart part_;
  WorkerStatus* const status_;
};

}  // namespace

absl::StatusOr<std::vector<DevicePart>> OpenGpus(const WorkerSettings& settings,
                                                 const GpuOpener& open_gpu) {
  std::vector<DevicePart> parts(static_cast<size_t>(settings.ranks_per_pod));
  for (size_t i = 0; i < parts.size(); ++i) {
    ASSIGN_OR_RETURN(parts[i].device, open_gpu(settings.first_gpu + static_cast<int>(i)));
    LogInfo("worker", "opened a GPU", {{"device", parts[i].device->Describe()}});
  }
  return parts;
}

DeviceModelOptions DeviceOptions(const WorkerSettings& settings, int64_t context_length) {
  const EngineSettings& engine = settings.engine;
  DeviceModelOptions options;
  options.context_length = context_length;
  options.max_step_tokens = engine.max_step_tokens;
  options.max_sequences = engine.max_sequences;
  options.kv_is_fp8 = engine.kv_cache_type == "fp8";
  options.kv_bytes = engine.kv_cache_bytes;
  if (settings.tensor_parallel > 1) options.reserve_bytes += kCommunicatorBytes;
  options.load_threads = std::clamp(UsableCpuCount() / settings.ranks_per_pod, 1, kMaxLoadThreads);
  return options;
}

absl::Status LoadOnDevice(const ModelConfig& config, const Weights& weights,
                          const DeviceModelOptions& options, CollectiveLibrary* library,
                          const UploadOptions& upload, DevicePart& part) {
  ASSIGN_OR_RETURN(part.transformer, DeviceTransformer::Create(*part.device, config, weights,
                                                               options, upload, library));
  return absl::OkStatus();
}

std::unique_ptr<RankModel> MakeRankOnDevice(DevicePart part, WorkerStatus* status) {
  return std::make_unique<RankOnDevice>(std::move(part), status);
}

}  // namespace rempart::worker
