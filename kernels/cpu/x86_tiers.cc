// SPDX-License-Identifier: Apache-2.0
#include <cpuid.h>

#include "kernels/cpu/machine_tiers.h"
#include "kernels/cpu/tiers.h"

namespace rempart::kernels {

namespace {

// Not every compiler's __builtin_cpu_supports knows the name.
bool HasF16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// AVX-VNNI: leaf 7, subleaf 1.
bool HasAvxVnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}

// AVX512_BF16: leaf 7, subleaf 1.
bool HasAvx512Bf16() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 5)) != 0;
}

// Of leaf 7, subleaf 0, edx.
constexpr unsigned kAmxTileAndInt8 = (1u << 24) | (1u << 25);
constexpr unsigned kAmxBf16 = 1u << 22;

// All of these bits. Linux lets a process have tile data only when it asks.
bool HasAmx(unsigned bits) {
  unsigned eax, ebx, ecx, edx;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & bits) != bits) return false;
  constexpr long kArchPrctl = 158;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(kArchPrctl), "D"(kRequestPermission), "S"(kTileData)
               : "rcx", "r11", "memory");
  return result == 0;
}

}  // namespace

// __builtin_cpu_supports also asks the operating system whether it saves the registers.
std::vector<OpsTier> MachineTiers() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && HasAvx512Bf16();
  return {{&Avx2Ops(), false, avx2},
          {&AvxVnniOps(), false, avx2 && HasAvxVnni()},
          {&Avx512Ops(), false, avx512},
          {&Avx512VnniOps(), false, vnni},
          {&Avx512Bf16Ops(), false, bf16},
          // Before amx, so that nobody gets it who has not asked: its speed is not measured yet.
          {&AmxBf16Ops(), false, bf16 && HasAmx(kAmxTileAndInt8 | kAmxBf16)},
          {&AmxOps(), false, bf16 && HasAmx(kAmxTileAndInt8)}};
}

}  // namespace rempart::kernels
