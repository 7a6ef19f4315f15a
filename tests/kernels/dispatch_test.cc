// SPDX-License-Identifier: Apache-2.0
#include <set>

#include "tests/kernels/conformance.h"

namespace rempart::kernels {
namespace {

TEST(Dispatch, FindsEverySupportedTableByName) {
  std::set<std::string> names;
  for (const OpsTier& tier : AllOps()) {
    EXPECT_TRUE(names.insert(tier.ops->name).second) << tier.ops->name;
    EXPECT_EQ(FindOps(tier.ops->name), tier.is_supported ? tier.ops : nullptr);
  }
  EXPECT_EQ(FindOps("no-such-tier"), nullptr);
  EXPECT_TRUE(names.contains("reference"));
  EXPECT_TRUE(names.contains("baseline"));
}

TEST(Dispatch, BestIsSupportedAndNotATwin) {
  for (const OpsTier& tier : AllOps()) {
    if (tier.ops != &BestOps()) continue;
    EXPECT_TRUE(tier.is_supported);
    EXPECT_FALSE(tier.is_twin);
  }
  EXPECT_NE(&BestOps(), &ReferenceOps());
}

// Whatever the machine lacks is tested through its twin.
TEST(Dispatch, EveryTierOfTheArchitectureHasATwin) {
  for (const OpsTier& tier : AllOps()) {
    const std::string name = tier.ops->name;
    if (tier.is_twin || name == "reference" || name == "baseline") continue;
    EXPECT_NE(FindOps(name + "-twin"), nullptr) << name;
  }
}

}  // namespace
}  // namespace rempart::kernels
