// SPDX-License-Identifier: Apache-2.0
#include "worker/api/load_model.h"

#include <malloc.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "worker/api/load_on_device.h"
#include "worker/api/model_text.h"
#include "worker/api/source_check.h"
#include "worker/device/cpu_count.h"
#include "worker/device/memory_limit.h"
#include "worker/device/numa.h"
#include "worker/model/draw_greedy.h"
#include "worker/model/host_memory.h"
#include "worker/model/model_source.h"
#include "worker/model/partition.h"
#include "worker/model/repack_cache.h"
#include "worker/model/rope.h"
#include "worker/model/transformer.h"
#include "worker/model/weight_memory.h"

namespace rempart::worker {
namespace {

constexpr int32_t kDefaultContext = 8192;
constexpr int32_t kLeastContext = 2;  // of Engine

// What one rank computes with on CPU, or loads with for a GPU.
struct RankPart {
  RankPart(int threads, std::vector<int32_t> near_cpus)
      : cpus(std::move(near_cpus)), pool({.threads = threads, .cpus = cpus}) {}

  const std::vector<int32_t> cpus;  // of its NUMA node; empty: wherever the system puts it
  ThreadPool pool;
  Weights weights;
};

// Everything that Forward reads, in the order of its construction.
struct ModelFile {
  std::optional<RepackCache> cache;
  ModelSource source;
  const kernels::Ops* ops = nullptr;
  TransformerOptions options;
  std::vector<std::unique_ptr<RankPart>> parts;  // by rank of this pod
  CollectiveLibrary* collectives = nullptr;      // links the GPUs of a stage; null: each has one
  std::vector<DevicePart> gpus;                  // by rank of this pod; empty on CPU
  PackOptions pack;                              // what `parts` are made with
  FileHashes hashes;                             // of `source`, where the first rank made them
};

// A rank's share of the model; the check that runs later has another.
class RankOfFile : public RankModel {
 public:
  RankOfFile(std::shared_ptr<ModelFile> model, size_t part)
      : model_(std::move(model)), part_(*model_->parts[part]) {}
  int32_t vocabulary_size() const override {
    return static_cast<int32_t>(model_->source.config.vocabulary);
  }
  absl::Status Begin(Communicator* communicator, int32_t kv_blocks) override {
    transformer_.reset();  // before there are two KV caches
    TransformerOptions options = model_->options;
    options.kv_blocks = kv_blocks;
    absl::Status made;
    RunBound(part_.cpus, [&] { made = Make(options); });
    RETURN_IF_ERROR(made);
    transformer_->SetCommunicator(communicator);
    return absl::OkStatus();
  }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn) override {
    // The thread that works along with the pool, which is another after each new epoch.
    if (const auto caller = std::this_thread::get_id(); caller != bound_) {
      BindThisThread(part_.cpus);
      bound_ = caller;
    }
    RETURN_IF_ERROR(transformer_->Forward(batch, logits));
    DrawGreedy(batch, logits, vocabulary_size(), *model_->ops, part_.pool, drawn);
    return absl::OkStatus();
  }

 private:
  absl::Status Make(const TransformerOptions& options) {
    ASSIGN_OR_RETURN(transformer_, Transformer::Create(model_->source.config, part_.weights,
                                                       *model_->ops, part_.pool, options));
    return absl::OkStatus();
  }

  const std::shared_ptr<ModelFile> model_;
  RankPart& part_;
  std::unique_ptr<Transformer> transformer_;
  std::thread::id bound_;  // touched by whoever calls Forward
};

// The two roles of one ModelText, which both interfaces own alone.
class SharedVocabulary : public Vocabulary {
 public:
  explicit SharedVocabulary(std::shared_ptr<const ModelText> text) : text_(std::move(text)) {}
  std::string TokenBytes(int32_t token_id) const override { return text_->TokenBytes(token_id); }
  bool EndsGeneration(int32_t token_id) const override { return text_->EndsGeneration(token_id); }

