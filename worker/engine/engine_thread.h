// SPDX-License-Identifier: Apache-2.0
// The thread that runs an engine: steps while there is work, sleeps otherwise. Stops within one
// step.
#pragma once

#include <stop_token>
#include <thread>

#include "worker/engine/engine.h"

namespace rempart::worker {

class EngineThread {
 public:
  // The engine outlives the thread.
  explicit EngineThread(Engine* engine);
  ~EngineThread();

 private:
  void Run(std::stop_token stop);

  Engine* const engine_;
  std::jthread thread_;
};

}  // namespace rempart::worker
