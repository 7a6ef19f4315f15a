// SPDX-License-Identifier: Apache-2.0
// `rempart-worker perplexity MODEL FILE`: how well a model predicts a text, counted as llama.cpp's
// llama-perplexity counts it, so that the two figures can be compared.
//
// The text becomes token ids (control tokens spelled in it are text), which are cut into chunks of
// `context` tokens; what is left over is not counted. Each chunk is computed on its own, from
// position 0; its first token gives way to BOS where the model begins texts with one. Of a chunk
// the tokens in its second half are predicted, but for the first of them, each from all before it.
// The perplexity is e to the mean of -log p over all predicted tokens.
//
// With --divergence the model is computed twice, as it serves and in F32 arithmetic (--exact) with
// a KV cache in F32 on the same weights, and at each predicted token the two distributions p are
// compared:
// KL(exact || served) = sum over the vocabulary of p_exact * (log p_exact - log p_served).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace rempart::worker {

struct PerplexityOptions {
  std::string model_path;  // a GGUF file, or a folder in Hugging Face layout
  std::string text_path;   // UTF-8
  int32_t context = 512;   // tokens of a chunk
  int32_t chunks = 0;      // at most; 0: all of the text
  int32_t threads = 0;     // 0: the CPUs of this process
  std::string kernel_tier;
  std::string kv_cache_type = "auto";  // as engine.kvCacheType on a CPU
  bool exact = false;                  // F32 activations instead of int8 or BF16
  bool divergence = false;             // from exact with a KV cache in F32
};

// Of the distributions at all predicted tokens, from those of F32 arithmetic and KV. In nats.
struct Divergence {
  double mean = 0;
  double p99 = 0;
  double max = 0;
  double same_top_share = 0;  // of the tokens, where both find the same one likeliest
};

struct Perplexity {
  double value = 0;
  double error = 0;  // one standard deviation of `value`
  int64_t tokens_predicted = 0;
  int32_t chunks = 0;
  std::string kernel_tier;
  std::optional<Divergence> divergence;  // where asked for
};

inline constexpr char kPerplexityUsage[] =
    "perplexity MODEL FILE [--context 512] [--chunks N] [--threads N] [--kernel-tier NAME] "
    "[--kv-cache-type TYPE] [--exact] [--divergence]";

// What follows the word perplexity. InvalidArgument names the argument and the fix.
absl::StatusOr<PerplexityOptions> ParsePerplexityOptions(const std::vector<std::string>& words);

// `on_chunk` hears of the figure so far after each chunk. Errors are those of ModelLoader
// (worker/api/worker_process.h); FailedPrecondition for a text that cannot be read or is too short.
absl::StatusOr<Perplexity> MeasurePerplexity(
    const PerplexityOptions& options, const std::function<void(const Perplexity&)>& on_chunk);

// Prints figures as they come and the last one on standard output; returns the exit status.
int RunPerplexity(const std::vector<std::string>& words);

}  // namespace rempart::worker
