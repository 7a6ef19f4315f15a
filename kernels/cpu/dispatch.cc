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

const Ops* FindOps(std::string_view name) {
  for (const OpsTier& tier : AllOps()) {
    if (tier.is_supported && name == tier.ops->name) return tier.ops;
  }
  return nullptr;
}

std::vector<const Ops*> ChoosableOps() {
  std::vector<const Ops*> choosable;
  for (const OpsTier& tier : AllOps()) {
    if (tier.is_supported && !tier.is_twin) choosable.push_back(tier.ops);
  }
  return choosable;
}

const Ops& BestOps() {
  static const Ops& best = *ChoosableOps().back();
  return best;
}

const Ops* ChooseOps(std::string_view name, std::string& why) {
  std::string known;
  for (const Ops* ops : ChoosableOps()) {
    if (name == ops->name) return ops;
    known.append(" ").append(ops->name);
  }
  why.append("\"").append(name).append("\" is not one that this CPU has:").append(known);
  return nullptr;
}

}  // namespace rempart::kernels
