// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ops.inl.h"
#include "kernels/cpu/simd_amx.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

const Ops& AmxOps() {
  static constexpr Ops kOps = MakeOps<AmxSimd>(
      "amx", "AMX int8 tiles from 16 tokens on, AVX-512 VNNI below, BF16 by vdpbf16ps, 16 lanes");
  return kOps;
}

}  // namespace rempart::kernels
