// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ops.inl.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

const Ops& Avx512VnniOps() {
  static constexpr Ops kOps = MakeOps<Avx512Simd<true>>(
      "avx512vnni", "AVX-512 VNNI, 16 lanes, int8 activations by vpdpbusd");
  return kOps;
}

}  // namespace rempart::kernels
