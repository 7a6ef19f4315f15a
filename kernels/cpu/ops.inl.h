// SPDX-License-Identifier: Apache-2.0
// The table of one instruction set. Included by the tier_*.cc files alone, each compiled for its
// instruction set; every function hangs on V, so no definition is shared between tiers.
#pragma once

#include "kernels/cpu/attention.inl.h"
#include "kernels/cpu/elementwise.inl.h"
#include "kernels/cpu/matmul_exact.inl.h"
#include "kernels/cpu/matmul_fast.inl.h"
#include "kernels/cpu/packed.inl.h"
#include "kernels/cpu/rope.inl.h"
#include "kernels/cpu/sampling.inl.h"

namespace rempart::kernels {

template <class V>
constexpr auto RoundOf() -> decltype(Ops::round) {
  if constexpr (kReadsRounded<V>) {
    return RoundTokens<V>;
  } else {
    return nullptr;
  }
}

template <class V>
constexpr Ops MakeOps(const char* name, const char* description) {
  return {
      .name = name,
      .description = description,
      .embed = Dequantizer<V>::Embed,
      .dequantize = Dequantizer<V>::Rows,
      .quantize = Elementwise<V>::Quantize,
      .round = RoundOf<V>(),
      .packed_bytes = PackedBytes<V>,
      .pack_rows = PackRows<V>,
      .matmul_exact = ExactMatmul<V>::Run,
      .matmul_fast = MatmulFast<V>,
      .rms_norm = Elementwise<V>::RmsNorm,
      .rope_angles = RopeKernels<V>::Angles,
      .rope = RopeKernels<V>::Rope,
      .kv_store = RopeKernels<V>::KvStore,
      .attention = Attention<V>,
      .silu_mul = Elementwise<V>::template ActMul<Math<V>::Silu>,
      .gelu_tanh_mul = Elementwise<V>::template ActMul<Math<V>::GeluTanh>,
      .add = Elementwise<V>::Add,
      .scale = Elementwise<V>::Scale,
      .softcap = Elementwise<V>::Softcap,
      .softmax = Elementwise<V>::Softmax,
      .argmax = Sampling<V>::Argmax,
      .weigh = Sampling<V>::Weigh,
  };
}

}  // namespace rempart::kernels
