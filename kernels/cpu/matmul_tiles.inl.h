// SPDX-License-Identifier: Apache-2.0
// The int8 matmul for several tokens: a panel of rows is unpacked once into the first-level cache
// (codes as bytes, scales as F32) and multiplied with every token of a block, a tile of
// kRowGroups * kLanes rows and kTokens tokens at a time held in registers. Four-bit codes stay
// packed where the processor has byte dot products, and every tile unpacks them on its way. Formula
// and order of additions as in matmul_fast.inl.h, to the bit: partial sums that wait in memory for
// the next panel of columns are not rounded. Bound: byte multiplications; per 32 columns eight of
// them share one conversion, one product of scales and one or two fused additions. Where the
// processor has a tile unit (V::kTileTokens), it makes the exact products of 16 tokens at a time
// instead.
#pragma once

#include <type_traits>

#include "kernels/cpu/dot_codes.inl.h"

namespace rempart::kernels {

template <class V, class Format>
struct TileMatmul {
  using P = Packed<V, Format>;
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int kL = V::kLanes;
  // Pairs of products are made faster than one broadcast for each of them is loaded.
  static constexpr bool kPairsOfEight = kL == 8 && !V::kHasDotBytes && !P::kSignedBytes;
  static constexpr int kRowGroups = kL == 16 || kPairsOfEight ? 2 : 1;
  static constexpr int kTokens = kL == 16 ? 6 : (kPairsOfEight ? 3 : 4);
  static constexpr int64_t kTokenBlock = 96;
  static constexpr int kParts = Format::kHalves ? 2 : 1;  // of a group, with their own scales
  static constexpr int kScales = (Format::kHasMin ? 2 : 1) * kParts;

  // To unpack takes no slot of the multipliers; to store bytes for 16 tokens costs more than it
  // saves.
  static constexpr bool kUnpacksInTile = V::kHasDotBytes && V::kTileTokens == 0 && kL == 16 &&
                                         Format::kBits == 4 && P::kOffset == 0 &&
                                         !Format::kIsLookup && !Format::kHalves;
  // Columns of a panel: two row groups of 16 lanes fill a little over half of 32 KiB. Whole blocks
  // where tiles unpack.
  static constexpr int64_t kPanelGroups =
      kPairsOfEight ? 8 : (Format::kIsK ? 16 : (kUnpacksInTile ? 24 : 20));

  // Signed bytes are kept with their magnitudes where both fit beside the activations.
  static constexpr int kForms = P::kSignedBytes && kRowGroups == 1 ? 2 : 1;

  // Where a column group lies in each row group (kUnpacksInTile).
  struct Place {
    const uint8_t* block[kRowGroups];
    const uint8_t* codes[kRowGroups];
  };
  // What tiles fetch into the cache while they work, so many lines of each row group beside a
  // column group: the next panel, shared out evenly and in the order of addresses.
  struct Ahead {
    const uint8_t* at[kRowGroups];
    int64_t lines;
    int64_t lines_left;
  };
  struct CodePanel {
    alignas(64) uint8_t codes[kPanelGroups][8][kForms][kRowGroups][V::kBytes];
    alignas(64) float scales[kPanelGroups][kRowGroups][kScales][kL];
  };
  struct PlacePanel {
    Place places[kPanelGroups];
    Ahead ahead;
    alignas(64) float scales[kPanelGroups][kRowGroups][kScales][kL];
  };
  using Panel = std::conditional_t<kUnpacksInTile, PlacePanel, CodePanel>;
  using TokenSums = float[kRowGroups][kL];

  // Column groups [first, first + count) of one row group into place `at` of the panel.
  static void Unpack(const uint8_t* row_group, int64_t groups, int64_t first, int64_t count, int at,
                     Panel* panel) {
    constexpr int64_t kPanelBytes = kPanelGroups * P::BlockBytes(P::kBlockGroups) / P::kBlockGroups;
    const int64_t bytes = P::RowGroupBytes(groups);
    for (int64_t g = 0; g < count; ++g) {
      const int64_t place = (first + g) % P::kBlockGroups;
      const int64_t offset = P::BlockOffset(first + g);
      const uint8_t* block = row_group + offset;
      // While tokens pass by this panel. What follows this row group is read beside it.
      const bool is_beside = offset + kPanelBytes >= bytes;
      P::Prefetch(block, place, kPanelBytes + (is_beside ? (kRowGroups - 1) * bytes : 0));
      I w[8];
      P::Unpack(block + P::ScalesBytes(P::GroupsOfBlock(first + g, groups)) + place * P::kPayload,
                w);
      for (int j = 0; j < 8; ++j) {
        V::StoreBytes(panel->codes[g][j][0][at], TileCodes<V, P>(w[j]));
        if constexpr (kForms == 2) V::StoreBytes(panel->codes[g][j][1][at], V::Abs8(w[j]));
      }
      PutScales(P::LoadScales(block, place), panel->scales[g][at]);
    }
  }

