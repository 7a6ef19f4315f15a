// SPDX-License-Identifier: Apache-2.0
// Norms, rotation with KV append, activations, quantisation, and what moves data.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/conformance/harness.h"
#include "kernels/cuda/hash.h"
#include "kernels/ops.h"

namespace rempart::benchmarks {
namespace {

constexpr double kBf16 = 0.004;  // half a step of BF16, relative

struct NormShape {
  int64_t rows, cols;
  bool has_branch, has_branch_norm, picks_rows;
};

absl::Status RunNorm(Trial& trial, const NormShape& shape) {
  const int64_t tokens = shape.rows + 2;
  std::vector<float> residual = RandomFloats(trial.random, tokens * shape.cols);
  std::vector<float> branch = RandomFloats(trial.random, tokens * shape.cols, 0.5f);
  RoundToBf16(branch);
  const std::vector<float> weight = RandomFloats(trial.random, shape.cols);
  const std::vector<float> branch_weight = RandomFloats(trial.random, shape.cols);
  std::vector<int32_t> rows(shape.rows);
  for (int64_t i = 0; i < shape.rows; ++i) rows[i] = static_cast<int32_t>(tokens - 1 - i);
  ASSIGN_OR_RETURN(auto residual_device, DeviceArray<float>::From(trial.device, residual));
  ASSIGN_OR_RETURN(auto branch_device, DeviceArray<uint16_t>::From(trial.device, ToBits(branch)));
  ASSIGN_OR_RETURN(auto weight_device, DeviceArray<float>::From(trial.device, weight));
  ASSIGN_OR_RETURN(auto branch_weight_device,
                   DeviceArray<float>::From(trial.device, branch_weight));
  ASSIGN_OR_RETURN(auto rows_device, DeviceArray<int32_t>::From(trial.device, rows));
  ASSIGN_OR_RETURN(auto out, DeviceArray<uint16_t>::Make(trial.device, shape.rows * shape.cols));
  kernels::AddNormArgs args;
  args.residual = residual_device.data();
  if (shape.has_branch) args.branch = branch_device.data();
  if (shape.has_branch_norm) args.branch_weight = branch_weight_device.data();
  args.weight = weight_device.data();
  args.eps = 1e-5f;
  args.out = out.data();
  if (shape.picks_rows) args.rows = rows_device.data();
  args.num_rows = shape.rows;
  args.cols = shape.cols;
  trial.device.ops().add_norm(args, trial.device.stream());

  const kernels::Ops& reference = kernels::ReferenceOps();
  std::vector<float> expected(shape.rows * shape.cols), added(shape.cols);
  for (int64_t i = 0; i < shape.rows; ++i) {
    const int64_t t = shape.picks_rows ? rows[i] : i;
    float* row = residual.data() + t * shape.cols;
    std::copy_n(branch.data() + t * shape.cols, shape.cols, added.data());
    if (shape.has_branch_norm) {
      reference.rms_norm(added.data(), shape.cols, branch_weight.data(), args.eps, shape.cols,
                         added.data(), shape.cols, 0, 1);
    }
    if (shape.has_branch) reference.add(row, added.data(), row, 0, shape.cols);
    reference.rms_norm(row, shape.cols, weight.data(), args.eps, shape.cols,
                       expected.data() + i * shape.cols, shape.cols, 0, 1);
  }
  const std::string what =
      absl::StrCat("[", shape.rows, ", ", shape.cols, "]", shape.has_branch ? " + branch" : "",
                   shape.has_branch_norm ? " normed" : "", shape.picks_rows ? ", picked rows" : "");
  ASSIGN_OR_RETURN(const std::vector<uint16_t> bits, out.Read(trial.device));
  trial.Compare(what, ToFloats(bits), expected, 1e-5, kBf16);
  ASSIGN_OR_RETURN(const std::vector<float> actual, residual_device.Read(trial.device));
  trial.Compare(what + " residual", actual, residual, 2e-5, 1e-5);
  return absl::OkStatus();
}

struct RopeShape {
  int64_t heads, kv_heads, dim, rotary;
  kernels::RopeLayout layout;
  bool has_norm, is_fp8;
  bool has_bias = false;
};

// The third token is padding; the two slices share no block.
const std::vector<int32_t>& RopePositions() {
  static const auto* positions = new std::vector<int32_t>{14, 15, -1, 16, 40};
  return *positions;
}
const std::vector<int32_t>& RopeSliceOfToken() {
  static const auto* slices = new std::vector<int32_t>{0, 0, 0, 0, 1};
  return *slices;
}
const std::vector<int32_t>& RopeTables() {
  static const auto* tables = new std::vector<int32_t>{4, 1, 0, 2, 3, 5};
  return *tables;
}
constexpr int64_t kRopeTableStride = 3;
constexpr float kRopeKScale = 0.5f, kRopeVScale = 0.25f;

struct RopeInput {
  std::vector<float> qkv, bias, query_norm, key_norm, frequency;
};
constexpr float kAngleScale = 1.25f;

// What a token's row becomes, by the reference.
void RotateRow(const RopeShape& shape, const RopeInput& input, int32_t position, float* row) {
  if (position < 0) return;
  const kernels::Ops& reference = kernels::ReferenceOps();
  if (shape.has_bias) {
    reference.add(row, input.bias.data(), row, 0, static_cast<int64_t>(input.bias.size()));
  }
  if (shape.has_norm) {
    float* keys = row + shape.heads * shape.dim;
    reference.rms_norm(row, shape.dim, input.query_norm.data(), 1e-5f, shape.dim, row, shape.dim, 0,
                       shape.heads);
    reference.rms_norm(keys, shape.dim, input.key_norm.data(), 1e-5f, shape.dim, keys, shape.dim, 0,
                       shape.kv_heads);
  }
  const int64_t half = shape.rotary / 2;
  std::vector<float> cosines(half), sines(half);
  reference.rope_angles(&position, input.frequency.data(), half, kAngleScale, cosines.data(),
                        sines.data(), 0, 1);
  const kernels::RopeArgs rope = {row,
                                  0,
                                  cosines.data(),
                                  sines.data(),
                                  shape.heads + shape.kv_heads,
                                  shape.dim,
                                  shape.rotary,
                                  shape.layout};
  reference.rope(rope, 0, 1);
}

// Element i of [2, kv_heads, head_dim] of the token at `position` in a block's bytes.
float CachedElement(const RopeShape& shape, const uint8_t* block, int64_t position, int64_t i) {
  const int64_t at = (i / shape.dim * 16 + position % 16) * shape.dim + i % shape.dim;
  if (shape.is_fp8) {
    const float scale = i < shape.kv_heads * shape.dim ? kRopeKScale : kRopeVScale;
    return kernels::cuda::ToFloat(kernels::cuda::Fp8{block[at]}) * scale;
  }
  uint16_t bits;
  std::memcpy(&bits, block + 2 * at, 2);
  return kernels::cuda::ToFloat(kernels::cuda::Bf16{bits});
}

void CompareRope(Trial& trial, const RopeShape& shape, RopeInput& input,
                 const std::vector<uint16_t>& qkv_bits, const std::vector<uint8_t>& cache,
                 int64_t stride) {
  const int64_t queries = shape.heads * shape.dim;
  const int64_t keys = shape.kv_heads * shape.dim;
  const std::vector<float> after = ToFloats(qkv_bits);
  std::vector<float> expected_q, actual_q, expected_kv, actual_kv;
  for (size_t t = 0; t < RopePositions().size(); ++t) {
    const int32_t position = RopePositions()[t];
    float* row = input.qkv.data() + t * (queries + 2 * keys);
    RotateRow(shape, input, position, row);
    expected_q.insert(expected_q.end(), row, row + queries);
    const float* actual = after.data() + t * (queries + 2 * keys);
    actual_q.insert(actual_q.end(), actual, actual + queries);
    if (position < 0) continue;
    const int64_t block = RopeTables()[RopeSliceOfToken()[t] * kRopeTableStride + position / 16];
    for (int64_t i = 0; i < 2 * keys; ++i) {
      actual_kv.push_back(CachedElement(shape, cache.data() + block * stride, position, i));
      expected_kv.push_back(row[queries + i]);
    }
  }
  const std::string what = absl::StrCat(
      shape.heads, "/", shape.kv_heads, " heads of ", shape.dim, ", rotary ", shape.rotary,
      shape.layout == kernels::RopeLayout::kHalves ? " halves" : " interleaved",
      shape.has_norm ? " normed" : "", shape.is_fp8 ? " FP8" : "", shape.has_bias ? " bias" : "");
  trial.Compare(what + " q", actual_q, expected_q, 1e-4, kBf16);
  trial.Compare(what + " kv", actual_kv, expected_kv, shape.is_fp8 ? 2e-3 : 1e-4,
                shape.is_fp8 ? 0.0626 : kBf16);
}

absl::Status RunRope(Trial& trial, const RopeShape& shape) {
  const auto tokens = static_cast<int64_t>(RopePositions().size());
  RopeInput input;
  input.qkv = RandomFloats(trial.random, tokens * (shape.heads + 2 * shape.kv_heads) * shape.dim);
  RoundToBf16(input.qkv);
  input.bias = RandomFloats(trial.random, (shape.heads + 2 * shape.kv_heads) * shape.dim, 0.3f);
  input.query_norm = RandomFloats(trial.random, shape.dim);
  input.key_norm = RandomFloats(trial.random, shape.dim);
  for (int64_t i = 0; i < shape.rotary / 2; ++i) {
    input.frequency.push_back(
        std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(shape.rotary)));
  }
  const int64_t stride = kernels::DeviceKvBlockBytes(shape.is_fp8, shape.kv_heads, shape.dim) + 32;
  worker::Device& device = trial.device;
  ASSIGN_OR_RETURN(auto qkv, DeviceArray<uint16_t>::From(device, ToBits(input.qkv)));
  ASSIGN_OR_RETURN(auto bias, DeviceArray<float>::From(device, input.bias));
  ASSIGN_OR_RETURN(auto q_norm, DeviceArray<float>::From(device, input.query_norm));
  ASSIGN_OR_RETURN(auto k_norm, DeviceArray<float>::From(device, input.key_norm));
  ASSIGN_OR_RETURN(auto frequency, DeviceArray<float>::From(device, input.frequency));
  ASSIGN_OR_RETURN(auto positions, DeviceArray<int32_t>::From(device, RopePositions()));
  ASSIGN_OR_RETURN(auto slices, DeviceArray<int32_t>::From(device, RopeSliceOfToken()));
  ASSIGN_OR_RETURN(auto tables, DeviceArray<int32_t>::From(device, RopeTables()));
  ASSIGN_OR_RETURN(auto cache, DeviceArray<uint8_t>::Make(device, 6 * stride));
  kernels::RopeStoreArgs args;
  args.qkv = qkv.data();
  args.bias = shape.has_bias ? bias.data() : nullptr;
  args.angle_scale = kAngleScale;
  args.query_norm = shape.has_norm ? q_norm.data() : nullptr;
  args.key_norm = shape.has_norm ? k_norm.data() : nullptr;
  args.inverse_frequency = frequency.data();
  args.rotary_dim = shape.rotary;
  args.layout = shape.layout;
  args.num_heads = shape.heads;
  args.kv = {cache.data(), stride,         shape.is_fp8, kRopeKScale,
             kRopeVScale,  shape.kv_heads, shape.dim};
  args.batch.num_tokens = tokens;
  args.batch.num_slices = 2;
  args.batch.positions = positions.data();
  args.batch.slice_of_token = slices.data();
  args.batch.block_tables = tables.data();
  args.batch.table_stride = kRopeTableStride;
  device.ops().rope_store(args, device.stream());
  ASSIGN_OR_RETURN(const std::vector<uint16_t> qkv_bits, qkv.Read(device));
  ASSIGN_OR_RETURN(const std::vector<uint8_t> bytes, cache.Read(device));
  CompareRope(trial, shape, input, qkv_bits, bytes, stride);
  return absl::OkStatus();
}

}  // namespace

