// SPDX-License-Identifier: Apache-2.0
// Every weight type of the kernels against the `gguf` package's dequantisation
// (tests/goldens/make_dequantize.py).
#include <gtest/gtest.h>
#include <simdjson.h>

#include <cmath>
#include <cstring>

#include "absl/strings/escaping.h"
#include "kernels/ops.h"

namespace rempart::worker {
namespace {

using kernels::DType;

std::string Decoded(simdjson::dom::element element) {
  std::string bytes;
  EXPECT_TRUE(absl::Base64Unescape(absl::string_view(element.get_c_str().value()), &bytes));
  return bytes;
}

TEST(DequantizeGoldens, EveryTypeOfEveryTierIsAsTheGgufPackageHasIt) {
  simdjson::dom::parser parser;
  const simdjson::dom::element types = parser.load("tests/goldens/dequantize.json")["types"];
  for (int i = 0; i < kernels::kDTypeCount; ++i) {
    const auto type = static_cast<DType>(i);
    SCOPED_TRACE(kernels::DTypeName(type));
    simdjson::dom::element golden;
    ASSERT_EQ(types[kernels::DTypeName(type)].get(golden), simdjson::SUCCESS);
    const std::string blocks = Decoded(golden["blocks"]);
    const std::string raw = Decoded(golden["values"]);
    std::vector<float> expected(raw.size() / sizeof(float));
    std::memcpy(expected.data(), raw.data(), raw.size());
    const auto count = static_cast<int64_t>(expected.size());
    ASSERT_GE(count, 512);
    ASSERT_EQ(kernels::RowBytes(type, count), static_cast<int64_t>(blocks.size()));
    for (const kernels::OpsTier& tier : kernels::AllOps()) {
      if (!tier.is_supported) continue;
      SCOPED_TRACE(tier.ops->name);
      std::vector<float> values(count);
      tier.ops->dequantize({blocks.data(), type, 1, count}, values.data(), 0, 1);
      for (int64_t j = 0; j < count; ++j) {
        ASSERT_NEAR(values[j], expected[j], 1e-6 * std::abs(expected[j]) + 1e-9) << j;
      }
    }
  }
}

}  // namespace
}  // namespace rempart::worker
