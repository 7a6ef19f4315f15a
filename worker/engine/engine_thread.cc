// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/engine_thread.h"

#include "absl/time/clock.h"
#include "common/clock.h"

namespace rempart::worker {
namespace {

// An idle engine looks around this often even when nobody wakes it.
constexpr absl::Duration kIdleTurn = absl::Seconds(1);

}  // namespace

EngineThread::EngineThread(Engine* engine)
    : engine_(engine), thread_([this](std::stop_token stop) { Run(stop); }) {}

EngineThread::~EngineThread() {
  thread_.request_stop();
  engine_->Wake();
}

void EngineThread::Run(std::stop_token stop) {
  while (!stop.stop_requested()) {
    if (!engine_->Step()) engine_->WaitForWork(SteadyNow() + kIdleTurn);
  }
}

}  // namespace rempart::worker
