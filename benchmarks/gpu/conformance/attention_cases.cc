// SPDX-License-Identifier: Apache-2.0
// Attention over the paged cache: the same cases, cut into slices, for prefill and decode.
#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/conformance/harness.h"

namespace rempart::benchmarks {
namespace {

struct Slice {
  int64_t context;  // with its queries
  int64_t queries;
};
struct Shape {
  std::vector<Slice> slices;
  int64_t heads, kv_heads, dim;
  int64_t window = 0;
  float softcap = 0.0f;
  bool is_fp8 = false;
};

// Queries, keys and values of a batch, on the device and as floats.
struct Batch {
  kernels::DeviceAttentionArgs args;
  std::vector<float> q;                // [tokens, heads, dim]
  std::vector<std::vector<float>> kv;  // of a slice: K then V, [context, kv_heads, dim]
  DeviceArray<uint8_t> cache;
  DeviceArray<uint16_t> q_device, out;
  DeviceArray<int32_t> starts, contexts, tables, tile_slices, tile_indices;
  DeviceArray<float> partial;
};

constexpr float kKScale = 0.5f, kVScale = 2.0f;
// Columns behind those of the heads, which nobody may write, and what is in them.
constexpr int64_t kBehind = 24;
constexpr uint16_t kUntouched = 0x1234;

void PutElement(std::vector<uint8_t>& cache, int64_t block_start, int64_t index, bool is_fp8,
                float scale, float& value) {
  if (is_fp8) {
    const kernels::cuda::Fp8 code = kernels::cuda::ToFp8(value / scale);
    cache[block_start + index] = code.bits;
    value = kernels::cuda::ToFloat(code) * scale;
  } else {
    const uint16_t bits = kernels::cuda::ToBf16(value).bits;
    std::memcpy(cache.data() + block_start + 2 * index, &bits, 2);
    value = kernels::cuda::ToFloat(kernels::cuda::Bf16{bits});
  }
}

// Fills the cache's blocks in random order; what no token wrote is NaN.
absl::Status FillCache(Trial& trial, const Shape& shape, Batch& batch) {
  int64_t blocks = 0, table_stride = 1;
  for (const Slice& slice : shape.slices) {
    blocks += (slice.context + 15) / 16;
    table_stride = std::max(table_stride, (slice.context + 15) / 16);
  }
  std::vector<int32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), trial.random);
  const int64_t block_bytes = kernels::DeviceKvBlockBytes(shape.is_fp8, shape.kv_heads, shape.dim);
  const int64_t stride = block_bytes + 48;
  std::vector<uint8_t> cache(blocks * stride, 0xff);
  std::vector<int32_t> tables(shape.slices.size() * table_stride, -1);
  int64_t used = 0;
  for (size_t s = 0; s < shape.slices.size(); ++s) {
    const int64_t context = shape.slices[s].context;
    std::vector<float>& kv =
        batch.kv.emplace_back(RandomFloats(trial.random, 2 * context * shape.kv_heads * shape.dim));
    for (int64_t p = 0; p < context; ++p) {
      if (p % 16 == 0) tables[s * table_stride + p / 16] = order[used++];
      const int64_t start = tables[s * table_stride + p / 16] * stride;
      for (int64_t h = 0; h < 2 * shape.kv_heads; ++h) {
        const int64_t is_v = h / shape.kv_heads;
        for (int64_t d = 0; d < shape.dim; ++d) {
          float& value =
              kv[((is_v * context + p) * shape.kv_heads + h % shape.kv_heads) * shape.dim + d];
          PutElement(cache, start, (h * 16 + p % 16) * shape.dim + d, shape.is_fp8,
                     is_v ? kVScale : kKScale, value);
        }
      }
    }
  }
  ASSIGN_OR_RETURN(batch.cache, DeviceArray<uint8_t>::From(trial.device, cache));
  ASSIGN_OR_RETURN(batch.tables, DeviceArray<int32_t>::From(trial.device, tables));
  const bool is_fp8 = shape.is_fp8;
  batch.args.kv = {batch.cache.data(),      stride,         is_fp8,   is_fp8 ? kKScale : 1.0f,
                   is_fp8 ? kVScale : 1.0f, shape.kv_heads, shape.dim};
  batch.args.batch.block_tables = batch.tables.data();
  batch.args.batch.table_stride = table_stride;
  return absl::OkStatus();
}

