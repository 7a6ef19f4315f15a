// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ops.inl.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

const Ops& Avx512Ops() {
  static constexpr Ops kOps = MakeOps<Avx512Simd<false>>(
      "avx512", "AVX-512 F/BW/DQ/VL, 16 lanes, int8 activations by vpmaddubsw");
  return kOps;
}

}  // namespace rempart::kernels
