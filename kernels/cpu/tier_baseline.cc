// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ops.inl.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

const Ops& BaselineOps() {
  static constexpr Ops kOps =
      MakeOps<GenericSimd<4, true>>("baseline", "portable C++, 4 lanes, int8 activations");
  return kOps;
}

}  // namespace rempart::kernels