absl::Status FillQueries(Trial& trial, const Shape& shape, Batch& batch) {
  std::vector<int32_t> starts = {0}, contexts, tile_slices, tile_indices;
  for (size_t s = 0; s < shape.slices.size(); ++s) {
    const Slice& slice = shape.slices[s];
    starts.push_back(starts.back() + static_cast<int32_t>(slice.queries));
    contexts.push_back(static_cast<int32_t>(slice.context));
    for (int64_t i = 0; i * kernels::kPrefillTile < slice.queries; ++i) {
      tile_slices.push_back(static_cast<int32_t>(s));
      tile_indices.push_back(static_cast<int32_t>(i));
    }
  }
  const int64_t tokens = starts.back();
  const int64_t width = shape.heads * shape.dim;
  batch.q = RandomFloats(trial.random, tokens * width);
  RoundToBf16(batch.q);
  // q lies in rows of a fused projection.
  const int64_t q_stride = width + 2 * shape.kv_heads * shape.dim;
  std::vector<uint16_t> rows(tokens * q_stride, 0x7fff);
  const std::vector<uint16_t> bits = ToBits(batch.q);
  for (int64_t t = 0; t < tokens; ++t) {
    std::copy_n(bits.data() + t * width, width, rows.data() + t * q_stride);
  }
  ASSIGN_OR_RETURN(batch.q_device, DeviceArray<uint16_t>::From(trial.device, rows));
  const std::vector<uint16_t> out(tokens * (width + kBehind), kUntouched);
  ASSIGN_OR_RETURN(batch.out, DeviceArray<uint16_t>::From(trial.device, out));
  ASSIGN_OR_RETURN(batch.starts, DeviceArray<int32_t>::From(trial.device, starts));
  ASSIGN_OR_RETURN(batch.contexts, DeviceArray<int32_t>::From(trial.device, contexts));
  ASSIGN_OR_RETURN(batch.tile_slices, DeviceArray<int32_t>::From(trial.device, tile_slices));
  ASSIGN_OR_RETURN(batch.tile_indices, DeviceArray<int32_t>::From(trial.device, tile_indices));
  kernels::DeviceAttentionArgs& args = batch.args;
  args.batch.num_tokens = tokens;
  args.batch.num_slices = static_cast<int64_t>(shape.slices.size());
  args.batch.query_starts = batch.starts.data();
  args.batch.contexts = batch.contexts.data();
  args.q = batch.q_device.data();
  args.q_stride = q_stride;
  args.out = batch.out.data();
  args.out_stride = width + kBehind;
  args.num_heads = shape.heads;
  args.scale = 1.0f / std::sqrt(static_cast<float>(shape.dim));
  args.softcap = shape.softcap;
  args.window = shape.window;
  args.tile_slices = batch.tile_slices.data();
  args.tile_indices = batch.tile_indices.data();
  args.num_tiles = static_cast<int64_t>(tile_slices.size());
  return absl::OkStatus();
}

// The formula of AttentionArgs, in double.
std::vector<float> Expected(const Shape& shape, const Batch& batch) {
  std::vector<float> out;
  int64_t row = 0;
  for (size_t s = 0; s < shape.slices.size(); ++s) {
    const Slice& slice = shape.slices[s];
    const float* keys = batch.kv[s].data();
    const float* values = keys + slice.context * shape.kv_heads * shape.dim;
    for (int64_t i = 0; i < slice.queries; ++i, ++row) {
      const int64_t last = slice.context - slice.queries + i;
      const int64_t first = shape.window > 0 ? std::max<int64_t>(0, last - shape.window + 1) : 0;
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t kv_head = h / (shape.heads / shape.kv_heads);
        const float* q = batch.q.data() + (row * shape.heads + h) * shape.dim;
        std::vector<double> sums(shape.dim, 0.0);
        double total = 0;
        for (int64_t p = first; p <= last; ++p) {
          const int64_t at = (p * shape.kv_heads + kv_head) * shape.dim;
          double score = 0;
          for (int64_t d = 0; d < shape.dim; ++d) score += static_cast<double>(q[d]) * keys[at + d];
          score *= batch.args.scale;
          if (shape.softcap > 0) score = shape.softcap * std::tanh(score / shape.softcap);
          const double weight = std::exp(score);
          total += weight;
          for (int64_t d = 0; d < shape.dim; ++d) sums[d] += weight * values[at + d];
        }
        for (const double sum : sums) out.push_back(static_cast<float>(sum / total));
      }
    }
  }
  return out;
}

