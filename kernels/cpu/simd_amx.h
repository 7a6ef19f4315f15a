// SPDX-License-Identifier: Apache-2.0
// The tile unit of simd_generic.h's GenericTiles over AMX int8, beside AVX-512 VNNI and BF16. Only
// for files
// compiled with these. Tile registers: 0, 1: sums [16 tokens, 16 rows]; 2: activations
// [16 tokens, 32]; 3, 4: codes of 32 columns; 5, 6, 7: the same for 16 columns.
#pragma once

#include "kernels/cpu/simd_avx512.h"

namespace rempart::kernels {

struct AmxSimd : Avx512Simd<true, true> {
  static constexpr int kTileTokens = 16;

  // Shapes of the registers, for the calling thread; EndTiles lets the processor forget them, so
  // that a switch of threads need not save eight kilobytes.
  static void BeginTiles() {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 32, 64, 64, 16, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 8, 8, 16, 4, 4};
    };
    static_assert(sizeof(Config) == 64);
    static constexpr Config kConfig;
    _tile_loadconfig(&kConfig);
  }
  static void EndTiles() { _tile_release(); }

  template <int kRows>
  static void MulTiles(const uint8_t* codes, const int8_t* q, int64_t q_stride,
                       int32_t (*out)[16][16]) {
    static_assert(kRows == 8 || kRows == 4);
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kRows == 8) {
      _tile_loadd(2, q, q_stride);
      _tile_loadd(3, codes, 128);
      _tile_dpbsud(0, 2, 3);
      _tile_loadd(4, codes + 64, 128);
      _tile_dpbsud(1, 2, 4);
    } else {
      _tile_loadd(5, q, q_stride);
      _tile_loadd(6, codes, 128);
      _tile_dpbsud(0, 5, 6);
      _tile_loadd(7, codes + 64, 128);
      _tile_dpbsud(1, 5, 7);
    }
    _tile_stored(0, out[0], 64);
    _tile_stored(1, out[1], 64);
  }
};

}  // namespace rempart::kernels