absl::Status AddNormCase(Trial& trial) {
  for (const NormShape& shape :
       {NormShape{3, 64, false, false, false}, NormShape{2, 576, true, false, false},
        NormShape{5, 640, true, true, false}, NormShape{3, 4104, true, true, true},
        NormShape{1, 16384, true, false, false}, NormShape{2, 8, false, false, true}}) {
    RETURN_IF_ERROR(RunNorm(trial, shape));
  }
  return absl::OkStatus();
}

absl::Status RopeStoreCase(Trial& trial) {
  using kernels::RopeLayout;
  for (const RopeShape& shape : {RopeShape{9, 3, 64, 64, RopeLayout::kInterleaved, false, false},
                                 RopeShape{4, 1, 256, 256, RopeLayout::kHalves, true, false},
                                 RopeShape{2, 2, 80, 32, RopeLayout::kHalves, false, false, true},
                                 RopeShape{5, 1, 8, 8, RopeLayout::kHalves, false, false},
                                 RopeShape{8, 2, 128, 128, RopeLayout::kInterleaved, true, true}}) {
    RETURN_IF_ERROR(RunRope(trial, shape));
  }
  return absl::OkStatus();
}

absl::Status ActivateCase(Trial& trial) {
  const kernels::Ops& reference = kernels::ReferenceOps();
  for (const bool is_gelu : {false, true}) {
    for (const int64_t cols : {8, 264, 1536}) {
      const int64_t tokens = 3;
      std::vector<float> in = RandomFloats(trial.random, tokens * 2 * cols, 3.0f);
      RoundToBf16(in);
      ASSIGN_OR_RETURN(auto in_device, DeviceArray<uint16_t>::From(trial.device, ToBits(in)));
      ASSIGN_OR_RETURN(auto out, DeviceArray<uint16_t>::Make(trial.device, tokens * cols));
      trial.device.ops().activate({in_device.data(), out.data(), is_gelu, tokens, cols},
                                  trial.device.stream());
      std::vector<float> expected(tokens * cols);
      (is_gelu ? reference.gelu_tanh_mul : reference.silu_mul)(
          in.data(), in.data() + cols, 2 * cols, cols, expected.data(), cols, 0, tokens);
      ASSIGN_OR_RETURN(const std::vector<uint16_t> bits, out.Read(trial.device));
      trial.Compare(absl::StrCat(is_gelu ? "GELU" : "SiLU", " [", tokens, ", ", cols, "]"),
                    ToFloats(bits), expected, 1e-5, kBf16);
    }
  }
  return absl::OkStatus();
}