 private:
  std::shared_ptr<const ModelText> text_;
};

class SharedEncoder : public PromptEncoder {
 public:
  explicit SharedEncoder(std::shared_ptr<const ModelText> text) : text_(std::move(text)) {}
  int32_t vocabulary_size() const override { return text_->vocabulary_size(); }
  absl::StatusOr<std::vector<int32_t>> EncodeChat(absl::string_view messages_json,
                                                  absl::string_view variables_json,
                                                  bool add_generation_prompt) const override {
    return text_->EncodeChat(messages_json, variables_json, add_generation_prompt);
  }
  SamplingParams default_sampling() const override { return text_->default_sampling(); }
  absl::StatusOr<std::vector<int32_t>> EncodeText(absl::string_view text) const override {
    return text_->EncodeText(text);
  }

 private:
  std::shared_ptr<const ModelText> text_;
};

absl::StatusOr<int32_t> ContextLength(const EngineSettings& settings, const ModelConfig& config) {
  const auto trained = static_cast<int32_t>(
      std::min<int64_t>(config.context_length, std::numeric_limits<int32_t>::max()));
  if (settings.context_length > trained) {
    return absl::FailedPreconditionError(
        absl::StrCat("engine.contextLength is ", settings.context_length,
                     ", but the model was made for ", trained, ": set at most ", trained));
  }
  if (trained < kLeastContext) {
    return absl::InvalidArgumentError(
        absl::StrCat("the context length is ", trained, ": a model needs at least ", kLeastContext,
                     ", a token to read and one to write; convert it with a current converter"));
  }
  if (settings.context_length == 0) return std::min(trained, kDefaultContext);
  if (settings.context_length >= kLeastContext) return settings.context_length;
  return absl::FailedPreconditionError(absl::StrCat(
      "engine.contextLength is ", settings.context_length, ": set at least ", kLeastContext));
}

// Of the index-th rank of this pod.
RankPosition PositionInGroup(const WorkerSettings& settings, int index) {
  return PositionOf(settings.pod_index * settings.ranks_per_pod + index, settings.tensor_parallel,
                    settings.pipeline_parallel);
}

absl::StatusOr<PackOptions> PackOptionsOf(const WorkerSettings& settings, const ModelFile& model,
                                          WorkerStatus& status) {
  PackOptions pack;
  pack.pack = !model.options.exact && model.gpus.empty();
  if (!model.gpus.empty()) pack.expand = ExpandQuantized::kNever;
  pack.files = model.source.files;
  pack.on_progress = [&status](int64_t done, int64_t total) { status.SetLoaded(done, total); };
  if (model.cache) {
    pack.cache = &*model.cache;
    ASSIGN_OR_RETURN(pack.source, SampleModel(settings.model_path));
  }
  return pack;
}

// Views of the file, and what an earlier start left; copies nothing.
absl::Status BindParts(const WorkerSettings& settings, ModelFile& model, WorkerStatus& status) {
  const MatrixCut cut = model.gpus.empty() ? MatrixCut::kOutputs : MatrixCut::kPairs;
  for (size_t i = 0; i < model.parts.size(); ++i) {
    RankPart& part = *model.parts[i];
    const RankPosition of = PositionInGroup(settings, static_cast<int>(i));
    absl::StatusOr<Weights> weights;
    RunBound(part.cpus, [&] {
      weights = BindTensors(model.source.tensors, model.source.config, *model.ops, of, cut);
    });
    RETURN_IF_ERROR(weights.status());
    part.weights = *std::move(weights);
    FindRepacked(*model.ops, model.pack, part.weights);
    status.AddBytesRead(part.weights.bytes_read);
  }
  return absl::OkStatus();
}

absl::Status CopyParts(ModelFile& model, WorkerStatus& status) {
  const absl::Time begin = SteadyNow();
  for (const auto& part : model.parts) {
    absl::Status copied;
    RunBound(part->cpus,
             [&] { copied = CopyWeights(*model.ops, model.pack, part->pool, part->weights); });
    RETURN_IF_ERROR(copied);
  }
  const int64_t bytes = status.snapshot().weight_bytes_read;
  status.SetLoaded(bytes, bytes);
  const Weights& weights = model.parts[0]->weights;
  status.AddStartPart(weights.from_cache ? "map" : "repack", SteadyNow() - begin);
  // Only rows of the embedding and small vectors are read from the file from here on.
  if (!weights.packed.bytes().empty() || !weights.expanded.bytes().empty()) {
    for (const MappedFile& file : model.source.files) file.DropResidentPages();
  }
  return absl::OkStatus();
}

// How far several ranks have got, each reporting from a thread of its own.
class SharedProgress {
 public:
  SharedProgress(size_t ranks, WorkerStatus& status) : ranks_(ranks), status_(status) {}
  void Report(size_t rank, int64_t done, int64_t total) {
    MutexLock lock(&mu_);
    ranks_[rank] = {done, total};
    int64_t all_done = 0, all = 0;
    for (const auto& [rank_done, rank_total] : ranks_) {
      all_done += rank_done;
      all += rank_total;
    }
    status_.SetLoaded(all_done, all);
  }

