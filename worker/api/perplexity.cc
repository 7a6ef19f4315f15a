// SPDX-License-Identifier: Apache-2.0
#include "worker/api/perplexity.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/printable.h"
#include "common/status_macros.h"
#include "worker/api/load_model.h"
#include "worker/api/model_text.h"
#include "worker/api/worker_status.h"
#include "worker/device/cpu_count.h"
#include "worker/device/thread_pool.h"
#include "worker/model/model_source.h"
#include "worker/model/rope.h"
#include "worker/model/transformer.h"

namespace rempart::worker {
namespace {

constexpr uintmax_t kMaxTextBytes = 64 << 20;
constexpr int32_t kMaxContext = 1 << 20;
// Tokens whose logits are held at the same time: 32 MiB for 262,144 entries.
constexpr int64_t kRows = 32;
constexpr int64_t kStepTokens = 512;

absl::Status BadKvType(const std::string& name) {
  return absl::InvalidArgumentError(
      absl::StrCat("--kv-cache-type ", name, ": must be one of auto, f16, f32, bf16, q8"));
}

// A model that computes one sequence from its beginning, over and over.
class Scorer {
 public:
  static absl::StatusOr<std::unique_ptr<Scorer>> Open(const PerplexityOptions& options) {
    std::unique_ptr<Scorer> scorer(new Scorer(options.threads));
    ASSIGN_OR_RETURN(scorer->ops_, ChooseOps("--kernel-tier", options.kernel_tier));
    ASSIGN_OR_RETURN(scorer->source_, OpenModel(options.model_path));
    ModelSource& source = scorer->source_;
    if (options.context > source.config.context_length) {
      return absl::FailedPreconditionError(
          absl::StrCat("--context ", options.context, ": the model was made for ",
                       source.config.context_length, ": set at most that"));
    }
    ChooseRopes(options.context, source.config);
    ASSIGN_OR_RETURN(scorer->text_, ModelText::FromSource(source));
    ASSIGN_OR_RETURN(scorer->weights_, BindWeights(source.tensors, source.config, *scorer->ops_,
                                                   {.pack = !options.exact}, scorer->pool_));
    TransformerOptions transformer;
    transformer.kv_blocks = options.context / kernels::kKvBlockTokens + 1;
    transformer.max_step_tokens = kStepTokens;
    transformer.max_step_logits = kRows;
    transformer.exact = options.exact;
    const std::optional<kernels::DType> kv_type = KvType(options.kv_cache_type);
    if (!kv_type) return BadKvType(options.kv_cache_type);
    transformer.kv_type = *kv_type;
    ASSIGN_OR_RETURN(scorer->transformer_,
                     Transformer::Create(source.config, scorer->weights_, *scorer->ops_,
                                         scorer->pool_, transformer));
    scorer->table_.resize(transformer.kv_blocks);
    std::iota(scorer->table_.begin(), scorer->table_.end(), 0);
    scorer->logits_.resize(kRows * source.config.vocabulary);
    return scorer;
  }

  const ModelText& text() const { return *text_; }
  const char* kernel_tier() const { return ops_->name; }

  // Computes the tokens before position `first`, whose logits nobody reads.
  absl::Status Skip(absl::Span<const int32_t> ids, int64_t first) {
    for (int64_t begin = 0; begin < first; begin += kStepTokens) {
      StepBatch batch;
      batch.slices.push_back({ids.subspan(begin, std::min(kStepTokens, first - begin)),
                              static_cast<int32_t>(begin), table_, false});
      RETURN_IF_ERROR(transformer_->Forward(batch, {}));
    }
    return absl::OkStatus();
  }

  // Computes tokens [begin, begin + rows), at most kRows, after all before them: row i of
  // log_probabilities() is then what they say of token begin + i + 1. A slice gives logits of its
  // last token, so each token is a slice.
  absl::Status Compute(absl::Span<const int32_t> ids, int64_t begin, int64_t rows) {
    const int64_t vocabulary = source_.config.vocabulary;
    StepBatch batch;
    for (int64_t i = begin; i < begin + rows; ++i) {
      batch.slices.push_back({ids.subspan(i, 1), static_cast<int32_t>(i), table_, true});
    }
    RETURN_IF_ERROR(
        transformer_->Forward(batch, absl::MakeSpan(logits_).subspan(0, rows * vocabulary)));
    pool_.ParallelFor(rows, 1, [&](int64_t from, int64_t to) {
      std::vector<float> copy(vocabulary);
      for (int64_t i = from; i < to; ++i) {
        float* row = logits_.data() + i * vocabulary;
        std::copy_n(row, vocabulary, copy.data());
        const float log_sum = ops_->softmax(copy.data(), vocabulary);
        for (int64_t id = 0; id < vocabulary; ++id) row[id] -= log_sum;
      }
    });
    return absl::OkStatus();
  }
  absl::Span<const float> log_probabilities(int64_t row) const {
    return absl::MakeConstSpan(logits_).subspan(row * source_.config.vocabulary,
                                                source_.config.vocabulary);
  }