// A scale for each 128 columns, the last of which may be fewer, and tokens that are added.
absl::Status QuantizeGroups(Trial& trial, int64_t tokens, int64_t padded, int64_t cols) {
  constexpr int64_t kGroup = kernels::kScaleBlock;
  const int64_t groups = (cols + kGroup - 1) / kGroup;
  std::vector<float> x = RandomFloats(trial.random, tokens * cols);
  for (int64_t i = 0; i < tokens * cols; ++i) x[i] *= std::exp2(static_cast<float>(i / 128 % 9));
  // A group of zeros, and one of numbers whose inverse is beyond F32.
  std::fill_n(x.begin(), std::min(cols, kGroup), 0.0f);
  for (int64_t i = kGroup; i < std::min(cols, 2 * kGroup); ++i) x[i] = i % 2 == 0 ? 2e-38f : 0.0f;
  RoundToBf16(x);
  ASSIGN_OR_RETURN(auto x_device, DeviceArray<uint16_t>::From(trial.device, ToBits(x)));
  // All of it is written: no byte stays as it was.
  const std::vector<uint8_t> code_nans(padded * cols, 0x7f);
  ASSIGN_OR_RETURN(auto codes, DeviceArray<uint8_t>::From(trial.device, code_nans));
  const std::vector<float> nans(groups * padded, NAN);
  ASSIGN_OR_RETURN(auto scales, DeviceArray<float>::From(trial.device, nans));
  trial.device.ops().quantize_rows(
      {x_device.data(), codes.data(), scales.data(), false, tokens, cols, kGroup, padded},
      trial.device.stream());
  ASSIGN_OR_RETURN(const std::vector<uint8_t> code_bytes, codes.Read(trial.device));
  ASSIGN_OR_RETURN(const std::vector<float> actual_scales, scales.Read(trial.device));
  std::vector<float> largest(groups * padded), actual, expected(padded * cols);
  for (int64_t i = 0; i < padded * cols; ++i) {
    const int64_t token = i / cols, at = i % cols / kGroup * padded + token;
    actual.push_back(kernels::cuda::ToFloat(kernels::cuda::Fp8{code_bytes[i]}) * actual_scales[at]);
    if (token >= tokens) continue;
    expected[i] = x[i];
    largest[at] = std::max(largest[at], std::fabs(x[i]) / 448);
  }
  const std::string what = absl::StrCat("by groups [", tokens, ", ", cols, "] in ", padded);
  trial.Compare(what + ", scales", actual_scales, largest, 1e-30, 1e-6);
  // Half of 2^-3 of the value, or of the least step, which is 2^-9 of the group's scale: at most of
  // the largest one.
  const float step = *std::max_element(largest.begin(), largest.end());
  trial.Compare(what, actual, expected, step * 0.001, 0.0626);
  return absl::OkStatus();
}

