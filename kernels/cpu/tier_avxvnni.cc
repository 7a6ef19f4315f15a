// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ops.inl.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

const Ops& AvxVnniOps() {
  static constexpr Ops kOps = MakeOps<Avx2Simd<true>>(
      "avxvnni", "AVX2 + FMA + F16C + AVX-VNNI, 8 lanes, int8 activations by vpdpbusd");
  return kOps;
}

}  // namespace rempart::kernels
