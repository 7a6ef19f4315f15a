// SPDX-License-Identifier: Apache-2.0
// `rempart doctor`: what this machine has and lacks for Rempart, and what to do about it.
#pragma once

namespace rempart::cli {

// Prints a line per check; the exit status is 1 when `rempart serve` cannot work here.
int RunDoctor();

}  // namespace rempart::cli
