// SPDX-License-Identifier: Apache-2.0
#include "worker/model/draw_greedy.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace rempart::worker {
namespace {

// Logits that one thread reads at a time, so that a single row has work for several.
constexpr int64_t kPiece = 32768;

bool IsGreedy(const SliceSampling* sampling) {
  if (sampling == nullptr || !sampling->mask.empty()) return false;
  const SamplingParams& params = *sampling->params;
  return params.temperature == 0.0f && params.top_logprobs < 0 && params.logit_bias.empty() &&
         !params.has_penalties();
}

// The first of the largest ones of a row, from those of its pieces; -1 where there is none.
int64_t Largest(const float* row, absl::Span<const int64_t> of_pieces) {
  int64_t best = of_pieces[0];
  for (const int64_t candidate : of_pieces) {
    if (candidate < 0) return -1;
    if (row[candidate] > row[best]) best = candidate;
  }
  return std::isfinite(row[best]) ? best : -1;
}

}  // namespace

void DrawGreedy(const StepBatch& batch, absl::Span<const float> logits, int64_t vocabulary_size,
                const kernels::Ops& ops, ThreadPool& pool, absl::Span<DrawnToken> drawn) {
  if (drawn.empty()) return;
  std::vector<int64_t> rows;
  int64_t wanting = 0;
  for (const SequenceSlice& slice : batch.slices) {
    if (!slice.wants_logits) continue;
    if (IsGreedy(slice.sampling)) rows.push_back(wanting);
    ++wanting;
  }
  const int64_t pieces = (vocabulary_size + kPiece - 1) / kPiece;
  std::vector<int64_t> largest(rows.size() * static_cast<size_t>(pieces));
  pool.ParallelFor(static_cast<int64_t>(largest.size()), 1, [&](int64_t item, int64_t) {
    const float* row = logits.data() + rows[item / pieces] * vocabulary_size;
    const int64_t begin = item % pieces * kPiece;
    const int64_t found = ops.argmax(row + begin, std::min(kPiece, vocabulary_size - begin));
    largest[item] = found < 0 ? -1 : begin + found;
  });
  for (size_t i = 0; i < rows.size(); ++i) {
    const float* row = logits.data() + rows[i] * vocabulary_size;
    const auto of_pieces = absl::MakeConstSpan(largest).subspan(i * pieces, pieces);
    drawn[rows[i]] = {.is_drawn = true, .token_id = static_cast<int32_t>(Largest(row, of_pieces))};
  }
}

}  // namespace rempart::worker