// Some of `padded` tokens are added.
absl::Status QuantizeByRows(Trial& trial, bool is_int8, int64_t padded) {
  const int64_t tokens = 3;
  const int64_t cols = 2064;
  std::vector<float> x = RandomFloats(trial.random, tokens * cols);
  std::fill_n(x.begin() + cols, cols, 0.0f);  // a row of zeros, but for one next to nothing
  x[cols] = 2e-38f;
  RoundToBf16(x);
  ASSIGN_OR_RETURN(auto x_device, DeviceArray<uint16_t>::From(trial.device, ToBits(x)));
  x.resize(padded * cols);
  const std::vector<uint8_t> code_nans(padded * cols, 0x7f);
  ASSIGN_OR_RETURN(auto codes, DeviceArray<uint8_t>::From(trial.device, code_nans));
  const std::vector<float> nans(padded, NAN);
  ASSIGN_OR_RETURN(auto scales, DeviceArray<float>::From(trial.device, nans));
  trial.device.ops().quantize_rows({x_device.data(), codes.data(), scales.data(), is_int8, tokens,
                                    cols, 0, padded > tokens ? padded : 0},
                                   trial.device.stream());
  ASSIGN_OR_RETURN(const std::vector<uint8_t> code_bytes, codes.Read(trial.device));
  ASSIGN_OR_RETURN(const std::vector<float> scale_values, scales.Read(trial.device));
  std::vector<float> actual;
  float largest = 0;
  for (int64_t i = 0; i < padded * cols; ++i) {
    const float code = is_int8 ? static_cast<float>(static_cast<int8_t>(code_bytes[i]))
                               : kernels::cuda::ToFloat(kernels::cuda::Fp8{code_bytes[i]});
    actual.push_back(code * scale_values[i / cols]);
    largest = std::max(largest, std::fabs(x[i]));
  }
  // INT8: half a step of the row's scale. FP8: half of 2^-3 of the value, or of its least step.
  trial.Compare(absl::StrCat(is_int8 ? "INT8" : "FP8", " in ", padded), actual, x,
                is_int8 ? largest / 127 * 0.501 : largest / 448 * 0.002, is_int8 ? 0 : 0.0626);
  return absl::OkStatus();
}

