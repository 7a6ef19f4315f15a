// SPDX-License-Identifier: Apache-2.0
// model_bench MODEL.gguf THREADS TIER PREFILL DECODE [DEPTH]: tokens per second of one prompt of
// PREFILL tokens, and of DECODE tokens after a context of DEPTH, each after a warm-up, as
// llama-bench counts them (-p, -n, -d). TIER is a kernel tier or "best"; a count of 0 leaves its
// part out. Prints one JSON object.
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
                                                     const kernels::Ops& ops, int longest) {
    auto bench = std::unique_ptr<Bench>(new Bench(threads));
    ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
    bench->file_ = std::make_unique<MappedFile>(std::move(file));
    ASSIGN_OR_RETURN(bench->gguf_, ParseGguf(path, bench->file_->bytes()));
    ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(bench->gguf_));
    ASSIGN_OR_RETURN(bench->weights_,
                     BindWeights(bench->gguf_.tensors, config, ops, {}, bench->pool_));
    TransformerOptions options;
    options.kv_blocks = longest / kernels::kKvBlockTokens + 1;
    options.max_step_tokens = longest;
    ASSIGN_OR_RETURN(bench->transformer_,
                     Transformer::Create(config, bench->weights_, ops, bench->pool_, options));
    bench->table_.resize(options.kv_blocks);
    std::iota(bench->table_.begin(), bench->table_.end(), 0);
    bench->logits_.resize(config.vocabulary);
    return bench;
  }

  // A prompt from position 0.
  absl::StatusOr<double> PrefillRate(int count) {
    const std::vector<int32_t> ids = MadeUpIds(count, transformer_->config().vocabulary);
    const Clock::time_point begin = Clock::now();
    RETURN_IF_ERROR(Step(ids, 0));
    return Rate(count, begin);
  }
  // `depth` positions before the first token hold what was computed last.
  absl::StatusOr<double> DecodeRate(int count, int depth) {
    const std::vector<int32_t> ids = MadeUpIds(count, transformer_->config().vocabulary);
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < count; ++i) RETURN_IF_ERROR(Step({&ids[i], 1}, depth + i));
    return Rate(count, begin);
  }

 private:
  explicit Bench(int threads) : pool_({.threads = threads}) {}

  absl::Status Step(absl::Span<const int32_t> ids, int32_t first) {
    StepBatch batch;
    batch.slices.push_back({ids, first, table_, true});
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
};

struct Counts {
  int prefill, decode, depth;
};

absl::Status Run(const std::string& path, int threads, const std::string& tier, Counts counts) {
  const kernels::Ops* ops = tier == "best" ? &kernels::BestOps() : kernels::FindOps(tier);
  if (ops == nullptr) return absl::InvalidArgumentError("this processor lacks the tier " + tier);
  const int longest = std::max(counts.prefill, counts.depth + counts.decode);
  if (longest < 1)
    return absl::InvalidArgumentError("nothing to measure: PREFILL and DECODE are 0");
  ASSIGN_OR_RETURN(auto bench, Bench::Open(path, threads, *ops, longest));
  double prefill_rate = 0, decode_rate = 0;
  if (counts.prefill > 0) {
    RETURN_IF_ERROR(bench->PrefillRate(counts.prefill).status());
    ASSIGN_OR_RETURN(prefill_rate, bench->PrefillRate(counts.prefill));
  }
  if (counts.decode > 0) {
    if (counts.depth > 0) RETURN_IF_ERROR(bench->PrefillRate(counts.depth).status());
    RETURN_IF_ERROR(bench->DecodeRate(std::min(counts.decode, 8), counts.depth).status());
    ASSIGN_OR_RETURN(decode_rate, bench->DecodeRate(counts.decode, counts.depth));
  }
  std::printf("{\"tier\": \"%s\", \"prefill\": %.2f, \"decode\": %.2f}\n",
              std::string(ops->name).c_str(), prefill_rate, decode_rate);
  return absl::OkStatus();
}

}  // namespace
}  // namespace rempart::worker

int main(int argc, char** argv) {
  if (argc != 6 && argc != 7) {
    std::fprintf(stderr, "usage: model_bench MODEL.gguf THREADS TIER PREFILL DECODE [DEPTH]\n");
    return 2;
  }
  const absl::Status status = rempart::worker::Run(
      argv[1], std::atoi(argv[2]), argv[3],
      {std::atoi(argv[4]), std::atoi(argv[5]), argc == 7 ? std::atoi(argv[6]) : 0});
  if (status.ok()) return 0;
  std::fprintf(stderr, "model_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