 private:
  Mutex mu_;
  std::vector<std::pair<int64_t, int64_t>> ranks_ ABSL_GUARDED_BY(mu_);
  WorkerStatus& status_;
};

// What the rank takes that takes most, before any of it is taken: whoever places the pods should
// know it above all when it does not fit.
absl::Status TellNeeds(const DeviceModelOptions& options, const ModelFile& model,
                       WorkerStatus& status) {
  DeviceMemoryNeeds most;
  for (const auto& part : model.parts) {
    ASSIGN_OR_RETURN(const int64_t bytes,
                     DeviceWeightsBytes(model.source.config, part->weights, options));
    const DeviceMemoryNeeds needs =
        NeedsOfRank(model.source.config, bytes, options, part->weights.partition.of);
    if (needs.sum() > most.sum()) most = needs;
  }
  status.SetRankMemory(most);
  return absl::OkStatus();
}

// To all GPUs at once, which give up when one of them fails. The first one's rank hashes the files
// for all.
absl::Status LoadOnGpus(const DeviceModelOptions& options, bool wants_hash, ModelFile& model,
                        WorkerStatus& status) {
  SharedProgress progress(model.parts.size(), status);
  std::stop_source give_up;
  std::vector<absl::Status> loaded(model.parts.size());
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < model.parts.size(); ++i) {
      threads.emplace_back([&, i] {
        UploadOptions upload;
        upload.files = model.source.files;
        upload.hash_files = wants_hash && i == 0;
        upload.stop = give_up.get_token();
        upload.on_progress = [&, i](int64_t done, int64_t total) {
          progress.Report(i, done, total);
        };
        loaded[i] = LoadOnDevice(model.source.config, model.parts[i]->weights, options,
                                 model.collectives, upload, model.gpus[i]);
        if (!loaded[i].ok()) give_up.request_stop();
      });
    }
  }
  absl::Status given_up;
  for (const absl::Status& status_of_rank : loaded) {
    if (!absl::IsCancelled(status_of_rank)) RETURN_IF_ERROR(status_of_rank);
    given_up.Update(status_of_rank);
  }
  return given_up;
}

// The weights go to the GPUs, each with as many KV blocks as it has room for.
absl::Status PrepareOnGpus(const WorkerSettings& settings, ModelFile& model, EngineOptions& engine,
                           WorkerStatus& status) {
  absl::Time begin = SteadyNow();
  ASSIGN_OR_RETURN(model.pack, PackOptionsOf(settings, model, status));
  RETURN_IF_ERROR(BindParts(settings, model, status));
  status.AddStartPart("bind", SteadyNow() - begin);
  begin = SteadyNow();
  const DeviceModelOptions options = DeviceOptions(settings, engine.context_length);
  RETURN_IF_ERROR(TellNeeds(options, model, status));
  const bool wants_hash = !settings.model_digest.empty();
  RETURN_IF_ERROR(LoadOnGpus(options, wants_hash, model, status));
  int64_t blocks = std::numeric_limits<int32_t>::max();
  StreamTimes slowest;
  for (const DevicePart& gpu : model.gpus) {
    const StreamTimes& times = gpu.transformer->upload_times();
    blocks = std::min(blocks, gpu.transformer->plan().kv_blocks);
    slowest.read = std::max(slowest.read, times.read);
    slowest.hash = std::max(slowest.hash, times.hash);
    slowest.wait = std::max(slowest.wait, times.wait);
  }
  engine.blocks_total = static_cast<int32_t>(blocks);
  status.AddStartPart("read", slowest.read);
  if (wants_hash) status.AddStartPart("hash", slowest.hash);
  status.AddStartPart("copy", slowest.wait);
  status.AddStartPart("upload", SteadyNow() - begin);
  const std::vector<Sha256>& hashes = model.gpus[0].transformer->file_hashes();
  for (size_t i = 0; i < hashes.size(); ++i) {
    model.hashes[model.source.files[i].path()] = hashes[i];
  }
  // Nothing is read from them any more.
  for (const MappedFile& file : model.source.files) file.DropResidentPages();
  return absl::OkStatus();
}

