// SPDX-License-Identifier: Apache-2.0
// Index arithmetic of kernels/cuda/layout.h and of weight decoding, also where offsets pass 2^31
// and 2^32 elements: memory that large is reserved, never touched but for the blocks under test.
#include "kernels/cuda/layout.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <set>
#include <vector>

#include "kernels/cuda/quant_blocks.h"
#include "kernels/ops.h"

namespace rempart::kernels::cuda {
namespace {

// Address space that becomes memory where it is written.
class Reservation {
 public:
  explicit Reservation(int64_t bytes) : bytes_(bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    data_ = memory == MAP_FAILED ? nullptr : static_cast<uint8_t*>(memory);
  }
  ~Reservation() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  uint8_t* data() const { return data_; }

 private:
  const int64_t bytes_;
  uint8_t* data_;
};

TEST(Paging, RowsOfABlockAreDisjointAndFillIt) {
  const DeviceKv kv = {nullptr, 4096, false, 1, 1, 3, 24};
  std::set<int64_t> rows;
  for (int64_t head = 0; head < 3; ++head) {
    for (int64_t position = 32; position < 48; ++position) {
      rows.insert(KRowInBlock(kv, head, position));
      rows.insert(VRowInBlock(kv, head, position));
    }
  }
  ASSERT_EQ(rows.size(), 2u * 3 * 16);
  int64_t expected = 0;
  for (const int64_t row : rows) {
    EXPECT_EQ(row, expected);
    expected += 24;
  }
  EXPECT_EQ(expected * 2, DeviceKvBlockBytes(false, 3, 24));
}

TEST(Paging, ABlockBeyondFourGibibytesIsFound) {
  const int64_t stride = DeviceKvBlockBytes(false, 8, 128);
  const int64_t blocks = (int64_t{5} << 30) / stride;
  DeviceKv kv = {nullptr, stride, false, 1, 1, 8, 128};
  Reservation memory(blocks * stride);
  ASSERT_NE(memory.data(), nullptr);
  kv.data = memory.data();
  std::vector<int32_t> tables(2 * 10000, 0);
  tables[10000 + 9999] = static_cast<int32_t>(blocks - 1);
  DeviceBatch batch;
  batch.block_tables = tables.data();
  batch.table_stride = 10000;
  const int64_t block = KvBlockOf(batch, 1, 9999 * 16 + 15);
  EXPECT_EQ(block, blocks - 1);
  EXPECT_EQ(KvBlockStart(kv, block) - memory.data(), (blocks - 1) * stride);
  EXPECT_GT((blocks - 1) * stride, int64_t{1} << 32);
  KvBlockStart(kv, block)[2 * VRowInBlock(kv, 7, 15) + 255] = 1;  // its last byte
  EXPECT_EQ(memory.data()[blocks * stride - 1], 1);
}

TEST(Splits, CoverWhatAQuerySeesOnce) {
  for (const int64_t window : {0, 1, 5, 64, 100}) {
    for (const int64_t split : {16, 32, 128}) {
      for (int64_t position = 0; position < 400; position += 7) {
        const TokenRange seen = VisibleTokens(position, window);
        EXPECT_EQ(seen.end, position + 1);
        EXPECT_EQ(seen.end - seen.begin,
                  window > 0 ? std::min(window, position + 1) : position + 1);
        const TokenRange splits = VisibleSplits(position, window, split);
        int64_t next = seen.begin;
        for (int64_t s = splits.begin; s < splits.end; ++s) {
          const TokenRange tokens = SplitTokens(s, position, window, split);
          EXPECT_EQ(tokens.begin, next);
          EXPECT_LT(tokens.begin, tokens.end);
          next = tokens.end;
        }
        EXPECT_EQ(next, seen.end);
        // The splits around them are empty.
        const TokenRange before = SplitTokens(splits.begin - 1, position, window, split);
        const TokenRange after = SplitTokens(splits.end, position, window, split);
        EXPECT_GE(before.begin, before.end);
        EXPECT_GE(after.begin, after.end);
      }
    }
  }
}

TEST(Splits, PartialsOfMoreThanTwoToThe31Floats) {
  const int64_t floats = DecodePartialFloats(4096, 128, 256, 64);
  EXPECT_EQ(floats, int64_t{4096} * 128 * 64 * 258);
  EXPECT_GT(floats, int64_t{1} << 31);
  EXPECT_EQ(PartialOffset(4095, 127, 63, 128, 256, 64) + PartialFloats(256), floats);
}

TEST(Tiles, BeginAtATileAndEndAtTheLastQuery) {
  const TokenRange all = TileTokens(100, 163, 0, 64);
  EXPECT_EQ(all.begin, 0);
  EXPECT_EQ(all.end, 164);
  const TokenRange windowed = TileTokens(200, 263, 50, 64);
  EXPECT_EQ(windowed.begin, 128);  // 151 rounded down
  EXPECT_EQ(windowed.end, 264);
}

TEST(Rotary, PairsCoverAHeadOnce) {
  for (const bool is_interleaved : {false, true}) {
    for (const int64_t rotary : {8, 32, 80}) {
      std::set<int64_t> elements;
      for (int64_t i = 0; i < 40; ++i) {
        const RotaryPair pair = RotaryPairOf(i, rotary, is_interleaved);
        elements.insert(pair.first);
        elements.insert(pair.second);
        if (i < rotary / 2) {
          EXPECT_LT(pair.second, rotary);
          EXPECT_EQ(pair.second - pair.first, is_interleaved ? 1 : rotary / 2);
        } else {
          EXPECT_GE(pair.first, rotary);
        }
      }
      EXPECT_EQ(elements.size(), 80u);
      EXPECT_EQ(*elements.rbegin(), 79);
    }
  }
}

TEST(Logits, PartsBeyondTwoToThe31) {
  // 8 parts of 20000 rows of 32000 tokens.
  const int64_t stride = int64_t{20000} * 32000;
  EXPECT_EQ(LogitOffset(19999, 255999, 32000, stride), 8 * stride - 1);
  EXPECT_GT(8 * stride, int64_t{1} << 31);
}

// The last row of a matrix whose offset passes 2^32 bytes, decoded where it lies.
template <DeviceFormat kFormat, DType kType>
void ExpectLastRow(int64_t cols) {
  using D = Decoder<kFormat, kType>;
  const int64_t row_bytes = D::RowBytesOf(cols);
  const int64_t rows = (int64_t{4} << 30) / row_bytes + 10;
  Reservation memory(rows * row_bytes);
  ASSERT_NE(memory.data(), nullptr);
  uint8_t* last = memory.data() + (rows - 1) * row_bytes;
  for (int64_t i = 0; i < row_bytes; ++i) last[i] = static_cast<uint8_t>(i * 37 + 5);
  DeviceMatrix w = {memory.data(), kFormat, kType, rows, cols};
  EXPECT_EQ(DeviceMatrixBytes(w), rows * row_bytes);
  std::vector<float> expected(cols);
  ReferenceOps().dequantize({last, kType, 1, cols}, expected.data(), 0, 1);
  for (int64_t c = 0; c < cols; c += 8) {
    float actual[8];
    D::Decode(w, rows - 1, c, actual);
    for (int i = 0; i < 8; ++i) {
      if (std::isnan(expected[c + i])) continue;
      EXPECT_EQ(actual[i], expected[c + i]) << c + i;
    }
  }
}

TEST(Decoding, MatricesBeyondFourGibibytes) {
  ExpectLastRow<DeviceFormat::kBF16, DType::kBF16>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ8_0>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ4_0>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ4_1>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ5_0>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ5_1>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ4_K>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ5_K>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ6_K>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ2_K>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kQ3_K>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kIQ4_NL>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kIQ4_XS>(4096);
  ExpectLastRow<DeviceFormat::kGguf, DType::kMXFP4>(4096);
}

// Codes with scales beside them: the last row's code is 2, or 0x40, which is 2 in E4M3; its
// scale 3.
TEST(Decoding, CodesWithScalesBeyondFourGibibytes) {
  const int64_t cols = 4096, rows = (int64_t{4} << 30) / cols + 10, last = rows - 1;
  Reservation codes(rows * cols), scales(4 * rows);
  ASSERT_NE(codes.data(), nullptr);
  ASSERT_NE(scales.data(), nullptr);
  auto* floats = reinterpret_cast<float*>(scales.data());
  const auto expect = [&](DeviceFormat format, auto decoder, uint8_t code, int64_t scale_at) {
    const DeviceMatrix w = {codes.data(), format, DType::kQ8_0, rows, cols, floats};
    EXPECT_EQ(DeviceMatrixBytes(w), rows * cols);
    codes.data()[last * cols + cols - 1] = code;
    floats[scale_at] = 3.0f;
    float actual[8];
    decoder.Decode(w, last, cols - 8, actual);
    EXPECT_EQ(actual[7], 6.0f) << static_cast<int>(format);
    EXPECT_EQ(actual[6], 0.0f) << static_cast<int>(format);
    floats[scale_at] = 0.0f;
  };
  expect(DeviceFormat::kINT8Row, Decoder<DeviceFormat::kINT8Row>(), 2, last);
  expect(DeviceFormat::kFP8Row, Decoder<DeviceFormat::kFP8Row>(), 0x40, last);
  expect(DeviceFormat::kFP8Block, Decoder<DeviceFormat::kFP8Block>(), 0x40,
         last / 128 * (cols / 128) + cols / 128 - 1);
}

TEST(Scales, OfBlocksLieInRowsOfAMultipleOfFour) {
  EXPECT_EQ(BlockScaleStride(8), 4);
  EXPECT_EQ(BlockScaleStride(512), 4);
  EXPECT_EQ(BlockScaleStride(513), 8);
  EXPECT_EQ(BlockScaleStride(11008), 88);
  EXPECT_EQ(BlockScaleAt(127, 639, 640), 4);
  EXPECT_EQ(BlockScaleAt(128, 0, 640), 8);
  // 2^33 rows of 40 scales.
  const int64_t rows = int64_t{1} << 33;
  EXPECT_EQ(BlockScaleAt(rows - 1, 5119, 5120), rows / 128 * 40 - 1);
  EXPECT_GT(BlockScaleAt(rows - 1, 5119, 5120), int64_t{1} << 31);
}

TEST(Scales, OfGroupsOfTokensLieSideBySideBeyondTwoToThe31) {
  const int64_t tokens = (int64_t{1} << 25) + 4, groups = 224;
  EXPECT_EQ(GroupScaleAt(0, 0, tokens), 0);
  EXPECT_EQ(GroupScaleAt(1, 0, tokens), 1);
  EXPECT_EQ(GroupScaleAt(0, 1, tokens), tokens);
  EXPECT_EQ(GroupScaleAt(tokens - 1, groups - 1, tokens), tokens * groups - 1);
  EXPECT_GT(tokens * groups, int64_t{1} << 32);
}

// More than 2^32 codes, and more than 2^31 groups of them.
TEST(Decoding, GroupsBeyondTwoToThe31) {
  const int64_t cols = 4096, group = 8, rows = (int64_t{1} << 31) / (cols / group) + 10;
  Reservation codes(rows * cols / 2), scales(2 * rows * (cols / group)),
      zeros(rows * (cols / group));
  ASSERT_NE(codes.data(), nullptr);
  ASSERT_NE(scales.data(), nullptr);
  ASSERT_NE(zeros.data(), nullptr);
  DeviceMatrix w = {codes.data(), DeviceFormat::kINT4Group, DType::kQ8_0, rows, cols};
  w.group_scales = reinterpret_cast<uint16_t*>(scales.data());
  w.group_zeros = zeros.data();
  w.group = group;
  EXPECT_EQ(DeviceMatrixBytes(w), rows * cols / 2);
  const int64_t last = rows * (cols / group) - 1;
  EXPECT_GT(last, int64_t{1} << 31);
  codes.data()[rows * cols / 2 - 1] = 0xf3;
  reinterpret_cast<uint16_t*>(scales.data())[last] = 0x4000;  // 2
  zeros.data()[last] = 5;
  float actual[8];
  Decoder<DeviceFormat::kINT4Group>::Decode(w, rows - 1, cols - 8, actual);
  EXPECT_EQ(actual[6], 2.0f * (3 - 5));
  EXPECT_EQ(actual[7], 2.0f * (15 - 5));
  EXPECT_EQ(actual[5], 2.0f * (0 - 5));
}

TEST(PeerSlab, BuffersBeyondTwoToThe31) {
  const int64_t bytes = int64_t{3} << 30;
  Reservation slab(PeerSlabBytes(bytes));
  ASSERT_NE(slab.data(), nullptr);
  EXPECT_EQ(PeerBuffer(slab.data(), 3, bytes) - slab.data(), kPeerFlagBytes + bytes);
  EXPECT_EQ(PeerSlabBytes(bytes), kPeerFlagBytes + 2 * bytes);
}

TEST(PeerSlab, FlagsRoundsAndBuffersDoNotOverlap) {
  std::vector<uint8_t> memory(16);
  void* const slab = memory.data();
  const auto at = [&](const void* place) {
    return static_cast<const uint8_t*>(place) - memory.data();
  };
  EXPECT_EQ(at(PeerFlag(slab, 0, 0)), 0);
  EXPECT_EQ(at(PeerFlag(slab, 1, 0)) - at(PeerFlag(slab, 0, kMaxPeers - 1)), 8);
  EXPECT_EQ(at(PeerRounds(slab)), at(PeerFlag(slab, kAllReduceBlocks - 1, kMaxPeers - 1)) + 8);
  EXPECT_EQ(at(PeerRounds(slab) + kAllReduceBlocks), kPeerFlagBytes);
  EXPECT_EQ(at(PeerBuffer(slab, 0, 4096)), kPeerFlagBytes);
  EXPECT_EQ(at(PeerBuffer(slab, 1, 4096)), kPeerFlagBytes + 4096);
  EXPECT_EQ(at(PeerBuffer(slab, 2, 4096)), kPeerFlagBytes) << "in turn";
  EXPECT_EQ(at(PeerBuffer(slab, 1, 4096)) + 4096, PeerSlabBytes(4096));
}

TEST(PeerSlab, AFlagCountsForItsEpochAndForTheRoundsUpToIt) {
  EXPECT_FALSE(HasEntered(0, 7, 1)) << "nobody has been here";
  EXPECT_TRUE(HasEntered(RoundFlag(7, 5), 7, 5));
  EXPECT_TRUE(HasEntered(RoundFlag(7, 6), 7, 5)) << "a peer is ahead";
  EXPECT_FALSE(HasEntered(RoundFlag(7, 4), 7, 5));
  EXPECT_FALSE(HasEntered(RoundFlag(6, 900), 7, 5)) << "of an epoch that is over";
  EXPECT_FALSE(HasEntered(RoundFlag(8, 900), 7, 5));
  EXPECT_TRUE(HasEntered(RoundFlag(7, 0), 7, 0xffffffffu)) << "wrapped around";
  EXPECT_FALSE(HasEntered(RoundFlag(7, 0xffffffffu), 7, 0));
}

}  // namespace
}  // namespace rempart::kernels::cuda
