// SPDX-License-Identifier: Apache-2.0
#include "common/signals.h"

#include <pthread.h>

namespace rempart {

sigset_t EndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

sigset_t BlockEndSignals(int also) {
  sigset_t signals = EndSignals();
  if (also != 0) sigaddset(&signals, also);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signals;
}

}  // namespace rempart
