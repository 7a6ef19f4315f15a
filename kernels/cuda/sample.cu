// SPDX-License-Identifier: Apache-2.0
// Sample: one block a row. Nothing is sorted: the worst token that top-k keeps, and the worst that
// top-p keeps, are found by radix selection over TokenRank, eleven bits a pass, over counts or over
// weights in fixed point. The draw finds its segment by the segments' weights and walks it. All
// sums are integers, so that no order of threads changes a token. Greedy rows read their logits
// once; others up to a dozen times, from L2.
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/primitives.h"
#include "kernels/sample_math.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = 2048;
constexpr int kDigitBits = 11;

struct Shared {
  uint64_t bins[kBins];
  uint64_t lane_sums[kWarp];
  uint64_t before;  // found: sum of the bins that come first
  int32_t bin;
  float scratch[32];
  uint32_t best_id;
  uint32_t has_nan;
  uint32_t is_listed;       // the token that the lists count too low
  float unlisted_original;  // else its logit
};

struct Row {
  const SampleArgs& args;
  const DeviceSampling& params;
  int64_t index;

  REMPART_DEVICE float& Logit(int64_t id) const {
    return args.parts[LogitOffset(index, id, args.part_size, args.part_stride)];
  }
  // body(id, logit) for this thread's share of the tokens.
  template <class Body>
  REMPART_DEVICE void ForEach(Body body) const {
    for (int64_t begin = 0; begin < args.vocabulary; begin += args.part_size) {
      float* part = args.parts + LogitOffset(index, begin, args.part_size, args.part_stride);
      const int64_t size = Min(args.part_size, args.vocabulary - begin);
      for (int64_t i = threadIdx.x; i < size; i += kThreads) body(begin + i, part[i]);
    }
  }
  REMPART_DEVICE float Weight(float logit, float max) const {
    return ExpOfNegative((logit - max) / params.temperature);
  }
};

REMPART_DEVICE void ClearBins(Shared& shared) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) shared.bins[i] = 0;
  __syncthreads();
}

REMPART_DEVICE uint64_t BinSum(const Shared& shared) {
  uint64_t sum = 0;
  for (int i = 0; i < kWarp; ++i) sum += shared.lane_sums[i];
  return sum;
}

