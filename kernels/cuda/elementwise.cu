// SPDX-License-Identifier: Apache-2.0
// Activation of a feed-forward block, quantisation of activations by rows or by groups of columns,
// and what sums of int8 products stand for. Bound by memory: each reads its input once and writes
// its output once.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kThreads = 256;

REMPART_DEVICE float Silu(float x) { return x / (1.0f + FastExp(-x)); }
REMPART_DEVICE float GeluTanh(float x) {
  constexpr float kSqrt2OverPi = 0.7978845608f;
  return 0.5f * x * (1.0f + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
}

template <bool kIsGelu>
REMPART_KERNEL(kThreads)
ActivateKernel(ActivateArgs args) {
  WaitForPrevious();
  LetNextStart();
  const int64_t per_row = args.cols / 8;
  const int64_t count = args.num_tokens * per_row;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < count;
       item += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t token = item / per_row;
    const int64_t at = item % per_row * 8;
    float gate[8], up[8];
    LoadBf16x8(args.gate_up + token * 2 * args.cols + at, gate);
    LoadBf16x8(args.gate_up + token * 2 * args.cols + args.cols + at, up);
    for (int i = 0; i < 8; ++i) gate[i] = (kIsGelu ? GeluTanh(gate[i]) : Silu(gate[i])) * up[i];
    StoreBf16x8(args.out + token * args.cols + at, gate);
  }
}

struct Shared {
  float scratch[32];
};

// What numbers up to this magnitude are quantised by. Where all are less than kLeast, it is that:
// the inverse of their own scale might be infinite, and a zero among them NaN.
struct Scale {
  float scale;
  float inverse;
};
REMPART_DEVICE Scale ScaleOf(float largest, float code_max) {
  constexpr float kLeast = 1e-30f;
  const float magnitude = fmaxf(largest, kLeast);
  return {magnitude / code_max, code_max / magnitude};
}

// One block a token: finds the largest magnitude, then codes. The second read hits the cache.
template <bool kIsInt8>
REMPART_KERNEL(kThreads)
QuantizeRowsKernel(QuantizeRowsArgs args) {
  WaitForPrevious();
  LetNextStart();
  Shared& shared = *DynamicShared<Shared>();
  const int64_t token = blockIdx.x;
  const bool is_padding = token >= args.num_tokens;  // the same for all threads
  const uint16_t* x = args.x + token * args.cols;
  float largest = 0.0f;
  for (int64_t at = static_cast<int64_t>(threadIdx.x) * 8; at < args.cols && !is_padding;
       at += static_cast<int64_t>(blockDim.x) * 8) {
    float values[8];
    LoadBf16x8(x + at, values);
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(values[i]));
  }
  largest = BlockMax(largest, shared.scratch);
  const float code_max = kIsInt8 ? 127.0f : kFp8Max;
  const Scale scale = ScaleOf(largest, code_max);
  if (threadIdx.x == 0) args.scales[token] = scale.scale;
  auto* codes = static_cast<uint8_t*>(args.codes) + token * args.cols;
  for (int64_t at = static_cast<int64_t>(threadIdx.x) * 8; at < args.cols;
       at += static_cast<int64_t>(blockDim.x) * 8) {
    float values[8] = {};
    if (!is_padding) LoadBf16x8(x + at, values);
    uint32_t words[2] = {0, 0};
    for (int i = 0; i < 8; ++i) {
      const float scaled = values[i] * scale.inverse;
      const uint8_t code =
          kIsInt8 ? static_cast<uint8_t>(static_cast<int8_t>(rintf(scaled))) : ToFp8(scaled).bits;
      words[i / 4] |= static_cast<uint32_t>(code) << (8 * (i % 4));
    }
    Wide<uint32_t>(codes + at)[0] = words[0];
    Wide<uint32_t>(codes + at)[1] = words[1];
  }
}

// One block a token, a warp for each group of columns: a lane has four of them.
REMPART_KERNEL(kThreads) QuantizeGroupsKernel(QuantizeRowsArgs args) {
  WaitForPrevious();
  LetNextStart();
  constexpr int kEach = static_cast<int>(kScaleBlock) / kWarp;
  const int64_t token = blockIdx.x;
  const bool is_padding = token >= args.num_tokens;
  auto* codes = static_cast<uint8_t*>(args.codes) + token * args.cols;
  const int64_t groups = CeilDivide(args.cols, kScaleBlock);
  for (int64_t group = WarpIndex(); group < groups; group += blockDim.x / kWarp) {
    const int64_t at = group * kScaleBlock + Lane() * kEach;
    const bool is_inside = at < args.cols;
    float values[kEach] = {};
    if (is_inside && !is_padding) LoadBf16x4(args.x + token * args.cols + at, values);
    float largest = 0.0f;
    for (const float value : values) largest = fmaxf(largest, fabsf(value));
    const Scale scale = ScaleOf(WarpMax(largest), kFp8Max);
    if (Lane() == 0) {
      args.scales[GroupScaleAt(token, group, args.padded_tokens)] = scale.scale;
    }
    if (!is_inside) continue;
    uint32_t word = 0;
    for (int i = 0; i < kEach; ++i) {
      word |= static_cast<uint32_t>(ToFp8(values[i] * scale.inverse).bits) << (8 * i);
    }
    *Wide<uint32_t>(codes + at) = word;
  }
}

REMPART_KERNEL(kThreads) ScaleSumsKernel(ScaleSumsArgs args) {
  WaitForPrevious();
  LetNextStart();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= args.rows) return;
  for (int64_t token = blockIdx.y; token < args.num_tokens; token += gridDim.y) {
    const float value = static_cast<float>(args.sums[token * args.rows + row]) *
                        (args.x_scales[token] * args.w_scales[row]);
    const int64_t at = token * args.y_stride + row;
    if (args.y_is_f32) {
      static_cast<float*>(args.y)[at] = value;
    } else {
      static_cast<uint16_t*>(args.y)[at] = ToBf16(value).bits;
    }
  }
}

}  // namespace

void Activate(const ActivateArgs& args, DeviceStream stream) {
  const int64_t items = args.num_tokens * args.cols / 8;
  if (items == 0) return;
  const Grid grid = {static_cast<uint32_t>(Min<int64_t>(CeilDivide(items, kThreads), 1 << 20))};
  Launch(args.is_gelu ? ActivateKernel<true> : ActivateKernel<false>, grid, kThreads, 0, stream,
         args);
}

void QuantizeRows(const QuantizeRowsArgs& args, DeviceStream stream) {
  if (args.num_tokens == 0) return;
  QuantizeRowsArgs padded = args;
  padded.padded_tokens = Max(args.num_tokens, args.padded_tokens);
  const Grid grid = {static_cast<uint32_t>(padded.padded_tokens)};
  if (args.group != 0) {
    Launch(QuantizeGroupsKernel, grid, kThreads, 0, stream, padded);
    return;
  }
  Launch(args.is_int8 ? QuantizeRowsKernel<true> : QuantizeRowsKernel<false>, grid, kThreads,
         sizeof(Shared), stream, padded);
}

void ScaleSums(const ScaleSumsArgs& args, DeviceStream stream) {
  if (args.num_tokens == 0 || args.rows == 0) return;
  const Grid grid = {static_cast<uint32_t>(CeilDivide(args.rows, kThreads)),
                     static_cast<uint32_t>(Min<int64_t>(args.num_tokens, 65535))};
  Launch(ScaleSumsKernel, grid, kThreads, 0, stream, args);
}

}  // namespace rempart::kernels::cuda