absl::Status QuantizeRowsCase(Trial& trial) {
  RETURN_IF_ERROR(QuantizeGroups(trial, 1, 4, 128));
  RETURN_IF_ERROR(QuantizeGroups(trial, 9, 9, 640));
  RETURN_IF_ERROR(QuantizeGroups(trial, 5, 16, 2064));
  RETURN_IF_ERROR(QuantizeGroups(trial, 131, 256, 16));
  for (const bool is_int8 : {false, true}) {
    for (const int64_t padded : {3, 8}) RETURN_IF_ERROR(QuantizeByRows(trial, is_int8, padded));
  }
  return absl::OkStatus();
}

absl::Status ScaleSumsCase(Trial& trial) {
  for (const bool y_is_f32 : {false, true}) {
    const int64_t tokens = 5, rows = 259, y_stride = rows + 6;
    std::vector<int32_t> sums(tokens * rows);
    for (int32_t& sum : sums) sum = static_cast<int32_t>(trial.random()) / 8;
    sums[0] = -127 * 127 * 14336;
    const std::vector<float> x_scales = RandomFloats(trial.random, tokens, 0.01f);
    const std::vector<float> w_scales = RandomFloats(trial.random, rows, 0.01f);
    ASSIGN_OR_RETURN(auto sums_device, DeviceArray<int32_t>::From(trial.device, sums));
    ASSIGN_OR_RETURN(auto x_device, DeviceArray<float>::From(trial.device, x_scales));
    ASSIGN_OR_RETURN(auto w_device, DeviceArray<float>::From(trial.device, w_scales));
    ASSIGN_OR_RETURN(auto y_device, DeviceArray<float>::Make(trial.device, tokens * y_stride));
    trial.device.ops().scale_sums({sums_device.data(), x_device.data(), w_device.data(),
                                   y_device.data(), y_stride, y_is_f32, tokens, rows},
                                  trial.device.stream());
    ASSIGN_OR_RETURN(const std::vector<float> words, y_device.Read(trial.device));
    std::vector<uint16_t> halves(words.size() * 2);
    std::memcpy(halves.data(), words.data(), words.size() * 4);
    std::vector<float> actual, expected;
    for (int64_t i = 0; i < tokens * y_stride; ++i) {
      const int64_t token = i / y_stride, row = i % y_stride;
      actual.push_back(y_is_f32 ? words[i]
                                : kernels::cuda::ToFloat(kernels::cuda::Bf16{halves[i]}));
      // What is between rows stays as it was.
      expected.push_back(row >= rows ? 0.0f
                                     : static_cast<float>(sums[token * rows + row]) *
                                           x_scales[token] * w_scales[row]);
    }
    trial.Compare(y_is_f32 ? "F32" : "BF16", actual, expected, 1e-30, y_is_f32 ? 1e-6 : kBf16);
  }
  return absl::OkStatus();
}

