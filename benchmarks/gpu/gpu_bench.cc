// SPDX-License-Identifier: Apache-2.0
// gpu_bench: everything that benchmarks/gpu/run shows, on the first GPU that CUDA shows. Needs no
// files: a seed makes its models.
#include <string>
#include <vector>

#include "benchmarks/gpu/bench.h"

int main(int argc, char** argv) {
  using namespace rempart;  // NOLINT
  return benchmarks::RunBench({worker::FindGpus, worker::OpenGpu}, {},
                              std::vector<std::string>(argv + 1, argv + argc));
}
