// SPDX-License-Identifier: Apache-2.0
#include "worker/api/load_model.h"

#include <openssl/evp.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/api/model_text.h"
#include "worker/model/families/families.h"
#include "worker/model/mapped_file.h"
#include "worker/model/transformer.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kHashChunk = 16 * kMiB;
constexpr int32_t kDefaultContext = 8192;
// Code, stacks and buffers beside the model.
constexpr int64_t kReserve = 64 * kMiB;

// Everything that Forward reads, in the order of its construction.
class ModelFile : public ModelRunner {
 public:
  explicit ModelFile(int threads) : pool_({.threads = threads}) {}
  int32_t vocabulary_size() const override {
    return static_cast<int32_t>(transformer_->config().vocabulary);
  }
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits) override {
    return transformer_->Forward(batch, logits);
  }

  ThreadPool pool_;
  std::unique_ptr<MappedFile> file_;
  GgufFile gguf_;
  ModelConfig config_;
  Weights weights_;
  std::unique_ptr<Transformer> transformer_;
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
  absl::StatusOr<std::vector<int32_t>> EncodeText(absl::string_view text) const override {
    return text_->EncodeText(text);
  }

 private:
  std::shared_ptr<const ModelText> text_;
};

int64_t ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t value = -1;
  if (!(file >> value)) return -1;
  return value;
}

absl::StatusOr<std::string> Digest(absl::Span<const uint8_t> bytes, WorkerStatus& status) {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                  EVP_MD_CTX_free);
  if (context == nullptr || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) {
    return absl::InternalError("OpenSSL has no SHA-256");
  }
  const int64_t total = static_cast<int64_t>(bytes.size());
  for (int64_t done = 0; done < total;) {
    const int64_t size = std::min(kHashChunk, total - done);
    if (EVP_DigestUpdate(context.get(), bytes.data() + done, size) != 1) {
      return absl::InternalError("SHA-256 failed");
    }
    done += size;
    status.SetLoaded(done, total);
  }
  std::string digest(32, '\0');
  unsigned int length = 0;
  if (EVP_DigestFinal_ex(context.get(), reinterpret_cast<unsigned char*>(digest.data()), &length) !=
      1) {
    return absl::InternalError("SHA-256 failed");
  }
  return absl::StrCat("sha256:", absl::BytesToHexString(digest));
}

absl::StatusOr<int32_t> ContextLength(const EngineSettings& settings, const ModelConfig& config) {
  const auto trained = static_cast<int32_t>(
      std::min<int64_t>(config.context_length, std::numeric_limits<int32_t>::max()));
  if (settings.context_length > trained) {
    return absl::FailedPreconditionError(
        absl::StrCat("engine.context_length is ", settings.context_length,
                     ", but the model was made for ", trained, ": set at most ", trained));
  }
  if (settings.context_length > 0) return settings.context_length;
  return std::min(trained, kDefaultContext);
}

