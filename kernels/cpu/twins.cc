// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ops.inl.h"
#include "kernels/cpu/simd_generic.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

const Ops& Avx2TwinOps() {
  static constexpr Ops kOps = MakeOps<GenericSimd<8, false>>("avx2-twin", "avx2 in software");
  return kOps;
}

const Ops& AvxVnniTwinOps() {
  static constexpr Ops kOps = MakeOps<GenericSimd<8, true>>("avxvnni-twin", "avxvnni in software");
  return kOps;
}

const Ops& AmxTwinOps() {
  static constexpr Ops kOps = MakeOps<GenericTiles>("amx-twin", "amx in software");
  return kOps;
}

const Ops& AmxBf16TwinOps() {
  static constexpr Ops kOps = MakeOps<GenericBFloat16Tiles>("amxbf16-twin", "amxbf16 in software");
  return kOps;
}

const Ops& Avx512TwinOps() {
  static constexpr Ops kOps = MakeOps<GenericSimd<16, false>>("avx512-twin", "avx512 in software");
  return kOps;
}

const Ops& Avx512Bf16TwinOps() {
  static constexpr Ops kOps =
      MakeOps<GenericSimd<16, true, true>>("avx512bf16-twin", "avx512bf16 in software");
  return kOps;
}

const Ops& Avx512VnniTwinOps() {
  static constexpr Ops kOps =
      MakeOps<GenericSimd<16, true>>("avx512vnni-twin", "avx512vnni in software");
  return kOps;
}

}  // namespace rempart::kernels
