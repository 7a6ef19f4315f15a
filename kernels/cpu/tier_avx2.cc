// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ops.inl.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

const Ops& Avx2Ops() {
  static constexpr Ops kOps = MakeOps<Avx2Simd<false>>(
      "avx2", "AVX2 + FMA + F16C, 8 lanes, int8 activations by vpmaddubsw");
  return kOps;
}

}  // namespace rempart::kernels
