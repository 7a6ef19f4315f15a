// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/machine_tiers.h"

namespace rempart::kernels {

std::vector<OpsTier> MachineTiers() { return {}; }

}  // namespace rempart::kernels