 private:
  explicit Scorer(int threads) : pool_({.threads = ThreadsFor(threads)}) {}

  ThreadPool pool_;
  const kernels::Ops* ops_ = nullptr;
  ModelSource source_;
  std::unique_ptr<ModelText> text_;
  Weights weights_;
  std::unique_ptr<Transformer> transformer_;
  std::vector<int32_t> table_;
  std::vector<float> logits_;
};

// What is kept of every predicted token.
struct Predicted {
  std::vector<double> losses;  // -log p
  std::vector<double> divergences;
  int64_t same_top = 0;
};

double KlDivergence(absl::Span<const float> exact, absl::Span<const float> served) {
  double sum = 0;
  for (size_t id = 0; id < exact.size(); ++id) {
    sum += std::exp(double{exact[id]}) * (double{exact[id]} - double{served[id]});
  }
  return sum;
}

int64_t TopOf(absl::Span<const float> row) {
  return std::max_element(row.begin(), row.end()) - row.begin();
}

// The second half of a chunk. `exact` may be null.
absl::Status ScoreChunk(absl::Span<const int32_t> ids, Scorer& scorer, Scorer* exact,
                        Predicted& predicted) {
  const auto count = static_cast<int64_t>(ids.size());
  const int64_t first = count / 2;
  RETURN_IF_ERROR(scorer.Skip(ids, first));
  if (exact != nullptr) RETURN_IF_ERROR(exact->Skip(ids, first));
  for (int64_t begin = first; begin + 1 < count; begin += kRows) {
    const int64_t rows = std::min(kRows, count - 1 - begin);
    RETURN_IF_ERROR(scorer.Compute(ids, begin, rows));
    if (exact != nullptr) RETURN_IF_ERROR(exact->Compute(ids, begin, rows));
    for (int64_t i = 0; i < rows; ++i) {
      const absl::Span<const float> row = scorer.log_probabilities(i);
      predicted.losses.push_back(-double{row[ids[begin + i + 1]]});
      if (!std::isfinite(predicted.losses.back())) {
        return absl::DataLossError(
            "the model computes logits that are not numbers: download it again");
      }
      if (exact == nullptr) continue;
      const absl::Span<const float> exact_row = exact->log_probabilities(i);
      predicted.divergences.push_back(KlDivergence(exact_row, row));
      predicted.same_top += TopOf(exact_row) == TopOf(row) ? 1 : 0;
    }
  }
  return absl::OkStatus();
}

std::optional<Divergence> DivergenceOf(const Predicted& predicted) {
  std::vector<double> sorted = predicted.divergences;
  if (sorted.empty()) return std::nullopt;
  std::sort(sorted.begin(), sorted.end());
  const auto count = static_cast<double>(sorted.size());
  return Divergence{.mean = std::accumulate(sorted.begin(), sorted.end(), 0.0) / count,
                    .p99 = sorted[(sorted.size() - 1) * 99 / 100],
                    .max = sorted.back(),
                    .same_top_share = static_cast<double>(predicted.same_top) / count};
}

Perplexity FromLosses(const std::vector<double>& losses, int32_t chunks, std::string tier) {
  const auto count = static_cast<double>(losses.size());
  const double mean = std::accumulate(losses.begin(), losses.end(), 0.0) / count;
  double squares = 0;
  for (const double loss : losses) squares += (loss - mean) * (loss - mean);
  const double value = std::exp(mean);
  const double error = count > 1 ? value * std::sqrt(squares / count / (count - 1)) : 0;
  return {value, error, static_cast<int64_t>(losses.size()), chunks, std::move(tier), std::nullopt};
}

absl::Status BadText(const std::string& path, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat(path, ": ", why));
}

// Without the line end at its end, which llama-perplexity leaves out too.
absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return BadText(path, absl::StrCat(std::strerror(errno), "; name a text file"));
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return BadText(path, "not a regular file; name a text file");
  }
  const uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error || bytes > kMaxTextBytes) {
    return BadText(path, absl::StrCat("has ", bytes, " bytes, more than ", kMaxTextBytes,
                                      ": give a part of it"));
  }
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (absl::EndsWith(text, "\n")) text.pop_back();
  return text;
}

absl::Status BadNumber(const std::string& flag, const std::string& value, int32_t least,
                       int32_t most) {
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " ", value, ": must be a number from ", least, " to ", most));
}

std::string Line(const Perplexity& result) {
  char figures[64];
  std::snprintf(figures, sizeof(figures), "%.4f +/- %.4f", result.value, result.error);
  std::string line =
      absl::StrCat("perplexity ", figures, " over ", result.chunks, " chunks, ",
                   result.tokens_predicted, " tokens predicted, kernels ", result.kernel_tier);
  if (!result.divergence) return line;
  const Divergence& divergence = *result.divergence;
  char more[160];
  std::snprintf(
      more, sizeof(more),
      "\nKL divergence from F32 arithmetic and KV: mean %.3g, p99 %.3g, max %.3g nats; the same "
      "likeliest token at %.2f %%",
      divergence.mean, divergence.p99, divergence.max, 100 * divergence.same_top_share);
  return line + more;
}

}  // namespace