  static void PutScales(const typename P::Scales& s, float (*to)[kL]) {
    V::Store(to[0], s.low);
    if constexpr (Format::kHalves) V::Store(to[1], s.high);
    if constexpr (Format::kHasMin) V::Store(to[kParts], s.min);
    if constexpr (Format::kHasMin && Format::kHalves) V::Store(to[3], s.min_high);
  }

  // Instead of Unpack.
  static void Locate(const uint8_t* row_group, int64_t groups, int64_t first, int64_t count, int at,
                     Panel* panel) {
    for (int64_t g = 0; g < count; ++g) {
      Place& place = panel->places[g];
      const uint8_t* block = row_group + P::BlockOffset(first + g);
      place.block[at] = block;
      place.codes[at] = block + P::ScalesBytes(P::GroupsOfBlock(first + g, groups)) +
                        (first + g) % P::kBlockGroups * P::kPayload;
    }
    // What follows this row group lies in the panel already.
    panel->ahead.at[at] =
        row_group + (first + count < groups ? P::BlockOffset(first + count)
                                            : kRowGroups * P::RowGroupBytes(groups));
  }

  static void ShareAhead(int64_t tiles, Ahead* ahead) {
    constexpr int64_t kBlocks = kPanelGroups / P::kBlockGroups;
    constexpr int64_t kLines = (kBlocks * P::BlockBytes(P::kBlockGroups) + 63) / 64;
    ahead->lines = (kLines + kPanelGroups * tiles - 1) / (kPanelGroups * tiles);
    ahead->lines_left = kLines;
  }

