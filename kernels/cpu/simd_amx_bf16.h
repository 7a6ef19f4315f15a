// SPDX-License-Identifier: Apache-2.0
// The tile unit of simd_generic.h's GenericBFloat16Tiles over AMX BF16, beside all that simd_amx.h
// has. Only for files compiled with these. Tile registers: 0 to 3: sums [16 rows, 16 tokens] of
// (row tile, token tile); 4, 5: weights [16 rows, 32 columns]; 6, 7: activations
// [16 pairs of columns, 16 tokens].
#pragma once

#include "kernels/cpu/simd_amx.h"

namespace rempart::kernels {

struct AmxBf16Simd : AmxSimd {
  static constexpr bool kHasBFloat16Tiles = true;

  static void BeginBFloat16Tiles() {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static_assert(sizeof(Config) == 64);
    static constexpr Config kConfig;
    _tile_loadconfig(&kConfig);
  }

  template <int kTokenTiles>
  static void MulBFloat16Tiles(const uint16_t* w, int64_t w_stride, int64_t steps,
                               const uint16_t (*x)[2][16][16][2], float (*sums)[2][16][16]) {
    const int64_t stride = w_stride * static_cast<int64_t>(sizeof(*w));
    _tile_loadd(0, sums[0][0], 64);
    _tile_loadd(2, sums[1][0], 64);
    if constexpr (kTokenTiles == 2) {
      _tile_loadd(1, sums[0][1], 64);
      _tile_loadd(3, sums[1][1], 64);
    }
    for (int64_t step = 0; step < steps; ++step, w += 32) {
      // The 32 rows that come next: each step reads a line of 32 pages.
      for (int64_t row = 32; row < 64; ++row) Prefetch(w + row * w_stride);
      _tile_loadd(4, w, stride);
      _tile_loadd(6, x[step][0], 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, w + 16 * w_stride, stride);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kTokenTiles == 2) {
        _tile_loadd(7, x[step][1], 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(2, sums[1][0], 64);
    if constexpr (kTokenTiles == 2) {
      _tile_stored(1, sums[0][1], 64);
      _tile_stored(3, sums[1][1], 64);
    }
  }
};

}  // namespace rempart::kernels
