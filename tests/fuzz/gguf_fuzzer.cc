// SPDX-License-Identifier: Apache-2.0
// Any bytes parse or are refused; what parses has its tensors inside the bytes.
#include <cstdint>

#include "common/check.h"
#include "worker/model/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = rempart::worker::ParseGguf("fuzz", absl::MakeConstSpan(data, size));
  if (!file.ok()) {
    CHECK(!file.status().message().empty());
    return 0;
  }
  for (const auto& [name, tensor] : file->tensors) {
    CHECK(tensor.data >= data && tensor.data + tensor.bytes <= data + size) << name;
  }
  (void)file->metadata.Floats("a");
  (void)file->metadata.Ints("a");
  return 0;
}
