// SPDX-License-Identifier: Apache-2.0
#include "kernels/chosen_kernels.h"

#include <string_view>

#include "kernels/cpu/attention_tile.inl.h"
#include "kernels/cpu/matmul_exact.inl.h"
#include "kernels/cpu/matmul_fast.inl.h"
#include "kernels/cpu/simd_generic.h"

namespace rempart::kernels {
namespace {

std::string Number(int64_t number) { return std::to_string(number); }

// "4 to 15 tokens", "1 token", "from 16 tokens on" where `last` is 0.
std::string Tokens(int64_t first, int64_t last) {
  if (last == 0) return "from " + Number(first) + " tokens on";
  if (first == last) return Number(first) + (first == 1 ? " token" : " tokens");
  return Number(first) + " to " + Number(last) + " tokens";
}

std::string Tile(int64_t tokens, int64_t rows) {
  return "tiles of " + Number(tokens) + " tokens by " + Number(rows) + " rows";
}

// What multiplies bytes, and pairs of BF16. Software primitives have no instruction of their own.
struct Words {
  std::string bytes;
  std::string bfloat16;
};

// V has the shape of a tier's primitives: those of the machine, or of their software twin.
template <class V>
std::vector<ChosenKernel> Describe(const Words& words) {
  using Few = FastMatmul<V, typename Formats<V>::Q4_1>;
  using Many = typename Few::Tiles;
  using Plain = PlainMatmul<V, WidenedTerms<V, DType::kF16>, false>;
  using Nibbles = TileMatmul<V, typename Formats<V>::Q4_K>;
  const std::string panels = Nibbles::kUnpacksInTile
                                 ? "unpacked panels (Q4_1 and Q4_K: unpacked in registers), "
                                 : "unpacked panels, ";
  const int64_t many = Few::kFewTokens + 1;
  const int64_t many_rows = Many::kRowGroups * V::kLanes;
  const std::string quantized = "quantised weights, ";
  const std::string below_8_bits = V::kTileTokens > 0 ? quantized : "quantised weights but Q8_0, ";
  std::vector<ChosenKernel> chosen = {
      {"matmul_fast", quantized + Tokens(1, Few::kFewTokens),
       "codes from memory to registers, " + Number(V::kLanes) + " rows at a time, int8 by " +
           words.bytes},
      {"matmul_fast", below_8_bits + Tokens(many, V::kTileTokens > 0 ? V::kTileTokens - 1 : 0),
       panels + Tile(Many::kTokens, many_rows) + ", int8 by " + words.bytes}};
  if constexpr (V::kTileTokens > 0) {
    chosen.push_back(
        {"matmul_fast", quantized + Tokens(V::kTileTokens, 0),
         "unpacked panels, int8 by the tile unit, " + Tile(V::kTileTokens, many_rows)});
  } else {
    using Bytes = typename FastMatmul<V, typename Formats<V>::Q8_0>::Tiles;
    chosen.push_back({"matmul_fast", "Q8_0 weights, " + Tokens(many, 0),
                      "bytes from memory, " + Tile(Bytes::kTokens, Bytes::kRowGroups * V::kLanes) +
                          ", int8 by " + words.bytes});
  }
  const std::string plain_tile = Tile(Plain::kTokens, Plain::kRows);
  if constexpr (V::kHasBFloat16Tiles) {
    using Unit = PlainTileMatmul<V>;
    chosen.push_back({"matmul_fast", "BF16 weights",
                      "BF16 by the tile unit, " + Tile(Unit::kTokens, Unit::kRows)});
  } else {
    chosen.push_back({"matmul_fast", "BF16 weights",
                      V::kHasDotBFloat16 ? "pairs of BF16 by " + words.bfloat16 + ", " + plain_tile
                                         : "widened to F32, " + plain_tile});
  }
  chosen.push_back({"matmul_fast", "F16 and F32 weights", "widened to F32, " + plain_tile});
  chosen.push_back({"matmul_exact", "quantised weights",
                    "unpacked to F32, " + Tile(ExactMatmul<V>::kTokens, ExactMatmul<V>::kRows)});
  chosen.push_back({"matmul_exact", "BF16, F16 and F32 weights", "widened to F32, " + plain_tile});
  chosen.push_back(
      {"attention", Tokens(1, 1),
       "K and V once for up to " + Number(AttentionTile<V>::kMax) + " heads that share them"});
  chosen.push_back({"attention", Tokens(2, 0),
                    "chunks of " + Number(kAttentionChunk) + " keys as F32, tiles of up to " +
                        Number(AttentionTile<V>::kMax) + " queries"});
  chosen.push_back({"others", "all shapes", Number(V::kLanes) + " lanes of F32"});
  return chosen;
}

const Words kSoftware = {"portable C++", "portable C++"};
const Words kMultiplyAdd = {"vpmaddubsw", ""};
const Words kVnni = {"vpdpbusd", "vdpbf16ps"};

}  // namespace

std::vector<ChosenKernel> ChosenKernels(const Ops& ops) {
  std::string_view name = ops.name;
  constexpr std::string_view kTwin = "-twin";
  const bool is_twin = name.size() > kTwin.size() && name.ends_with(kTwin);
  if (is_twin) name.remove_suffix(kTwin.size());
  const auto words = [&](const Words& own) { return is_twin ? kSoftware : own; };
  if (name == "reference") return {{"all", "all shapes", "plain loops, the definition of each op"}};
  if (name == "baseline") return Describe<GenericSimd<4, true>>(kSoftware);
  if (name == "avx2") return Describe<GenericSimd<8, false>>(words(kMultiplyAdd));
  if (name == "avxvnni") return Describe<GenericSimd<8, true>>(words(kVnni));
  if (name == "avx512") return Describe<GenericSimd<16, false>>(words(kMultiplyAdd));
  if (name == "avx512vnni") return Describe<GenericSimd<16, true>>(words(kVnni));
  if (name == "avx512bf16") return Describe<GenericSimd<16, true, true>>(words(kVnni));
  if (name == "amx") return Describe<GenericTiles>(words(kVnni));
  if (name == "amxbf16") return Describe<GenericBFloat16Tiles>(words(kVnni));
  return {};
}

}  // namespace rempart::kernels
