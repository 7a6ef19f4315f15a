// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ops.inl.h"
#include "kernels/cpu/simd_amx_bf16.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

const Ops& AmxBf16Ops() {
  static constexpr Ops kOps =
      MakeOps<AmxBf16Simd>("amxbf16", "as amx, and BF16 weights by AMX BF16 tiles, 16 lanes");
  return kOps;
}

}  // namespace rempart::kernels