  // As DotTile, from packed codes.
  template <int kT>
  static void DotPacked(const uint8_t* const (&codes)[kRowGroups], const ActivationBlock* x,
                        int64_t x_stride, I (*dot)[kRowGroups]) {
    const I mask = V::SetByte(0x0f);
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
      for (int r = 0; r < kRowGroups; ++r) dot[t][r] = V::ZeroInt();
    }
#pragma GCC unroll 8
    for (int j = 0; j < 4; ++j) {
      I low[kRowGroups], high[kRowGroups];
      for (int r = 0; r < kRowGroups; ++r) {
        const I pair = V::LoadBytes(codes[r] + j * V::kBytes);
        low[r] = V::And(pair, mask);
        high[r] = V::And(V::template ShiftRight16<4>(pair), mask);
      }
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const I a = V::BroadcastBytes4(x[t * x_stride].q + 4 * j);
        for (int r = 0; r < kRowGroups; ++r) dot[t][r] = V::DotBytes(dot[t][r], low[r], a);
      }
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const I a = V::BroadcastBytes4(x[t * x_stride].q + 4 * (j + 4));
        for (int r = 0; r < kRowGroups; ++r) dot[t][r] = V::DotBytes(dot[t][r], high[r], a);
      }
    }
  }

  // The share of a tile that goes over `groups` column groups.
  static Ahead TakeAhead(int64_t groups, Panel* panel) {
    Ahead& all = panel->ahead;
    const Ahead own = all;
    for (int r = 0; r < kRowGroups; ++r) all.at[r] += 64 * own.lines * groups;
    all.lines_left -= own.lines * groups;
    if (all.lines_left <= 0) all.lines = 0;
    return own;
  }

  // What the first tile of a panel does for the others.
  static void UnpackScales(int64_t g, Panel* panel) {
    const Place& place = panel->places[g];
    for (int r = 0; r < kRowGroups; ++r) {
      PutScales(P::LoadScales(place.block[r], g % P::kBlockGroups), panel->scales[g][r]);
    }
  }

  template <int kT, int kFirst, int kCount>
  static void Dot(const Panel& panel, int64_t g, const ActivationBlock* x, int64_t x_stride,
                  I (*dot)[kRowGroups]) {
    DotTile<V, P, kT, kRowGroups, kForms, kFirst, kCount>(&panel.codes[g][0][0][0][0], x, x_stride,
                                                          dot);
  }

  // dot * (scale of the weights * scale of the activations) onto the sums of a tile.
  template <int kT>
  static void AddScaled(const Panel& panel, int64_t g, int which, const ActivationBlock* x,
                        int64_t x_stride, const I (*dot)[kRowGroups], F (*acc)[kRowGroups]) {
    F scales[kRowGroups];
    for (int r = 0; r < kRowGroups; ++r) scales[r] = V::Load(panel.scales[g][r][which]);
#pragma GCC unroll 8
    for (int t = 0; t < kT; ++t) {
      const F scale = V::Set1(x[t * x_stride].scale);
      for (int r = 0; r < kRowGroups; ++r) {
        acc[t][r] = V::Fma(V::ToFloat(dot[t][r]), V::Mul(scales[r], scale), acc[t][r]);
      }
    }
  }

  template <int kT>
  static void AddMins(const Panel& panel, int64_t g, const ActivationBlock* x, int64_t x_stride,
                      F (*acc)[kRowGroups]) {
    for (int part = 0; part < kParts; ++part) {
      F mins[kRowGroups];
      for (int r = 0; r < kRowGroups; ++r) mins[r] = V::Load(panel.scales[g][r][kParts + part]);
#pragma GCC unroll 8
      for (int t = 0; t < kT; ++t) {
        const ActivationBlock& a = x[t * x_stride];
        F sum;
        if constexpr (Format::kHalves) {
          sum = ScaledSum<V>(V::Set1(a.scale), part == 0 ? &a.sum_low : &a.sum_high);
        } else {
          sum = V::Set1(a.scaled_sum);
        }
        for (int r = 0; r < kRowGroups; ++r) acc[t][r] = V::Fma(mins[r], sum, acc[t][r]);
      }
    }
  }

  // Adds `groups` column groups of kT tokens to their sums.
  template <int kT, bool kIsFirst>
  static void Tile(Panel& panel, int64_t groups, const ActivationBlock* x, int64_t x_stride,
                   TokenSums* sums) {
    F acc[kT][kRowGroups];
    for (int t = 0; t < kT; ++t) {
      for (int r = 0; r < kRowGroups; ++r) acc[t][r] = V::Load(sums[t][r]);
    }
    [[maybe_unused]] Ahead ahead;
    if constexpr (kUnpacksInTile) ahead = TakeAhead(groups, &panel);
    for (int64_t g = 0; g < groups; ++g, ++x) {
      I dot[kT][kRowGroups];
      if constexpr (Format::kHalves) {
        Dot<kT, 0, 4>(panel, g, x, x_stride, dot);
        AddScaled<kT>(panel, g, 0, x, x_stride, dot, acc);
        Dot<kT, 4, 4>(panel, g, x, x_stride, dot);
        AddScaled<kT>(panel, g, 1, x, x_stride, dot, acc);
      } else if constexpr (kUnpacksInTile) {
        for (int64_t i = 0; i < ahead.lines; ++i) {
          for (int r = 0; r < kRowGroups; ++r) V::Prefetch(ahead.at[r] + 64 * i);
        }
        for (int r = 0; r < kRowGroups; ++r) ahead.at[r] += 64 * ahead.lines;
        if constexpr (kIsFirst) UnpackScales(g, &panel);
        DotPacked<kT>(panel.places[g].codes, x, x_stride, dot);
        AddScaled<kT>(panel, g, 0, x, x_stride, dot, acc);
      } else {
        Dot<kT, 0, 8>(panel, g, x, x_stride, dot);
        AddScaled<kT>(panel, g, 0, x, x_stride, dot, acc);
      }
      if constexpr (Format::kHasMin) AddMins<kT>(panel, g, x, x_stride, acc);
    }
    for (int t = 0; t < kT; ++t) {
      for (int r = 0; r < kRowGroups; ++r) V::Store(sums[t][r], acc[t][r]);
    }
  }

  // Adds `groups` column groups of 16 tokens to their sums, through the tile unit: it leaves exact
  // int32 products, which are scaled here as everywhere else.
  static void UnitTile(const Panel& panel, int64_t groups, const ActivationBlock* x,
                       int64_t x_stride, TokenSums* sums) {
    for (int64_t g = 0; g < groups; ++g, ++x) {
      if constexpr (Format::kHalves) {
        UnitPart<0, 4>(panel, g, x, x_stride, sums);
        UnitPart<4, 4>(panel, g, x, x_stride, sums);
      } else {
        UnitPart<0, 8>(panel, g, x, x_stride, sums);
      }
      if constexpr (Format::kHasMin) {
        for (int t = 0; t < V::kTileTokens; ++t) {
          F acc[1][kRowGroups];
          for (int r = 0; r < kRowGroups; ++r) acc[0][r] = V::Load(sums[t][r]);
          AddMins<1>(panel, g, x + t * x_stride, x_stride, acc);
          for (int r = 0; r < kRowGroups; ++r) V::Store(sums[t][r], acc[0][r]);
        }
      }
    }
  }

  template <int kFirst, int kCount>
  static void UnitPart(const Panel& panel, int64_t g, const ActivationBlock* x, int64_t x_stride,
                       TokenSums* sums) {
    alignas(64) int32_t dots[kRowGroups][16][16];
    V::template MulTiles<kCount>(panel.codes[g][kFirst][0][0], x->q + 4 * kFirst,
                                 x_stride * static_cast<int64_t>(sizeof(*x)), dots);
    for (int t = 0; t < V::kTileTokens; ++t) {
      const ActivationBlock& a = x[t * x_stride];
      I dot[1][kRowGroups];
      F acc[1][kRowGroups];
      for (int r = 0; r < kRowGroups; ++r) {
        dot[0][r] = V::LoadBytes(dots[r][t]);
        if constexpr (P::kOffset != 0) {
          dot[0][r] = V::AddInt(dot[0][r], V::BroadcastBytes4(MinusSum(a, kFirst, kCount)));
        }
        acc[0][r] = V::Load(sums[t][r]);
      }
      AddScaled<1>(panel, g, kFirst / 4, &a, x_stride, dot, acc);
      for (int r = 0; r < kRowGroups; ++r) V::Store(sums[t][r], acc[0][r]);
    }
  }

  template <int kT, bool kIsFirst>
  static void Rest(Panel& panel, int64_t groups, const ActivationBlock* x, int64_t x_stride,
                   int64_t tokens, TokenSums* sums) {
    if (tokens == kT) return Tile<kT, kIsFirst>(panel, groups, x, x_stride, sums);
    if constexpr (kT > 1) Rest<kT - 1, kIsFirst>(panel, groups, x, x_stride, tokens, sums);
  }

  // Rows of `row_groups` row groups from `row` on against tokens [token, token + count).
  static void Block(const MatmulArgs& args, int64_t row, int row_groups, int64_t token,
                    int64_t count, Panel* panel, TokenSums* sums) {
    const int64_t groups = args.w.cols / 32;
    const int64_t bytes = P::RowGroupBytes(groups);
    const uint8_t* packed = static_cast<const uint8_t*>(args.packed) + row / kL * bytes;
    std::memset(sums, 0, static_cast<size_t>(count) * sizeof(*sums));
    // A column of y: a cache line and a page of its own for every token.
    for (int64_t t = 0; t < count; ++t) {
      for (int r = 0; r < row_groups; ++r) {
        V::PrefetchToWrite(args.y + (token + t) * args.y_stride + row + r * kL);
      }
    }
    for (int64_t first = 0; first < groups; first += kPanelGroups) {
      const int64_t width = groups - first < kPanelGroups ? groups - first : kPanelGroups;
      for (int r = 0; r < kRowGroups; ++r) {
        // An odd row group is computed twice and stored once.
        const uint8_t* row_group = packed + (r < row_groups ? r : 0) * bytes;
        if constexpr (kUnpacksInTile) {
          Locate(row_group, groups, first, width, r, panel);
        } else {
          Unpack(row_group, groups, first, width, r, panel);
        }
      }
      const ActivationBlock* x = args.xq + token * args.xq_stride + first;
      int64_t t = 0;
      if constexpr (V::kTileTokens > 0) {
        for (; t + V::kTileTokens <= count; t += V::kTileTokens) {
          UnitTile(*panel, width, x + t * args.xq_stride, args.xq_stride, sums + t);
        }
      }
      if constexpr (kUnpacksInTile) {
        ShareAhead((count + kTokens - 1) / kTokens, &panel->ahead);
        t = count < kTokens ? count : kTokens;
        Rest<kTokens, true>(*panel, width, x, args.xq_stride, t, sums);
      }
      for (; t + kTokens <= count; t += kTokens) {
        Tile<kTokens, false>(*panel, width, x + t * args.xq_stride, args.xq_stride, sums + t);
      }
      if (t < count) {
        Rest<kTokens - 1, false>(*panel, width, x + t * args.xq_stride, args.xq_stride, count - t,
                                 sums + t);
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      for (int r = 0; r < row_groups; ++r) {
        PutLanes<V>(args, V::Load(sums[t][r]), token + t, row + r * kL);
      }
    }
  }

  static void Run(const MatmulArgs& args, int64_t begin, int64_t end) {
    Panel panel;
    alignas(64) TokenSums sums[kTokenBlock];
    if constexpr (V::kTileTokens > 0) {
      if (args.num_tokens >= V::kTileTokens) V::BeginTiles();
    }
    for (int64_t token = 0; token < args.num_tokens; token += kTokenBlock) {
      const int64_t rest = args.num_tokens - token;
      for (int64_t row = begin; row < end; row += kRowGroups * kL) {
        const int row_groups = end - row > kL ? kRowGroups : 1;
        Block(args, row, row_groups, token, rest < kTokenBlock ? rest : kTokenBlock, &panel, sums);
      }
    }
    if constexpr (V::kTileTokens > 0) {
      if (args.num_tokens >= V::kTileTokens) V::EndTiles();
    }
  }
};

}  // namespace rempart::kernels