absl::Status AdvanceCase(Trial& trial) {
  const int64_t rows = 300;
  std::vector<int32_t> tokens(rows), ids(rows, -9), positions(rows), contexts(rows);
  std::vector<kernels::DeviceSampling> samplings(rows);
  for (int32_t i = 0; i < rows; ++i) {
    tokens[i] = i * 3;
    positions[i] = i % 7 == 0 ? -1 : i;
    contexts[i] = i + 1;
    samplings[i].position = static_cast<uint64_t>(i) << 33;
  }
  ASSIGN_OR_RETURN(auto tokens_device, DeviceArray<int32_t>::From(trial.device, tokens));
  ASSIGN_OR_RETURN(auto ids_device, DeviceArray<int32_t>::From(trial.device, ids));
  ASSIGN_OR_RETURN(auto positions_device, DeviceArray<int32_t>::From(trial.device, positions));
  ASSIGN_OR_RETURN(auto contexts_device, DeviceArray<int32_t>::From(trial.device, contexts));
  ASSIGN_OR_RETURN(auto samplings_device,
                   DeviceArray<kernels::DeviceSampling>::From(trial.device, samplings));
  trial.device.ops().advance({tokens_device.data(), ids_device.data(), positions_device.data(),
                              contexts_device.data(), samplings_device.data(), rows},
                             trial.device.stream());
  ASSIGN_OR_RETURN(const auto new_ids, ids_device.Read(trial.device));
  ASSIGN_OR_RETURN(const auto new_positions, positions_device.Read(trial.device));
  ASSIGN_OR_RETURN(const auto new_contexts, contexts_device.Read(trial.device));
  ASSIGN_OR_RETURN(const auto new_samplings, samplings_device.Read(trial.device));
  bool holds = true;
  for (int32_t i = 0; i < rows; ++i) {
    const int step = i % 7 == 0 ? 0 : 1;
    holds &= new_ids[i] == (step ? tokens[i] : -9) && new_positions[i] == positions[i] + step &&
             new_contexts[i] == contexts[i] + step &&
             new_samplings[i].position == samplings[i].position + static_cast<uint64_t>(step);
  }
  trial.Require("300 rows, some of padding", holds);
  std::vector<int32_t> sources(rows);
  for (int32_t i = 0; i < rows; ++i) sources[i] = i % 5 == 0 ? -1 : (i * 7) % rows;
  ASSIGN_OR_RETURN(auto sources_device, DeviceArray<int32_t>::From(trial.device, sources));
  kernels::AdvanceArgs follow;
  follow.tokens = tokens_device.data();
  follow.ids = ids_device.data();
  follow.num_rows = rows;
  follow.sources = sources_device.data();
  trial.device.ops().advance(follow, trial.device.stream());
  ASSIGN_OR_RETURN(const auto followed, ids_device.Read(trial.device));
  holds = true;
  for (int32_t i = 0; i < rows; ++i) {
    holds &= followed[i] == (sources[i] < 0 ? new_ids[i] : tokens[sources[i]]);
  }
  trial.Require("300 rows from others", holds);
  return absl::OkStatus();
}