// How many KV blocks: what the settings say, or enough for all sequences, or what fits in half of
// the free memory; never fewer than one sequence of full length needs.
absl::StatusOr<int64_t> KvBlocks(const EngineSettings& settings, int32_t context_length,
                                 int64_t bytes_per_block, int64_t file_bytes) {
  const int64_t per_sequence =
      (context_length + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  const int64_t least = per_sequence * bytes_per_block;
  const int64_t free = AvailableMemory("");
  // Weights may be repacked, beside the pages of the file.
  const int64_t left = free - 2 * file_bytes - kReserve;
  int64_t wanted = settings.kv_cache_bytes;
  if (wanted == 0) {
    wanted = std::min(settings.max_sequences * least, std::max(least, free / 2));
    wanted = std::max(least, std::min(wanted, left));
  }
  if (wanted < least) {
    return absl::FailedPreconditionError(absl::StrCat("engine.kv_cache_mib is ", wanted / kMiB,
                                                      ", but one sequence of ", context_length,
                                                      " tokens needs ", least / kMiB + 1, " MiB"));
  }
  if (wanted > left) {
    return absl::ResourceExhaustedError(
        absl::StrCat("not enough memory: weights ", 2 * file_bytes / kMiB, " MiB and KV cache ",
                     wanted / kMiB, " MiB for ", context_length, " tokens, but ", free / kMiB,
                     " MiB are free: give the pod more memory, or lower engine.contextLength"));
  }
  return wanted / bytes_per_block;
}

absl::StatusOr<const kernels::Ops*> ChooseOps(const std::string& tier) {
  if (tier.empty()) return &kernels::BestOps();
  const kernels::Ops* ops = kernels::FindOps(tier);
  if (ops != nullptr) return ops;
  std::string known;
  for (const kernels::OpsTier& each : kernels::AllOps()) {
    if (each.is_supported && !each.is_twin) absl::StrAppend(&known, " ", each.ops->name);
  }
  return absl::FailedPreconditionError(
      absl::StrCat("engine.kernel_tier \"", tier, "\" is not one that this CPU has:", known));
}

// Names the file in errors about its content.
absl::Status About(const std::string& path, const absl::Status& status) {
  if (status.ok() || status.message().find(path) != absl::string_view::npos) return status;
  return absl::Status(status.code(), absl::StrCat(path, ": ", std::string(status.message())));
}

absl::Status Prepare(const WorkerSettings& settings, const kernels::Ops& ops, ModelFile& model,
                     EngineOptions& engine) {
  const EngineSettings& wanted = settings.engine;
  ASSIGN_OR_RETURN(engine.context_length, ContextLength(wanted, model.config_));
  const auto kv_type = wanted.kv_cache_type == "f32" ? kernels::DType::kF32 : kernels::DType::kF16;
  const int64_t file_bytes = static_cast<int64_t>(model.file_->bytes().size());
  TransformerOptions options;
  ASSIGN_OR_RETURN(
      options.kv_blocks,
      KvBlocks(wanted, engine.context_length, KvBytesPerBlock(model.config_, kv_type), file_bytes));
  options.kv_type = kv_type;
  options.exact = wanted.exact_arithmetic;
  options.max_step_tokens = wanted.max_step_tokens;
  options.max_step_logits = wanted.max_sequences;
  engine.blocks_total = static_cast<int32_t>(options.kv_blocks);
  engine.limits.max_step_tokens = wanted.max_step_tokens;
  engine.limits.max_sequences = wanted.max_sequences;
  engine.limits.block_size = static_cast<int32_t>(kernels::kKvBlockTokens);
  ASSIGN_OR_RETURN(model.weights_,
                   BindWeights(model.gguf_.tensors, model.config_, ops, !options.exact, model.pool_));
  ASSIGN_OR_RETURN(model.transformer_,
                   Transformer::Create(model.config_, model.weights_, ops, model.pool_, options));
  return absl::OkStatus();
}

}  // namespace

int64_t AvailableMemory(const std::string& root) {
  int64_t available = std::numeric_limits<int64_t>::max();
  std::ifstream file(root + "/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (file >> key >> kib) {
    std::getline(file, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  const std::string cgroup = root + "/sys/fs/cgroup/";
  const std::pair<const char*, const char*> limits[] = {
      {"memory.max", "memory.current"},
      {"memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"}};
  for (const auto& [limit_file, usage_file] : limits) {
    const int64_t limit = ReadNumber(cgroup + limit_file);
    const int64_t usage = ReadNumber(cgroup + usage_file);
    if (limit > 0 && usage >= 0)
      available = std::min(available, std::max<int64_t>(0, limit - usage));
  }
  return available;
}

absl::StatusOr<LoadedModel> LoadModelFile(const WorkerSettings& settings, WorkerStatus& status) {
  const std::string& path = settings.model_path;
  ASSIGN_OR_RETURN(const kernels::Ops* ops, ChooseOps(settings.engine.kernel_tier));
  auto model = std::make_unique<ModelFile>(settings.engine.threads);
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  model->file_ = std::make_unique<MappedFile>(std::move(file));
  ASSIGN_OR_RETURN(model->gguf_, ParseGguf(path, model->file_->bytes()));
  absl::StatusOr<ModelConfig> config = ReadModelConfig(model->gguf_);
  if (!config.ok()) return About(path, config.status());
  model->config_ = *std::move(config);
  absl::StatusOr<std::unique_ptr<ModelText>> text = ModelText::FromGguf(model->gguf_.metadata);
  if (!text.ok()) return About(path, text.status());
  if ((*text)->vocabulary_size() > model->config_.vocabulary) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": tokenizer.ggml.tokens has more entries than token_embd.weight has rows"));
  }
  ASSIGN_OR_RETURN(std::string digest, Digest(model->file_->bytes(), status));
  LoadedModel loaded;
  const absl::Status prepared = Prepare(settings, *ops, *model, loaded.engine);
  if (!prepared.ok()) return About(path, prepared);
  status.SetDigest(std::move(digest));
  loaded.runner = std::move(model);
  const std::shared_ptr<const ModelText> shared = *std::move(text);
  loaded.vocabulary = std::make_unique<SharedVocabulary>(shared);
  loaded.encoder = std::make_unique<SharedEncoder>(shared);
  loaded.kernel_tier = ops->name;
  return loaded;
}

}  // namespace rempart::worker
