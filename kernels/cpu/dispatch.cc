// SPDX-License-Identifier: Apache-2.0
// The one factory that knows which tables this binary has and which of them the machine can run.
#include "kernels/cpu/machine_tiers.h"
#include "kernels/cpu/tiers.h"
#include "kernels/ops.h"

namespace rempart::kernels {

const std::vector<OpsTier>& AllOps() {
  static const std::vector<OpsTier> tiers = [] {
    std::vector<OpsTier> all = {{&ReferenceOps(), false, true}, {&BaselineOps(), false, true}};
    for (const OpsTier& tier : MachineTiers()) all.push_back(tier);
    for (const Ops* twin :
         {&Avx2TwinOps(), &AvxVnniTwinOps(), &Avx512TwinOps(), &Avx512VnniTwinOps(),
          &Avx512Bf16TwinOps(), &AmxTwinOps(), &AmxBf16TwinOps()}) {
      all.push_back({twin, true, true});
    }
    return all;
  }();
  return tiers;
}

const Ops& BestOps() {
  const Ops* best = nullptr;
  for (const OpsTier& tier : AllOps()) {
    if (tier.is_supported && !tier.is_twin) best = tier.ops;
  }
  return *best;
}

const Ops* FindOps(std::string_view name) {
  for (const OpsTier& tier : AllOps()) {
    if (tier.is_supported && name == tier.ops->name) return tier.ops;
  }
  return nullptr;
}

}  // namespace rempart::kernels
