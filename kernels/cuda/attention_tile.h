// SPDX-License-Identifier: Apache-2.0
// Attention of 16 query rows against a tile of keys by one warp, on the tensor cores: what prefill
// and decode share. Scores, softmax and the sum over values are F32; probabilities are rounded to
// BF16 for the second product, after their sum was taken.
//
// Registers follow the fragments of mma.m16n8k16: a lane holds, of the rows lane / 4 and lane / 4 +
// 8 ("half" 0 and 1), two neighbouring columns of every eight.
#pragma once

#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/layout.h"

namespace rempart::kernels::cuda {

// Shared rows are head_dim + 8 elements: an odd number of 16-byte units, so that ldmatrix reads
// different banks.
template <int kHeadDim>
inline constexpr int kSharedStride = kHeadDim + 8;

template <int kHeadDim>
struct AttentionState {
  float out[kHeadDim / 8][4];
  float max[2];
  float sum[2];  // of this lane's columns only
};

template <int kHeadDim>
REMPART_DEVICE void Reset(AttentionState<kHeadDim>& state) {
  REMPART_UNROLL
  for (int i = 0; i < kHeadDim / 8; ++i) {
    for (int j = 0; j < 4; ++j) state.out[i][j] = 0.0f;
  }
  for (int half = 0; half < 2; ++half) {
    state.max[half] = -INFINITY;
    state.sum[half] = 0.0f;
  }
}

template <int kHeadDim>
REMPART_DEVICE void LoadQueries(const uint16_t* rows, uint32_t (&q)[kHeadDim / 16][4]) {
  REMPART_UNROLL
  for (int i = 0; i < kHeadDim / 16; ++i) {
    LoadMatrix(q[i], rows + Lane() % 16 * kSharedStride<kHeadDim> + 16 * i + Lane() / 16 * 8);
  }
}

// Raises the maxima to those of the scores, scales what was summed before, and turns scores into
// probabilities.
template <int kHeadDim, int kTokens>
REMPART_DEVICE void Softmax(float (&scores)[kTokens / 8][4], AttentionState<kHeadDim>& state) {
  REMPART_UNROLL
  for (int half = 0; half < 2; ++half) {
    float max = state.max[half];
    REMPART_UNROLL
    for (int i = 0; i < kTokens / 8; ++i) {
      max = fmaxf(max, fmaxf(scores[i][2 * half], scores[i][2 * half + 1]));
    }
    max = fmaxf(max, ShuffleXor(max, 1));
    max = fmaxf(max, ShuffleXor(max, 2));
    // A row that has seen nothing yet: any finite stand-in makes every exponential 0.
    const float base = max == -INFINITY ? 0.0f : max;
    const float correction = FastExp(state.max[half] - base);
    state.max[half] = max;
    state.sum[half] *= correction;
    REMPART_UNROLL
    for (int i = 0; i < kHeadDim / 8; ++i) {
      state.out[i][2 * half] *= correction;
      state.out[i][2 * half + 1] *= correction;
    }
    REMPART_UNROLL
    for (int i = 0; i < kTokens / 8; ++i) {
      for (int j = 2 * half; j < 2 * half + 2; ++j) {
        scores[i][j] = FastExp(scores[i][j] - base);
        state.sum[half] += scores[i][j];
      }
    }
  }
}

// keys and values: [kTokens, kSharedStride] BF16 in shared memory. visible(half, token) tells
// whether this lane's row sees the token.
template <int kHeadDim, int kTokens, class Visible>
REMPART_DEVICE void AttendTile(const uint32_t (&q)[kHeadDim / 16][4], const uint16_t* keys,
                               const uint16_t* values, float scale, float softcap, Visible visible,
                               AttentionState<kHeadDim>& state) {
  constexpr int kStride = kSharedStride<kHeadDim>;
  const int lane = Lane();
  float scores[kTokens / 8][4] = {};
  REMPART_UNROLL
  for (int n = 0; n < kTokens / 16; ++n) {
    REMPART_UNROLL
    for (int k = 0; k < kHeadDim / 16; ++k) {
      uint32_t b[4];
      LoadMatrix(b,
                 keys + (16 * n + lane % 8 + lane / 16 * 8) * kStride + 16 * k + lane / 8 % 2 * 8);
      const uint32_t low[2] = {b[0], b[1]};
      const uint32_t high[2] = {b[2], b[3]};
      MmaBf16(scores[2 * n], q[k], low);
      MmaBf16(scores[2 * n + 1], q[k], high);
    }
  }
  REMPART_UNROLL
  for (int i = 0; i < kTokens / 8; ++i) {
    for (int j = 0; j < 4; ++j) {
      float score = scores[i][j] * scale;
      if (softcap > 0.0f) score = softcap * tanhf(score / softcap);
      scores[i][j] = visible(j / 2, 8 * i + lane % 4 * 2 + j % 2) ? score : -INFINITY;
    }
  }
  Softmax<kHeadDim, kTokens>(scores, state);
  REMPART_UNROLL
  for (int n = 0; n < kTokens / 16; ++n) {
    const uint32_t p[4] = {PackBf16(scores[2 * n][0], scores[2 * n][1]),
                           PackBf16(scores[2 * n][2], scores[2 * n][3]),
                           PackBf16(scores[2 * n + 1][0], scores[2 * n + 1][1]),
                           PackBf16(scores[2 * n + 1][2], scores[2 * n + 1][3])};
    REMPART_UNROLL
    for (int d = 0; d < kHeadDim / 16; ++d) {
      uint32_t b[4];
      LoadMatrixT(b, values + (16 * n + lane % 16) * kStride + 16 * d + lane / 16 * 8);
      const uint32_t low[2] = {b[0], b[1]};
      const uint32_t high[2] = {b[2], b[3]};
      MmaBf16(state.out[2 * d], p, low);
      MmaBf16(state.out[2 * d + 1], p, high);
    }
  }
}

// Sums of whole rows, from those of the lanes' columns.
template <int kHeadDim>
REMPART_DEVICE void FinishSums(AttentionState<kHeadDim>& state) {
  for (int half = 0; half < 2; ++half) {
    state.sum[half] += ShuffleXor(state.sum[half], 1);
    state.sum[half] += ShuffleXor(state.sum[half], 2);
  }
}

// Brings eight elements of a cache row into shared memory as BF16; zeros where not `valid`, so that
// what was never written cannot make a NaN. BF16 is copied asynchronously, FP8 converted.
template <bool kIsFp8>
REMPART_DEVICE void LoadCacheRow(const DeviceKv& kv, const uint8_t* block, int64_t row, int at,
                                 bool valid, uint16_t* to) {
  if constexpr (kIsFp8) {
    float values[8] = {};
    if (valid) {
      const auto* words = Wide<uint32_t>(block + row + at);
      for (int i = 0; i < 8; ++i) {
        values[i] = ToFloat(Fp8{static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4)))});
      }
    }
    StoreBf16x8(to, values);
  } else {
    const void* from = kv.data;
    if (valid) from = Wide<uint16_t>(block) + row + at;
    CopyAsync16(to, from, valid);
  }
}

}  // namespace rempart::kernels::cuda