absl::Status CopyBlocksCase(Trial& trial) {
  for (const int64_t block_bytes : {16, 4096, 4112}) {
    std::vector<uint8_t> from(5 * block_bytes);
    for (uint8_t& byte : from) byte = static_cast<uint8_t>(trial.random());
    const std::vector<int32_t> pairs = {4, 0, 1, 6, 0, 3};
    ASSIGN_OR_RETURN(auto from_device, DeviceArray<uint8_t>::From(trial.device, from));
    ASSIGN_OR_RETURN(auto to_device, DeviceArray<uint8_t>::Make(trial.device, 7 * block_bytes));
    ASSIGN_OR_RETURN(auto pairs_device, DeviceArray<int32_t>::From(trial.device, pairs));
    trial.device.ops().copy_blocks(
        {from_device.data(), to_device.data(), pairs_device.data(), block_bytes, 3},
        trial.device.stream());
    std::vector<uint8_t> expected(7 * block_bytes, 0);
    for (size_t i = 0; i < pairs.size(); i += 2) {
      std::memcpy(expected.data() + pairs[i + 1] * block_bytes,
                  from.data() + pairs[i] * block_bytes, block_bytes);
    }
    ASSIGN_OR_RETURN(const auto actual, to_device.Read(trial.device));
    trial.Require(absl::StrCat("3 blocks of ", block_bytes, " bytes"), actual == expected);
  }
  return absl::OkStatus();
}

absl::Status HashCase(Trial& trial) {
  for (const int64_t bytes : {0, 1, 7, 8, 4099, 100003}) {
    std::vector<uint8_t> data(bytes + 8, 0xee);
    for (int64_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(trial.random());
    ASSIGN_OR_RETURN(auto data_device, DeviceArray<uint8_t>::From(trial.device, data));
    ASSIGN_OR_RETURN(auto out, DeviceArray<uint64_t>::Make(trial.device, 1));
    trial.device.ops().hash({data_device.data(), bytes, out.data()}, trial.device.stream());
    ASSIGN_OR_RETURN(const auto actual, out.Read(trial.device));
    trial.Require(absl::StrCat(bytes, " bytes"),
                  actual[0] == kernels::cuda::HashBytes(data.data(), bytes));
  }
  return absl::OkStatus();
}

}  // namespace rempart::benchmarks