// Of all ranks of this pod.
HostMemoryNeeds NeedsOfPod(const WorkerSettings& settings, const EngineOptions& engine,
                           const ModelFile& model) {
  const ModelConfig& config = model.source.config;
  HostMemoryNeeds needs;
  std::vector<Weights*> ranks;
  for (const auto& part : model.parts) {
    const RankPosition& of = part->weights.partition.of;
    ranks.push_back(&part->weights);
    needs.workspace_bytes += WorkspaceBytes(config, model.options, of);
    needs.kv_block_bytes += KvBytesPerBlock(config, model.options.kv_type, of);
  }
  needs.weights = MemoryOf(*model.ops, model.pack, ranks);
  needs.vocabulary = config.vocabulary;
  needs.context_length = engine.context_length;
  needs.max_sequences = settings.engine.max_sequences;
  needs.kv_bytes = settings.engine.kv_cache_bytes;
  return needs;
}

// Binds the weights and shares out memory; nothing large has been taken after it. `use` as it was
// before anything of the model was there.
absl::Status PlanOnCpu(const WorkerSettings& settings, const MemoryUse& use, ModelFile& model,
                       EngineOptions& engine, WorkerStatus& status) {
  const EngineSettings& wanted = settings.engine;
  const std::optional<kernels::DType> kv_type = KvType(wanted.kv_cache_type);
  if (!kv_type) {
    return absl::InvalidArgumentError(
        absl::StrCat("engine.kvCacheType is \"", wanted.kv_cache_type,
                     "\": on a CPU it must be one of auto, f16, f32, bf16, q8"));
  }
  TransformerOptions& options = model.options;
  options.kv_type = *kv_type;
  options.exact = wanted.exact_arithmetic;
  options.max_step_tokens = wanted.max_step_tokens;
  options.max_step_logits = wanted.max_sequences;
  ASSIGN_OR_RETURN(model.pack, PackOptionsOf(settings, model, status));
  RETURN_IF_ERROR(BindParts(settings, model, status));
  const HostMemoryNeeds needs = NeedsOfPod(settings, engine, model);
  ASSIGN_OR_RETURN(options.kv_blocks, PlanKvBlocks(needs, use));
  engine.blocks_total = static_cast<int32_t>(options.kv_blocks);
  return absl::OkStatus();
}

// Refuses what cannot be served before anything is taken for it.
absl::Status Plan(const WorkerSettings& settings, const MemoryUse& use, ModelFile& model,
                  EngineOptions& engine, WorkerStatus& status) {
  const EngineSettings& wanted = settings.engine;
  ModelConfig& config = model.source.config;
  const RankPosition first = PositionInGroup(settings, 0);
  status.SetShape(AllowedTensorParallel(config), static_cast<int>(config.layers.size()));
  RETURN_IF_ERROR(CheckTensorParallel(config, first.size));
  RETURN_IF_ERROR(CheckPipelineParallel(config, first.stages));
  ASSIGN_OR_RETURN(engine.context_length, ContextLength(wanted, config));
  ChooseRopes(engine.context_length, config);
  engine.limits.max_step_tokens = wanted.max_step_tokens;
  engine.limits.max_sequences = wanted.max_sequences;
  engine.prefix_cache = wanted.prefix_cache;
  engine.max_step_time = absl::Milliseconds(wanted.max_step_milliseconds);
  engine.limits.block_size = static_cast<int32_t>(kernels::kKvBlockTokens);
  // What a GPU has for the model is known when it is there.
  return model.gpus.empty() ? PlanOnCpu(settings, use, model, engine, status) : absl::OkStatus();
}

