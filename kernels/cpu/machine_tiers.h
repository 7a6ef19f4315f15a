// SPDX-License-Identifier: Apache-2.0
// The tiers of this processor architecture, slowest first, beyond the baseline.
#pragma once

#include <vector>

#include "kernels/ops.h"

namespace rempart::kernels {

std::vector<OpsTier> MachineTiers();

}  // namespace rempart::kernels
