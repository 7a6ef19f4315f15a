// SPDX-License-Identifier: Apache-2.0
// Which kernel a table takes for which op and shape, in words, for people: `rempart doctor` and the
// metric rempart_worker_kernel_info. The numbers in it are those that the kernels are compiled
// with.
#pragma once

#include <string>
#include <vector>

#include "kernels/ops.h"

namespace rempart::kernels {

struct ChosenKernel {
  std::string op;      // as in ops.h; "others": those that are not named
  std::string when;    // types and shapes
  std::string kernel;  // what computes it then
};

// Of one op all shapes are there, each once. Empty for a table that this binary does not contain.
std::vector<ChosenKernel> ChosenKernels(const Ops& ops);

}  // namespace rempart::kernels
