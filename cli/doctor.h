// SPDX-License-Identifier: Apache-2.0
// `rempart doctor`: what this machine has and lacks for Rempart, and what to do about it.
#pragma once

#include <string>

namespace rempart::cli {

// Prints a line per check, and what the kernels of `kernel_tier` compute ("": of the best that this
// machine has; one of kernels::ChoosableOps). The exit status is 1 when `rempart serve` cannot
// work here.
int RunDoctor(const std::string& kernel_tier);

// The part of it about GPUs: those that NVIDIA's driver shows, in its order, or why there are none.
// `nvml_library` may be empty: the loader's path.
void CheckGpus(const std::string& nvml_library);

// The part of it about the folder for sockets and logs of `rempart serve`: whether it is writable.
bool CheckFolder();

}  // namespace rempart::cli
