// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ops.inl.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

const Ops& Avx512Bf16Ops() {
  static constexpr Ops kOps = MakeOps<Avx512Simd<true, true>>(
      "avx512bf16", "AVX-512 VNNI and BF16, 16 lanes, int8 by vpdpbusd, BF16 by vdpbf16ps");
  return kOps;
}

}  // namespace rempart::kernels
