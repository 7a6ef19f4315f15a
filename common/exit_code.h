// SPDX-License-Identifier: Apache-2.0
// What the exit status of a process of ours means, to people and to whoever starts it again.
#pragma once

namespace rempart {

enum ExitCode : int {
  kExitOk = 0,       // ended as asked
  kExitRuntime = 1,  // failed while running
  kExitConfig = 2,   // wrong flags, configuration or manifest
  kExitModel = 3,    // a model's files are missing, not valid, or cannot be read any more
  kExitMemory = 4,   // not enough memory
  kExitAddress = 5,  // an address is in use, or not permitted
  kExitDevice = 6,   // no GPU to compute on
};

}  // namespace rempart
