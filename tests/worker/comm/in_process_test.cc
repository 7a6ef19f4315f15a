// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/in_process.h"

#include "tests/worker/comm/communicator_contract.h"

namespace rempart::worker {
namespace {

Group MakeInProcess(int size, const CommunicatorOptions& options) {
  return CreateInProcess(size, options);
}

Group MakeParking(int size, CommunicatorOptions options) {
  options.spin = std::chrono::microseconds(0);
  return CreateInProcess(size, options);
}

INSTANTIATE_TEST_SUITE_P(InProcess, CommunicatorContract,
                         ::testing::Values(CommunicatorKind{"spinning", MakeInProcess},
                                           CommunicatorKind{"parking", MakeParking}),
                         [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace rempart::worker
