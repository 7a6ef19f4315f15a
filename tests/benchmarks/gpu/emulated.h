// SPDX-License-Identifier: Apache-2.0
// What tests of the parts share: the memory of an emulated device, what a model may take of it, and
// the figures by their names.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "benchmarks/gpu/result.h"
#include "worker/model/device_transformer.h"

namespace rempart::benchmarks {

inline constexpr int64_t kMemory = int64_t{1} << 30;

inline worker::DeviceModelOptions SmallOptions() {
  worker::DeviceModelOptions options;
  options.context_length = 64;
  options.max_step_tokens = 32;
  options.max_sequences = 4;
  options.reserve_bytes = 0;
  options.kv_bytes = int64_t{2} << 20;
  return options;
}

inline std::map<std::string, double> ByName(const PartResult& result) {
  std::map<std::string, double> figures;
  for (const Figure& figure : result.figures) figures[figure.name] = figure.value;
  return figures;
}

}  // namespace rempart::benchmarks