void OpenCache(const std::string& folder, ModelFile& model) {
  if (folder.empty()) return;
  absl::StatusOr<RepackCache> cache = RepackCache::Open(folder);
  if (cache.ok()) {
    model.cache = *std::move(cache);
  } else {
    LogWarning("worker", cache.status().message());
  }
}

absl::Status CheckLater(const std::string& path, const ModelFile& model,
                        const std::optional<Sha256>& known, std::stop_token stop,
                        WorkerStatus& status) {
  Sha256 digest;
  if (known) {
    digest = *known;
  } else {
    ASSIGN_OR_RETURN(digest, HashModel(path, stop, nullptr));
    status.SetDigest(DigestText(digest));
  }
  if (!model.cache) return absl::OkStatus();
  for (const auto& part : model.parts) {
    RETURN_IF_ERROR(SettleRepacked(path, digest, part->weights, *model.cache, stop));
  }
  return absl::OkStatus();
}

// Runs beside the caller; its time becomes a part of the start.
class Beside {
 public:
  Beside(std::string name, WorkerStatus& status, std::function<absl::Status()> body)
      : thread_([this, name = std::move(name), &status, body = std::move(body)] {
          const absl::Time begin = SteadyNow();
          outcome_ = body();
          status.AddStartPart(name, SteadyNow() - begin);
        }) {}
  absl::Status Join() {
    thread_.join();
    return outcome_;
  }

 private:
  absl::Status outcome_;
  std::jthread thread_;
};

