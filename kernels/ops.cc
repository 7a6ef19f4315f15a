// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops.h"

#include "kernels/blocks.h"

namespace rempart::kernels {
namespace {

struct DTypeInfo {
  const char* name;
  int64_t elements;
  int64_t bytes;
};

constexpr DTypeInfo kInfo[kDTypeCount] = {
    {"F32", 1, 4},
    {"F16", 1, 2},
    {"BF16", 1, 2},
    {"Q8_0", BlockQ8_0::kElements, sizeof(BlockQ8_0)},
    {"Q4_0", BlockQ4_0::kElements, sizeof(BlockQ4_0)},
    {"Q4_1", BlockQ4_1::kElements, sizeof(BlockQ4_1)},
    {"Q5_0", BlockQ5_0::kElements, sizeof(BlockQ5_0)},
    {"Q5_1", BlockQ5_1::kElements, sizeof(BlockQ5_1)},
    {"Q4_K", BlockQ4_K::kElements, sizeof(BlockQ4_K)},
    {"Q5_K", BlockQ5_K::kElements, sizeof(BlockQ5_K)},
    {"Q6_K", BlockQ6_K::kElements, sizeof(BlockQ6_K)},
    {"Q2_K", BlockQ2_K::kElements, sizeof(BlockQ2_K)},
    {"Q3_K", BlockQ3_K::kElements, sizeof(BlockQ3_K)},
    {"IQ4_NL", BlockIQ4_NL::kElements, sizeof(BlockIQ4_NL)},
    {"IQ4_XS", BlockIQ4_XS::kElements, sizeof(BlockIQ4_XS)},
    {"MXFP4", BlockMXFP4::kElements, sizeof(BlockMXFP4)},
};

const DTypeInfo& Info(DType type) { return kInfo[static_cast<int>(type)]; }

}  // namespace

const char* DTypeName(DType type) { return Info(type).name; }
int64_t BlockElements(DType type) { return Info(type).elements; }
int64_t BlockBytes(DType type) { return Info(type).bytes; }
int64_t RowBytes(DType type, int64_t cols) { return cols / Info(type).elements * Info(type).bytes; }
bool IsQuantized(DType type) { return Info(type).elements > 1; }

int64_t KvBlockBytes(DType type, int64_t kv_heads, int64_t head_dim) {
  const bool is_q8 = type == DType::kQ8_0;
  const int64_t row =
      is_q8 ? head_dim + static_cast<int64_t>(sizeof(float)) : head_dim * BlockBytes(type);
  return 2 * kv_heads * kKvBlockTokens * row;
}

}  // namespace rempart::kernels
