// SPDX-License-Identifier: Apache-2.0
// What the kernel tests share: random inputs, and the tables under test.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/blocks.h"
#include "kernels/ops.h"

namespace rempart::kernels {

// Every table but the reference that can run here: the tiers of this machine and all twins.
inline std::vector<const Ops*> OpsUnderTest() {
  std::vector<const Ops*> all;
  for (const OpsTier& tier : AllOps()) {
    if (tier.is_supported && tier.ops != &ReferenceOps()) all.push_back(tier.ops);
  }
  return all;
}

inline std::string OpsName(const testing::TestParamInfo<const Ops*>& info) {
  std::string name = info.param->name;
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
}

using Random = std::mt19937;

inline std::vector<float> RandomFloats(Random& random, int64_t n, float deviation = 1.0f) {
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

// A weight matrix that owns its bytes: any bit pattern of the codes, scales of a usual size.
struct Weights {
  WeightView view;
  std::vector<uint8_t> bytes;
};

inline constexpr DType kAllTypes[] = {DType::kF32,  DType::kF16,    DType::kBF16,   DType::kQ8_0,
                                      DType::kQ4_0, DType::kQ4_1,   DType::kQ5_0,   DType::kQ5_1,
                                      DType::kQ4_K, DType::kQ5_K,   DType::kQ6_K,   DType::kQ2_K,
                                      DType::kQ3_K, DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4};

inline Weights RandomWeights(Random& random, DType type, int64_t rows, int64_t cols) {
  Weights w;
  w.bytes.resize(RowBytes(type, cols) * rows);
  for (uint8_t& byte : w.bytes) byte = static_cast<uint8_t>(random());
  std::normal_distribution<float> normal(0.0f, 0.05f);
  const auto put_half = [&](int64_t at) {
    const uint16_t half = FloatToHalf(normal(random));
    std::memcpy(w.bytes.data() + at, &half, 2);
  };
  const int64_t block = BlockBytes(type);
  for (int64_t at = 0; at < static_cast<int64_t>(w.bytes.size()); at += block) {
    switch (type) {
      case DType::kF32: {
        const float value = normal(random);
        std::memcpy(w.bytes.data() + at, &value, 4);
        break;
      }
      case DType::kBF16: {
        const auto value = static_cast<uint16_t>(std::bit_cast<uint32_t>(normal(random)) >> 16);
        std::memcpy(w.bytes.data() + at, &value, 2);
        break;
      }
      case DType::kF16:
      case DType::kQ8_0:
      case DType::kQ4_0:
      case DType::kQ5_0:
        put_half(at);
        break;
      case DType::kQ4_1:
      case DType::kQ5_1:
      case DType::kQ4_K:
      case DType::kQ5_K:
        put_half(at);
        put_half(at + 2);
        break;
      case DType::kQ6_K:
        put_half(at + static_cast<int64_t>(offsetof(BlockQ6_K, d)));
        break;
      case DType::kQ2_K:
        put_half(at + static_cast<int64_t>(offsetof(BlockQ2_K, d)));
        put_half(at + static_cast<int64_t>(offsetof(BlockQ2_K, dmin)));
        break;
      case DType::kQ3_K:
        put_half(at + static_cast<int64_t>(offsetof(BlockQ3_K, d)));
        break;
      case DType::kIQ4_NL:
      case DType::kIQ4_XS:
        put_half(at);
        break;
      case DType::kMXFP4:
        w.bytes[at] = static_cast<uint8_t>(118 + random() % 8);
        break;
    }
  }
  w.view = {w.bytes.data(), type, rows, cols};
  return w;
}

// The layout of w that the table's matmul_fast reads; 64-byte aligned.
class PackedBuffer {
 public:
  PackedBuffer(const Ops& ops, const WeightView& w) : bytes_(ops.packed_bytes(w) + 64) {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    data_ = bytes_.data() + (64 - address % 64) % 64;
    if (bytes_.size() > 64) ops.pack_rows(w, data_, 0, w.rows);
  }
  const void* data() const { return data_; }

 private:
  std::vector<uint8_t> bytes_;
  uint8_t* data_;
};

// What ExpectClose allowed of one op and type, over all shapes of a test, and what it saw.
struct Closeness {
  int shapes = 0;
  float least_absolute = std::numeric_limits<float>::max();
  float most_absolute = 0;
  float relative = 0;
  float largest_difference = 0;
  float largest_share = 0;  // of what was allowed
};

inline std::map<std::string, Closeness>& ClosenessSeen() {
  static std::map<std::string, Closeness> seen;
  return seen;
}

// Each |actual - expected| is within `absolute` + `relative` * |expected|. `op` names what is
// compared, and its type where it has several; `what` the case.
inline void ExpectClose(const std::vector<float>& actual, const std::vector<float>& expected,
                        float absolute, float relative, const std::string& op,
                        const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << op << " " << what;
  Closeness& seen = ClosenessSeen()[op];
  ++seen.shapes;
  seen.least_absolute = std::min(seen.least_absolute, absolute);
  seen.most_absolute = std::max(seen.most_absolute, absolute);
  seen.relative = std::max(seen.relative, relative);
  for (size_t i = 0; i < actual.size(); ++i) {
    const float limit = absolute + relative * std::fabs(expected[i]);
    const float difference = std::fabs(actual[i] - expected[i]);
    seen.largest_difference = std::max(seen.largest_difference, difference);
    seen.largest_share = std::max(seen.largest_share, difference / limit);
    if (!(difference <= limit)) {
      ADD_FAILURE() << op << " " << what << ": [" << i << "] is " << actual[i] << ", expected "
                    << expected[i] << ", which may differ by " << limit;
      return;
    }
  }
}

// Of one table of kernels; prints a line per op and type when a test ends.
class ConformanceTest : public testing::TestWithParam<const Ops*> {
 protected:
  const Ops& ops() const { return *GetParam(); }

  void SetUp() override { ClosenessSeen().clear(); }
  void TearDown() override {
    for (const auto& [op, seen] : ClosenessSeen()) {
      std::printf("%-14s %-28s allowed %.1e", ops().name, op.c_str(), seen.least_absolute);
      if (seen.most_absolute > seen.least_absolute) std::printf(" to %.1e", seen.most_absolute);
      std::printf(" + %.0e |expected|; seen %.1e, %3.0f %% of what was allowed, in %d cases\n",
                  seen.relative, seen.largest_difference, 100 * seen.largest_share, seen.shapes);
    }
  }
};

}  // namespace rempart::kernels