// What the ranks of this pod compute with, before there is a model.
absl::Status OpenParts(const WorkerSettings& settings, const GpuOpener& open_gpu,
                       const CollectiveLoader& load_collectives, ModelFile& model,
                       LoadedModel& loaded, WorkerStatus& status) {
  ASSIGN_OR_RETURN(model.ops, ChooseOps("engine.kernelTier", settings.engine.kernel_tier));
  int threads = ThreadsFor(settings.engine.threads);
  if (threads < settings.engine.threads) {
    LogWarning("worker", "engine.threads is more than the CPUs that this process may use",
               {{"threads", settings.engine.threads}, {"used", threads}});
  }
  if (settings.device == DeviceKind::kGpu) {
    const absl::Time begin = SteadyNow();
    ASSIGN_OR_RETURN(model.gpus, OpenGpus(settings, open_gpu));
    if (settings.tensor_parallel > 1) {
      ASSIGN_OR_RETURN(loaded.collectives, load_collectives());
      model.collectives = loaded.collectives.get();
      LogInfo("worker", "GPUs are linked by", {{"library", loaded.collectives->Describe()}});
    }
    status.AddStartPart("device", SteadyNow() - begin);
    threads = 1;  // the CPU computes nothing
  }
  const int32_t ranks = settings.ranks_per_pod;
  const int threads_of_rank = std::max(1, threads / ranks);
  std::vector<NumaNode> places;
  if (settings.device == DeviceKind::kCpu) {
    places = PlaceRanks(ReadNumaNodes(settings.system_root, AllowedCpus()), ranks, threads_of_rank);
  }
  for (int32_t rank = 0; rank < ranks; ++rank) {
    std::vector<int32_t> cpus;
    if (!places.empty()) {
      const NumaNode& place = places[static_cast<size_t>(rank)];
      LogInfo("worker", "a rank is bound to a NUMA node",
              {{"rank", absl::StrCat(rank)}, {"node", absl::StrCat(place.id)}});
      cpus = place.cpus;
    }
    model.parts.push_back(std::make_unique<RankPart>(threads_of_rank, std::move(cpus)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<const kernels::Ops*> ChooseOps(absl::string_view field, const std::string& tier) {
  if (tier.empty()) return &kernels::BestOps();
  std::string why;
  const kernels::Ops* ops = kernels::ChooseOps(tier, why);
  if (ops != nullptr) return ops;
  return absl::FailedPreconditionError(absl::StrCat(field, " ", why));
}

std::optional<kernels::DType> KvType(absl::string_view name) {
  if (name == "auto" || name == "f16") return kernels::DType::kF16;
  if (name == "f32") return kernels::DType::kF32;
  if (name == "bf16") return kernels::DType::kBF16;
  if (name == "q8") return kernels::DType::kQ8_0;
  return std::nullopt;
}

absl::StatusOr<LoadedModel> LoadModelFile(const WorkerSettings& settings, const GpuOpener& open_gpu,
                                          const CollectiveLoader& load_collectives,
                                          WorkerStatus& status) {
  const std::string& path = settings.model_path;
  const MemoryUse use = ReadMemoryUse("");
  LoadedModel loaded;  // its library outlives what the model has on GPUs
  auto model = std::make_shared<ModelFile>();
  RETURN_IF_ERROR(OpenParts(settings, open_gpu, load_collectives, *model, loaded, status));
  const absl::Time begin = SteadyNow();
  ASSIGN_OR_RETURN(model->source, OpenModel(path));
  const ModelSource& source = model->source;
  if (model->gpus.empty()) OpenCache(settings.repack_cache_folder, *model);
  const absl::Status planned = Plan(settings, use, *model, loaded.engine, status);
  if (!planned.ok()) return About(path, planned);
  status.AddStartPart("open", SteadyNow() - begin);

  std::unique_ptr<ModelText> text;
  std::optional<Sha256> digest;
  Beside tokenizer("tokenizer", status, [&] {
    ASSIGN_OR_RETURN(text, ModelText::FromSource(source));
    return absl::OkStatus();
  });
  const auto verify = [&]() -> absl::Status {
    if (settings.model_digest.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(digest, HashModel(path, {}, nullptr, model->hashes));
    return CheckDigest(path, settings.model_digest, *digest);
  };
  std::optional<Beside> hash;
  if (!settings.model_digest.empty() && model->gpus.empty()) hash.emplace("hash", status, verify);
  const absl::Status filled = model->gpus.empty()
                                  ? CopyParts(*model, status)
                                  : PrepareOnGpus(settings, *model, loaded.engine, status);
  const absl::Status named = tokenizer.Join();
  RETURN_IF_ERROR(hash ? hash->Join() : verify());
  if (!named.ok()) return About(path, named);
  if (!filled.ok()) return About(path, filled);
  if (text->vocabulary_size() > model->source.config.vocabulary) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": tokenizer.ggml.tokens has more entries than token_embd.weight has rows"));
  }
  if (digest) status.SetDigest(DigestText(*digest));
  // The leader names the file; another pod reads all of it only where that checks its cache.
  if (settings.pod_index == 0 || model->cache) {
    loaded.check_later = [path, model, digest, &status](std::stop_token stop) {
      return CheckLater(path, *model, digest, stop, status);
    };
  }
  loaded.kernel_tier = model->gpus.empty() ? model->ops->name : model->gpus[0].device->ops().name;
  for (size_t part = 0; part < model->parts.size(); ++part) {
    loaded.threads += model->parts[part]->pool.threads();
    loaded.ranks.push_back(model->gpus.empty()
                               ? std::make_unique<RankOfFile>(model, part)
                               : MakeRankOnDevice(std::move(model->gpus[part]), &status));
  }
  loaded.layers = static_cast<int64_t>(source.config.layers.size());
  loaded.hidden = source.config.hidden;
  // What the tokenizer was made from lies scattered between what stays of it: some 10 % of a large
  // vocabulary's memory, which the system gets back.
  malloc_trim(0);
  const std::shared_ptr<const ModelText> shared = std::move(text);
  loaded.vocabulary = std::make_unique<SharedVocabulary>(shared);
  loaded.encoder = std::make_unique<SharedEncoder>(shared);
  return loaded;
}

}  // namespace rempart::worker