absl::StatusOr<PerplexityOptions> ParsePerplexityOptions(const std::vector<std::string>& words) {
  struct Number {
    const char* flag;
    int32_t least, most;
    int32_t* value;
  };
  PerplexityOptions options;
  const Number numbers[] = {{"--context", 8, kMaxContext, &options.context},
                            {"--chunks", 1, kMaxContext, &options.chunks},
                            {"--threads", 1, 1024, &options.threads}};
  std::vector<std::string> names;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--exact" || word == "--divergence") {
      (word == "--exact" ? options.exact : options.divergence) = true;
      continue;
    }
    if (!absl::StartsWith(word, "--")) {
      names.push_back(word);
      continue;
    }
    const auto* number = std::find_if(std::begin(numbers), std::end(numbers),
                                      [&](const Number& each) { return word == each.flag; });
    if (number == std::end(numbers) && word != "--kernel-tier" && word != "--kv-cache-type") {
      return absl::InvalidArgumentError(absl::StrCat("unknown flag ", word));
    }
    if (i + 1 == words.size()) return absl::InvalidArgumentError(word + " needs a value");
    const std::string& value = words[++i];
    if (number == std::end(numbers)) {
      (word == "--kernel-tier" ? options.kernel_tier : options.kv_cache_type) = value;
    } else if (!absl::SimpleAtoi(value, number->value) || *number->value < number->least ||
               *number->value > number->most) {
      return BadNumber(word, value, number->least, number->most);
    }
  }
  if (names.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("a model and a text file are needed, not ", names.size(), " names"));
  }
  if (!KvType(options.kv_cache_type)) return BadKvType(options.kv_cache_type);
  // What is left of it then is what the KV cache costs.
  const bool rounds_kv = options.kv_cache_type != "auto" && options.kv_cache_type != "f32";
  if (options.exact && options.divergence && !rounds_kv) {
    return absl::InvalidArgumentError(
        "--exact and --divergence: the divergence is from --exact: leave one of them out, or name "
        "a --kv-cache-type of f16, bf16 or q8");
  }
  options.model_path = names[0];
  options.text_path = names[1];
  return options;
}

absl::StatusOr<Perplexity> MeasurePerplexity(
    const PerplexityOptions& options, const std::function<void(const Perplexity&)>& on_chunk) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(options.text_path));
  ASSIGN_OR_RETURN(const std::unique_ptr<Scorer> scorer, Scorer::Open(options));
  std::unique_ptr<Scorer> exact;
  if (options.divergence) {
    PerplexityOptions of_exact = options;
    of_exact.exact = true;
    of_exact.kv_cache_type = "f32";
    ASSIGN_OR_RETURN(exact, Scorer::Open(of_exact));
  }
  const absl::StatusOr<std::vector<int32_t>> ids = scorer->text().EncodePlainText(text);
  if (!ids.ok()) {
    return BadText(options.text_path, ids.status().message());
  }
  const auto whole = static_cast<int32_t>(ids->size() / options.context);
  if (whole == 0) {
    return BadText(options.text_path,
                   absl::StrCat("has ", ids->size(), " tokens, fewer than --context ",
                                options.context, ": give a longer text or a smaller context"));
  }
  const int32_t chunks = options.chunks > 0 ? std::min(options.chunks, whole) : whole;
  Predicted predicted;
  Perplexity result;
  for (int32_t i = 0; i < chunks; ++i) {
    const auto begin = ids->begin() + int64_t{i} * options.context;
    std::vector<int32_t> chunk(begin, begin + options.context);
    if (const std::optional<int32_t> bos = scorer->text().begin_id()) chunk[0] = *bos;
    const absl::Status scored = ScoreChunk(chunk, *scorer, exact.get(), predicted);
    if (!scored.ok()) return About(options.model_path, scored);
    result = FromLosses(predicted.losses, i + 1, scorer->kernel_tier());
    result.divergence = DivergenceOf(predicted);
    if (on_chunk) on_chunk(result);
  }
  return result;
}

int RunPerplexity(const std::vector<std::string>& words) {
  const absl::StatusOr<PerplexityOptions> options = ParsePerplexityOptions(words);
  if (!options.ok()) {
    std::fprintf(stderr, "perplexity: %s\nusage: %s\n",
                 std::string(options.status().message()).c_str(), kPerplexityUsage);
    return kExitConfig;
  }
  const absl::StatusOr<Perplexity> result =
      MeasurePerplexity(*options, [](const Perplexity& so_far) {
        std::fprintf(stderr, "[%d] %.4f\n", so_far.chunks, so_far.value);
      });
  if (!result.ok()) {
    std::fprintf(stderr, "perplexity: %s\n",
                 Printable(result.status().message(), WorkerStatus::kMaxMessageBytes).c_str());
    return ExitCodeOf(result.status());
  }
  std::printf("%s\n", Line(*result).c_str());
  return kExitOk;
}

}  // namespace rempart::worker
