// SPDX-License-Identifier: Apache-2.0
// Pieces that several kernels share: wide loads and stores of BF16 and F32, and the row of AddNorm,
// which the fused all-reduce ends with too.
#pragma once

#include "kernels/cuda/primitives.h"
#include "kernels/device_ops.h"

namespace rempart::kernels::cuda {

// Eight consecutive elements, aligned to 16 bytes.
REMPART_DEVICE void LoadBf16x8(const uint16_t* from, float (&to)[8]) {
  const uint4 raw = *Wide<uint4>(from);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  REMPART_UNROLL
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = LowFloat(words[i]);
    to[2 * i + 1] = HighFloat(words[i]);
  }
}
// Four of them, aligned to 8 bytes.
REMPART_DEVICE void LoadBf16x4(const uint16_t* from, float (&to)[4]) {
  const uint2 raw = *Wide<uint2>(from);
  to[0] = LowFloat(raw.x);
  to[1] = HighFloat(raw.x);
  to[2] = LowFloat(raw.y);
  to[3] = HighFloat(raw.y);
}
REMPART_DEVICE void StoreBf16x8(uint16_t* to, const float (&from)[8]) {
  const uint4 raw = {PackBf16(from[0], from[1]), PackBf16(from[2], from[3]),
                     PackBf16(from[4], from[5]), PackBf16(from[6], from[7])};
  *Wide<uint4>(to) = raw;
}
REMPART_DEVICE void LoadF32x8(const float* from, float (&to)[8]) {
  REMPART_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint4 raw = Wide<uint4>(from)[i];
    to[4 * i] = BitsFloat(raw.x);
    to[4 * i + 1] = BitsFloat(raw.y);
    to[4 * i + 2] = BitsFloat(raw.z);
    to[4 * i + 3] = BitsFloat(raw.w);
  }
}
REMPART_DEVICE void StoreF32x8(float* to, const float (&from)[8]) {
  REMPART_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint4 raw = {FloatBits(from[4 * i]), FloatBits(from[4 * i + 1]),
                       FloatBits(from[4 * i + 2]), FloatBits(from[4 * i + 3])};
    Wide<uint4>(to)[i] = raw;
  }
}

// AddNorm of one token by the whole block. load_branch(at, out) gives elements [at, at + 8) of the
// branch; it is not called where there is none. blockDim.x * 8 * kRounds >= cols.
template <int kRounds, class LoadBranch>
REMPART_DEVICE void AddNormRow(const AddNormArgs& args, int64_t row, int64_t out_row,
                               float (&values)[kRounds][8], float* scratch,
                               LoadBranch load_branch) {
  const int64_t step = static_cast<int64_t>(blockDim.x) * 8;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * 8;
  float branch_inverse = 1.0f;
  if (args.branch != nullptr) {
    float sum = 0.0f;
    REMPART_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      const int64_t at = first + round * step;
      if (at >= args.cols) break;
      load_branch(at, values[round]);
      for (int i = 0; i < 8; ++i) sum += values[round][i] * values[round][i];
    }
    if (args.branch_weight != nullptr) {
      sum = BlockSum(sum, scratch);
      branch_inverse = InverseRoot(sum / static_cast<float>(args.cols) + args.eps);
    }
  }
  float sum = 0.0f;
  REMPART_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    const int64_t at = first + round * step;
    if (at >= args.cols) break;
    float residual[8];
    LoadF32x8(args.residual + row * args.cols + at, residual);
    if (args.branch != nullptr) {
      float scale[8] = {1, 1, 1, 1, 1, 1, 1, 1};
      if (args.branch_weight != nullptr) LoadF32x8(args.branch_weight + at, scale);
      for (int i = 0; i < 8; ++i) residual[i] += values[round][i] * branch_inverse * scale[i];
      StoreF32x8(args.residual + row * args.cols + at, residual);
    }
    for (int i = 0; i < 8; ++i) {
      values[round][i] = residual[i];
      sum += residual[i] * residual[i];
    }
  }
  sum = BlockSum(sum, scratch);
  const float inverse = InverseRoot(sum / static_cast<float>(args.cols) + args.eps);
  REMPART_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    const int64_t at = first + round * step;
    if (at >= args.cols) break;
    float weight[8];
    LoadF32x8(args.weight + at, weight);
    for (int i = 0; i < 8; ++i) values[round][i] *= inverse * weight[i];
    StoreBf16x8(args.out + out_row * args.cols + at, values[round]);
  }
}

}  // namespace rempart::kernels::cuda