std::string What(const Shape& shape) {
  std::string what = absl::StrCat(shape.heads, "/", shape.kv_heads, " heads of ", shape.dim,
                                  shape.is_fp8 ? " FP8" : "");
  if (shape.window > 0) absl::StrAppend(&what, " window ", shape.window);
  if (shape.softcap > 0) absl::StrAppend(&what, " softcap ", shape.softcap);
  for (const Slice& slice : shape.slices) {
    absl::StrAppend(&what, " ", slice.queries, "@", slice.context);
  }
  return what;
}

absl::Status Check(Trial& trial, const Shape& shape, const Batch& batch) {
  ASSIGN_OR_RETURN(const std::vector<uint16_t> rows, batch.out.Read(trial.device));
  const int64_t width = shape.heads * shape.dim;
  std::vector<uint16_t> bits;
  for (size_t row = 0; row < rows.size(); row += batch.args.out_stride) {
    const auto begin = rows.begin() + static_cast<int64_t>(row);
    bits.insert(bits.end(), begin, begin + width);
    const auto end = begin + batch.args.out_stride;
    if (std::count(begin + width, end, kUntouched) != kBehind) {
      return absl::InternalError(absl::StrCat(What(shape), ": wrote behind the heads"));
    }
  }
  // Probabilities are rounded to BF16: half a step of each value's share, at most.
  trial.Compare(What(shape), ToFloats(bits), Expected(shape, batch), 0.008, 0.004);
  return absl::OkStatus();
}

}  // namespace

absl::Status AttentionPrefillCase(Trial& trial) {
  const Shape shapes[] = {
      {{{1, 1}, {65, 65}}, 2, 1, 64},
      {{{130, 70}, {3, 3}, {64, 64}}, 3, 3, 40},
      {{{200, 66}, {17, 16}}, 2, 2, 128},
      {{{90, 33}}, 2, 1, 256},
      {{{70, 70}}, 2, 1, 8},
      {{{300, 130}}, 1, 1, 64, 50},
      {{{150, 20}}, 2, 1, 128, 64, 20.0f},
      {{{140, 67}, {5, 5}}, 2, 1, 64, 0, 0.0f, true},
      {{{80, 20}}, 2, 1, 256, 30, 0.0f, true},
  };
  for (const Shape& shape : shapes) {
    Batch batch;
    RETURN_IF_ERROR(FillCache(trial, shape, batch));
    RETURN_IF_ERROR(FillQueries(trial, shape, batch));
    trial.device.ops().attention_prefill(batch.args, trial.device.stream());
    RETURN_IF_ERROR(Check(trial, shape, batch));
  }
  return absl::OkStatus();
}

absl::Status AttentionDecodeCase(Trial& trial) {
  const Shape shapes[] = {
      {{{1, 1}, {16, 1}, {17, 1}, {260, 1}}, 4, 1, 64},
      {{{300, 1}, {31, 1}}, 9, 3, 64},
      {{{129, 1}, {64, 1}}, 8, 2, 128},
      {{{100, 1}}, 4, 1, 256},
      {{{77, 1}}, 40, 2, 16},
      {{{290, 1}, {20, 1}}, 2, 2, 128, 33},
      {{{200, 1}}, 4, 1, 80, 128, 20.0f},
      {{{150, 1}, {9, 1}}, 8, 1, 128, 0, 0.0f, true},
      {{{70, 1}}, 4, 1, 256, 0, 0.0f, true},
  };
  for (const Shape& shape : shapes) {
    Batch batch;
    RETURN_IF_ERROR(FillCache(trial, shape, batch));
    RETURN_IF_ERROR(FillQueries(trial, shape, batch));
    batch.args.split_tokens = 64;
    batch.args.max_splits = 5;
    const auto slices = static_cast<int64_t>(shape.slices.size());
    ASSIGN_OR_RETURN(batch.partial, DeviceArray<float>::Make(
                                        trial.device, kernels::DecodePartialFloats(
                                                          slices, shape.heads, shape.dim, 5)));
    batch.args.partial = batch.partial.data();
    trial.device.ops().attention_decode(batch.args, trial.device.stream());
    RETURN_IF_ERROR(Check(trial, shape, batch));
  }
  return absl::OkStatus();
}

}  // namespace rempart::benchmarks