// Walks over the bins, the highest first or the lowest first, up to the one in which the running
// sum reaches more than `target`. Sets shared.bin and shared.before; returns the sum of all bins.
// Where `target` is not reached, the last bin that is not empty.
REMPART_DEVICE uint64_t FindBin(Shared& shared, bool from_top, uint64_t target) {
  constexpr int kPerLane = kBins / kWarp;
  const auto bin_of = [&](int i) { return from_top ? kBins - 1 - i : i; };
  __syncthreads();
  if (threadIdx.x < kWarp) {
    uint64_t sum = 0;
    for (int i = 0; i < kPerLane; ++i) {
      sum += shared.bins[bin_of(static_cast<int>(threadIdx.x) * kPerLane + i)];
    }
    shared.lane_sums[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    uint64_t before = 0;
    int lane = 0;
    while (lane < kWarp - 1 && before + shared.lane_sums[lane] <= target) {
      before += shared.lane_sums[lane++];
    }
    int bin = -1;
    uint64_t bin_before = before;
    for (int i = lane * kPerLane; i < (lane + 1) * kPerLane; ++i) {
      const uint64_t weight = shared.bins[bin_of(i)];
      if (weight > 0) {
        bin = bin_of(i);
        bin_before = before;
      }
      before += weight;
      if (before > target) break;
    }
    shared.bin = bin;
    shared.before = bin_before;
  }
  __syncthreads();
  return BinSum(shared);
}

// The rank of the worst token kept when the best are taken until `amount` of them adds up to more
// than `target`. amount(id, logit) is 0 for tokens that are not candidates.
template <class Amount>
REMPART_DEVICE uint64_t SelectRank(const Row& row, Shared& shared, uint64_t target, Amount amount) {
  uint64_t prefix = 0;
  for (int shift = 64; shift > 0;) {
    const int bits = Min(kDigitBits, shift);
    const int above = shift;
    shift -= bits;
    ClearBins(shared);
    row.ForEach([&](int64_t id, float& logit) {
      const uint64_t rank = TokenRank(logit, id);
      if (above < 64 && rank >> above != prefix) return;
      const uint64_t value = amount(id, logit);
      if (value == 0) return;
      AtomicAdd(&shared.bins[rank >> shift & ((1u << bits) - 1)], value);
    });
    FindBin(shared, true, target);
    target -= shared.before;
    prefix = prefix << bits | static_cast<uint64_t>(shared.bin);
  }
  return prefix;
}

// A token that was generated once more often than the lists say, or -1.
REMPART_DEVICE int32_t Unlisted(const Row& row) {
  const int32_t id = row.params.unlisted_row < 0 ? -1 : row.args.ids[row.params.unlisted_row];
  return id < row.args.vocabulary ? id : -1;
}

// Bias, then penalties, then the mask; originals are kept for the log-probability.
REMPART_DEVICE void ModifyLogits(const Row& row, Shared& shared) {
  const DeviceSampling& params = row.params;
  const int32_t unlisted = Unlisted(row);
  const auto penalise = [&](float& logit, float generated) {
    logit = PenalisedLogit(logit, params.repetition_penalty, params.frequency_penalty,
                           params.presence_penalty, generated);
  };
  if (threadIdx.x == 0) shared.is_listed = 0;
  for (int64_t i = params.list_begin + static_cast<int64_t>(threadIdx.x); i < params.bias_end;
       i += kThreads) {
    float& logit = row.Logit(row.args.list_ids[i]);
    row.args.list_originals[i] = logit;
    logit += row.args.list_values[i];
  }
  __syncthreads();
  for (int64_t i = params.bias_end + static_cast<int64_t>(threadIdx.x); i < params.list_end;
       i += kThreads) {
    const int32_t id = row.args.list_ids[i];
    const bool is_unlisted = id == unlisted;
    float& logit = row.Logit(id);
    row.args.list_originals[i] = logit;
    penalise(logit, row.args.list_values[i] + (is_unlisted ? 1.0f : 0.0f));
    if (is_unlisted) shared.is_listed = 1;
  }
  __syncthreads();
  if (threadIdx.x == 0 && unlisted >= 0 && shared.is_listed == 0) {
    float& logit = row.Logit(unlisted);
    shared.unlisted_original = logit;
    penalise(logit, 1.0f);
  }
  __syncthreads();
  if (params.mask_row < 0) return;
  const uint32_t* mask = row.args.masks + params.mask_row * CeilDivide(row.args.vocabulary, 32);
  row.ForEach([&](int64_t id, float& logit) {
    if (!(mask[id >> 5] >> (id & 31) & 1)) logit = -INFINITY;
  });
  __syncthreads();
}

// Largest logit and, in shared.best_id, the lowest id that has it; NaN where any logit is.
REMPART_DEVICE float FindBest(const Row& row, Shared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.best_id = 0xffffffffu;
    shared.has_nan = 0;
  }
  __syncthreads();
  float max = -INFINITY;
  row.ForEach([&](int64_t, float& logit) {
    if (logit != logit) AtomicAdd(&shared.has_nan, 1u);
    max = fmaxf(max, logit);
  });
  max = BlockMax(max, shared.scratch);
  if (shared.has_nan != 0) return NAN;
  row.ForEach([&](int64_t id, float& logit) {
    if (logit == max) AtomicMin(&shared.best_id, static_cast<uint32_t>(id));
  });
  __syncthreads();
  return max;
}

