// SPDX-License-Identifier: Apache-2.0
// model_bench MODEL.gguf THREADS TIER PREFILL DECODE [DEPTH [BATCH]]: tokens per second of one
// prompt of PREFILL tokens, and of DECODE tokens after a context of DEPTH, each after a warm-up, as
// llama-bench counts them (-p, -n, -d). TIER is a kernel tier or "best"; a count of 0 leaves its
// part out. BATCH sequences decode together, each with its own context; the rate is of them all.
// Prints one JSON object; decode_bytes is what one token of one sequence reads of the weights.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/status_macros.h"
#include "worker/model/families/families.h"
#include "worker/model/gguf.h"
#include "worker/model/mapped_file.h"
#include "worker/model/transformer.h"

namespace rempart::worker {
namespace {

using Clock = std::chrono::steady_clock;

// Token ids without meaning: the work does not depend on them.
std::vector<int32_t> MadeUpIds(int count, int64_t vocabulary) {
  std::vector<int32_t> ids(count);
  for (int i = 0; i < count; ++i) ids[i] = static_cast<int32_t>((i * 7919 + 11) % vocabulary);
  return ids;
}

class Bench {
 public:
  static absl::StatusOr<std::unique_ptr<Bench>> Open(const std::string& path, int threads,
                                                     const kernels::Ops& ops, int longest,
                                                     int batch) {
    auto bench = std::unique_ptr<Bench>(new Bench(threads));
    ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
    bench->file_ = std::make_unique<MappedFile>(std::move(file));
    ASSIGN_OR_RETURN(bench->gguf_, ParseGguf(path, bench->file_->bytes()));
    ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(bench->gguf_));
    ASSIGN_OR_RETURN(bench->weights_,
                     BindWeights(bench->gguf_.tensors, config, ops, {}, bench->pool_));
    TransformerOptions options;
    bench->sequence_blocks_ = longest / kernels::kKvBlockTokens + 1;
    options.kv_blocks = batch * bench->sequence_blocks_;
    options.max_step_tokens = std::max(longest, batch);
    ASSIGN_OR_RETURN(bench->transformer_,
                     Transformer::Create(config, bench->weights_, ops, bench->pool_, options));
    bench->table_.resize(options.kv_blocks);
    std::iota(bench->table_.begin(), bench->table_.end(), 0);
    bench->logits_.resize(batch * config.vocabulary);
    bench->batch_ = batch;
    return bench;
  }

  // Of the file, as it holds them: all but an embedding that is not the output as well.
  int64_t DecodeBytes() const {
    const bool tied = gguf_.tensors.count("output.weight") == 0;
    int64_t bytes = 0;
    for (const auto& [name, tensor] : gguf_.tensors) {
      if (tied || name != "token_embd.weight") bytes += tensor.bytes;
    }
    return bytes;
  }

  // A prompt from position 0.
  absl::StatusOr<double> PrefillRate(int count) {
    const std::vector<int32_t> ids = MadeUpIds(count, transformer_->config().vocabulary);
    const Clock::time_point begin = Clock::now();
    RETURN_IF_ERROR(Step(ids, 0, 0, 1));
    return Rate(count, begin);
  }
  // The same context for every sequence.
  absl::Status Fill(int depth) {
    const std::vector<int32_t> ids = MadeUpIds(depth, transformer_->config().vocabulary);
    for (int i = 0; i < batch_; ++i) RETURN_IF_ERROR(Step(ids, 0, i, 1));
    return absl::OkStatus();
  }
  // Tokens per second of all sequences. `depth` positions before the first token hold what was
  // computed last.
  absl::StatusOr<double> DecodeRate(int count, int depth) {
    const std::vector<int32_t> ids = MadeUpIds(count, transformer_->config().vocabulary);
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < count; ++i) RETURN_IF_ERROR(Step({&ids[i], 1}, depth + i, 0, batch_));
    return Rate(count * batch_, begin);
  }

 private:
  explicit Bench(int threads) : pool_({.threads = threads}) {}

  // The same tokens for `sequences` sequences from number `sequence` on.
  absl::Status Step(absl::Span<const int32_t> ids, int32_t first, int sequence, int sequences) {
    StepBatch batch;
    for (int i = sequence; i < sequence + sequences; ++i) {
      const auto table =
          absl::MakeConstSpan(table_).subspan(i * sequence_blocks_, sequence_blocks_);
      batch.slices.push_back({ids, first, table, true});
    }
    return transformer_->Forward(batch, absl::MakeSpan(logits_));
  }
  static double Rate(int count, Clock::time_point begin) {
    return count / std::chrono::duration<double>(Clock::now() - begin).count();
  }

  ThreadPool pool_;
  std::unique_ptr<MappedFile> file_;
  GgufFile gguf_;
  Weights weights_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<int32_t> table_;
  std::vector<float> logits_;
  int batch_ = 1;
  int64_t sequence_blocks_ = 0;
};

struct Counts {
  int prefill, decode, depth, batch;
};

absl::Status Run(const std::string& path, int threads, const std::string& tier, Counts counts) {
  const kernels::Ops* ops = tier == "best" ? &kernels::BestOps() : kernels::FindOps(tier);
  if (ops == nullptr) return absl::InvalidArgumentError("this processor lacks the tier " + tier);
  const int longest = std::max(counts.prefill, counts.depth + counts.decode);
  if (longest < 1)
    return absl::InvalidArgumentError("nothing to measure: PREFILL and DECODE are 0");
  ASSIGN_OR_RETURN(auto bench, Bench::Open(path, threads, *ops, longest, counts.batch));
  double prefill_rate = 0, decode_rate = 0;
  if (counts.prefill > 0) {
    RETURN_IF_ERROR(bench->PrefillRate(counts.prefill).status());
    ASSIGN_OR_RETURN(prefill_rate, bench->PrefillRate(counts.prefill));
  }
  if (counts.decode > 0) {
    if (counts.depth > 0) RETURN_IF_ERROR(bench->Fill(counts.depth));
    RETURN_IF_ERROR(bench->DecodeRate(std::min(counts.decode, 8), counts.depth).status());
    ASSIGN_OR_RETURN(decode_rate, bench->DecodeRate(counts.decode, counts.depth));
  }
  std::printf("{\"tier\": \"%s\", \"prefill\": %.2f, \"decode\": %.2f, \"decode_bytes\": %lld}\n",
              std::string(ops->name).c_str(), prefill_rate, decode_rate,
              static_cast<long long>(bench->DecodeBytes()));
  return absl::OkStatus();
}

}  // namespace
}  // namespace rempart::worker

int main(int argc, char** argv) {
  if (argc < 6 || argc > 8) {
    std::fprintf(stderr,
                 "usage: model_bench MODEL.gguf THREADS TIER PREFILL DECODE [DEPTH [BATCH]]\n");
    return 2;
  }
  const absl::Status status = rempart::worker::Run(
      argv[1], std::atoi(argv[2]), argv[3],
      {std::atoi(argv[4]), std::atoi(argv[5]), argc > 6 ? std::atoi(argv[6]) : 0,
       argc > 7 ? std::max(1, std::min(64, std::atoi(argv[7]))) : 1});
  if (status.ok()) return 0;
  std::fprintf(stderr, "model_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
