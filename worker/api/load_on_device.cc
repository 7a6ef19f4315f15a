// SPDX-License-Identifier: Apache-2.0
#include "worker/api/load_on_device.h"

#include <unistd.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/api/worker_process.h"

namespace rempart::worker {
namespace {

class RankOnDevice : public RankModel {
 public:
  explicit RankOnDevice(DevicePart part) : part_(std::move(part)) {}

  int32_t vocabulary_size() const override {
    return static_cast<int32_t>(part_.transformer->config().vocabulary);
  }

  // The cache was made with the rest and holds at least what the group has agreed on. What an
  // earlier epoch left in it is written over before it is read.
  absl::Status Begin(Communicator* communicator, int32_t kv_blocks) override {
    if (communicator != nullptr) {
      return absl::UnimplementedError("groups of several ranks on GPUs are not served yet");
    }
    const int64_t has = part_.transformer->plan().kv_blocks;
    if (kv_blocks <= has) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("the GPU's KV cache has ", has, " blocks, not ", kv_blocks));
  }

  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits) override {
    const absl::Status status = part_.transformer->Forward(batch, logits);
    if (status.ok()) return status;
    if (const absl::Status broken = part_.device->Check(); !broken.ok()) {
      LogError("worker", "the GPU is broken: ending the process", {{"error", broken.message()}});
      _exit(kExitRuntime);
    }
    return status;
  }

 private:
  DevicePart part_;
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

DeviceModelOptions DeviceOptions(const EngineSettings& settings, int64_t context_length) {
  DeviceModelOptions options;
  options.context_length = context_length;
  options.max_step_tokens = settings.max_step_tokens;
  options.max_sequences = settings.max_sequences;
  options.kv_is_fp8 = settings.kv_cache_type == "fp8";
  options.kv_bytes = settings.kv_cache_bytes;
  return options;
}

absl::Status LoadOnDevice(const ModelConfig& config, const Weights& weights,
                          const DeviceModelOptions& options, const UploadProgress& on_progress,
                          DevicePart& part) {
  ASSIGN_OR_RETURN(part.transformer,
                   DeviceTransformer::Create(*part.device, config, weights, options, on_progress));
  return absl::OkStatus();
}

std::unique_ptr<RankModel> MakeRankOnDevice(DevicePart part) {
  return std::make_unique<RankOnDevice>(std::move(part));
}

}  // namespace rempart::worker
