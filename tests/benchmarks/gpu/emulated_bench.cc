// SPDX-License-Identifier: Apache-2.0
// gpu_bench over emulated GPUs, with models that these compute in seconds: the same program as on
// GPUs, its child processes included. EMULATED_GPUS: how many there are. EMULATED_CUT_OFF: set
// where they do not reach each other. EMULATED_TROUBLE=PART:WHAT: what happens to a part's process:
// it crashes, hangs, or its GPU has an error. EMULATED_PACE: BenchWork::pace.
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "benchmarks/gpu/bench.h"
#include "tests/benchmarks/gpu/emulated.h"
#include "worker/device/emulated_device.h"

namespace rempart::benchmarks {
namespace {

absl::StatusOr<std::vector<worker::CudaDeviceInfo>> FindEmulated() {
  const char* const count = std::getenv("EMULATED_GPUS");
  std::vector<worker::CudaDeviceInfo> cards(count != nullptr ? std::atoi(count) : 1);
  for (worker::CudaDeviceInfo& card : cards) {
    card.name = "Emulated GPU";
    card.memory_bytes_per_second = 1'000'000'000'000;
  }
  return cards;
}

std::string trouble;  // of this process

absl::StatusOr<std::unique_ptr<worker::Device>> OpenEmulated(int) {
  if (trouble == "crash") std::abort();
  if (trouble == "hang") pause();
  if (trouble == "error") return absl::InternalError("unspecified launch failure");
  auto device = std::make_unique<worker::EmulatedDevice>(kMemory);
  if (std::getenv("EMULATED_CUT_OFF") != nullptr) device->CutOff();
  return device;
}

BenchWork SmallWork() {
  BenchWork work;
  for (NamedConfig& named : work.small) {
    named.config.layers.resize(1);
    named.config.vocabulary = 256;
  }
  for (NamedConfig& named : work.exact) {
    named.config.layers.resize(1);
    named.config.vocabulary = 256;
  }
  work.large = work.small[0].config;
  work.speed_options = {.context_length = 64,
                        .max_step_tokens = 32,
                        .max_sequences = 4,
                        .kv_bytes = int64_t{2} << 20,
                        .reserve_bytes = 0};
  work.speed.batches = {1, 3};
  work.speed.prompt_tokens = 16;
  work.speed.decode_steps = 4;
  work.speed.prefill_tokens = 32;
  work.speed.prefill_repeats = 1;
  work.load_options = work.speed_options;
  work.load = {.cases = {{8, 8, 1000}}, .window = absl::Milliseconds(500)};
  work.profile = {.batches = {1}, .prompt_tokens = 8, .steps = 4, .repeats = 1};
  work.all_reduce_bytes = {8 << 10, 1 << 20};
  if (const char* const pace = std::getenv("EMULATED_PACE")) work.pace = std::atof(pace);
  return work;
}

void TakeTrouble(const std::vector<std::string>& words) {
  const char* const of = std::getenv("EMULATED_TROUBLE");
  if (of == nullptr || words.size() < 2 || words[0] != "--part") return;
  const std::string text = of, part = words[1] + ":";
  if (text.compare(0, part.size(), part) == 0) trouble = text.substr(part.size());
}

}  // namespace
}  // namespace rempart::benchmarks

int main(int argc, char** argv) {
  using namespace rempart::benchmarks;  // NOLINT
  const std::vector<std::string> words(argv + 1, argv + argc);
  TakeTrouble(words);
  return RunBench({FindEmulated, OpenEmulated}, SmallWork(), words);
}
