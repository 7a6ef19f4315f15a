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

}  // namespace

// __builtin_cpu_supports also asks the operating system whether it saves the registers.
std::vector<OpsTier> MachineTiers() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  return {
      {&Avx2Ops(), false, avx2}, {&Avx512Ops(), false, avx512}, {&Avx512VnniOps(), false, vnni}};
}

}  // namespace rempart::kernels