REMPART_DEVICE int64_t Draw(const Row& row, Shared& shared, float max) {
  const DeviceSampling& params = row.params;
  const int64_t vocabulary = row.args.vocabulary;
  uint64_t worst = 0;
  if (params.top_k > 0 && params.top_k < vocabulary) {
    worst = SelectRank(row, shared, static_cast<uint64_t>(params.top_k) - 1,
                       [](int64_t, float) -> uint64_t { return 1; });
  }
  const auto weight_of = [&](int64_t id, float logit) -> uint64_t {
    if (TokenRank(logit, id) < worst) return 0;
    return FixedWeight(row.Weight(logit, max));
  };
  if (params.top_p < 1.0f) {
    ClearBins(shared);
    row.ForEach([&](int64_t id, float& logit) {
      const uint64_t weight = weight_of(id, logit);
      if (weight > 0) AtomicAdd(&shared.bins[id % kBins], weight);
    });
    const uint64_t total = FindBin(shared, false, ~uint64_t{0});
    worst = SelectRank(row, shared, NucleusWeight(params.top_p, total) - 1, weight_of);
  }
  const auto kept_weight = [&](int64_t id, float logit) -> uint64_t {
    if (TokenRank(logit, id) < worst) return 0;
    const float weight = row.Weight(logit, max);
    return weight < params.min_p ? 0 : FixedWeight(weight);
  };
  const int64_t segment = CeilDivide(vocabulary, kBins);
  ClearBins(shared);
  row.ForEach([&](int64_t id, float& logit) {
    const uint64_t weight = kept_weight(id, logit);
    if (weight > 0) AtomicAdd(&shared.bins[id / segment], weight);
  });
  const uint64_t total = FindBin(shared, false, ~uint64_t{0});
  const uint64_t target = DrawTarget(params.seed, params.position, total);
  FindBin(shared, false, target);
  uint64_t sum = shared.before;
  int64_t chosen = -1;
  for (int64_t id = shared.bin * segment; id < Min((shared.bin + 1) * segment, vocabulary); ++id) {
    sum += kept_weight(id, row.Logit(id));
    if (sum > target) {
      chosen = id;
      break;
    }
  }
  return chosen;
}

// Of all tokens of the unmodified logits, whose largest is `max`.
REMPART_DEVICE uint64_t SumOfWeights(const Row& row, Shared& shared, float max) {
  uint64_t sum = 0;
  row.ForEach([&](int64_t, float& logit) { sum += FixedWeight(ExpOfNegative(logit - max)); });
  ClearBins(shared);
  shared.bins[threadIdx.x] = sum;
  return FindBin(shared, false, ~uint64_t{0});
}

REMPART_DEVICE float OriginalLogit(const Row& row, const Shared& shared, int64_t id) {
  for (int64_t i = row.params.list_begin; i < row.params.list_end; ++i) {
    if (row.args.list_ids[i] == id) return row.args.list_originals[i];
  }
  if (id == Unlisted(row)) return shared.unlisted_original;
  return row.Logit(id);
}

REMPART_KERNEL(kThreads) SampleKernel(SampleArgs args) {
  WaitForPrevious();
  LetNextStart();
  Shared& shared = *DynamicShared<Shared>();
  const Row row = {args, args.rows[blockIdx.x], static_cast<int64_t>(blockIdx.x)};
  if (args.softcap > 0.0f) {
    row.ForEach([&](int64_t, float& logit) { logit = args.softcap * tanhf(logit / args.softcap); });
    __syncthreads();
  }
  if (row.params.keeps_logits) {
    if (threadIdx.x == 0) args.tokens[row.index] = -1;
    return;
  }
  float original_max = 0.0f;
  uint64_t original_sum = 0;
  // A mask must not hide what is not a number.
  if (row.params.wants_logprob || row.params.mask_row >= 0) original_max = FindBest(row, shared);
  if (row.params.wants_logprob) original_sum = SumOfWeights(row, shared, original_max);
  __syncthreads();
  ModifyLogits(row, shared);
  const float max = FindBest(row, shared);
  int64_t token = -1;
  const bool is_number = original_max > -INFINITY && original_max < INFINITY;
  if (is_number && max == -INFINITY && row.params.mask_row >= 0) {
    token = -2;
  } else if (is_number && max > -INFINITY && max < INFINITY) {
    token = row.params.temperature == 0.0f ? static_cast<int64_t>(shared.best_id)
                                           : Draw(row, shared, max);
  }
  if (threadIdx.x != 0) return;
  args.tokens[row.index] = static_cast<int32_t>(token);
  if (row.params.wants_logprob) {
    args.logprobs[row.index] =
        token < 0 ? NAN
                  : LogProbability(OriginalLogit(row, shared, token), original_max, original_sum);
  }
}

}  // namespace

void Sample(const SampleArgs& args, DeviceStream stream) {
  if (args.num_rows == 0) return;
  Launch(SampleKernel, {static_cast<uint32_t>(args.num_rows)}, kThreads, sizeof(Shared), stream,
         args);
}

}  // namespace rempart::kernels::cuda
