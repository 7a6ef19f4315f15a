// SPDX-License-Identifier: Apache-2.0
#include <set>
#include <string>
#include <utility>

#include "kernels/chosen_kernels.h"
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

TEST(Dispatch, ATwinIsNotChosenForWork) {
  for (const OpsTier& tier : AllOps()) {
    std::string why;
    const bool may_work = tier.is_supported && !tier.is_twin;
    EXPECT_EQ(ChooseOps(tier.ops->name, why), may_work ? tier.ops : nullptr) << tier.ops->name;
    EXPECT_EQ(why.empty(), may_work) << why;
  }
  std::string why;
  EXPECT_EQ(ChooseOps("amx-twin", why), nullptr);
  EXPECT_EQ(why.find("\"amx-twin\" is not one that this CPU has: reference baseline"), 0u) << why;
}

// Whatever the machine lacks is tested through its twin.
TEST(Dispatch, EveryTierOfTheArchitectureHasATwin) {
  for (const OpsTier& tier : AllOps()) {
    const std::string name = tier.ops->name;
    if (tier.is_twin || name == "reference" || name == "baseline") continue;
    EXPECT_NE(FindOps(name + "-twin"), nullptr) << name;
  }
}

using Place = std::pair<std::string, std::string>;  // op and shape

std::set<Place> PlacesOf(const Ops& ops) {
  std::set<Place> places;
  for (const ChosenKernel& chosen : ChosenKernels(ops)) {
    EXPECT_TRUE(places.insert({chosen.op, chosen.when}).second) << ops.name << ": " << chosen.when;
    EXPECT_FALSE(chosen.kernel.empty());
  }
  return places;
}

// A tier and its twin run the same algorithms for the same shapes.
TEST(Dispatch, EveryTableSaysWhatItTakesForWhichShape) {
  for (const OpsTier& tier : AllOps()) {
    const std::set<Place> places = PlacesOf(*tier.ops);
    EXPECT_FALSE(places.empty()) << tier.ops->name;
    const Ops* const twin = FindOps(std::string(tier.ops->name) + "-twin");
    if (twin == nullptr) continue;
    EXPECT_EQ(places, PlacesOf(*twin)) << tier.ops->name;
  }
  Ops other = BestOps();
  other.name = "no-such-tier";
  EXPECT_TRUE(ChosenKernels(other).empty());
}

std::string KernelOf(const char* tier, const std::string& op, const std::string& when) {
  for (const ChosenKernel& chosen : ChosenKernels(*FindOps(tier))) {
    if (chosen.op == op && chosen.when == when) return chosen.kernel;
  }
  return "none";
}

TEST(Dispatch, TheShapeDecidesWithinATier) {
  const std::string few = "quantised weights, 1 to 3 tokens";
  EXPECT_NE(KernelOf("amx-twin", "matmul_fast", few), "none");
  EXPECT_NE(KernelOf("amx-twin", "matmul_fast", "quantised weights, 4 to 15 tokens"), "none");
  EXPECT_EQ(KernelOf("amx-twin", "matmul_fast", "quantised weights, from 16 tokens on"),
            "unpacked panels, int8 by the tile unit, tiles of 16 tokens by 32 rows");
  EXPECT_EQ(KernelOf("avx2-twin", "matmul_fast", "quantised weights but Q8_0, from 4 tokens on"),
            "unpacked panels, tiles of 3 tokens by 16 rows, int8 by portable C++");
  EXPECT_EQ(KernelOf("avx2-twin", "matmul_fast", "Q8_0 weights, from 4 tokens on"),
            "bytes from memory, tiles of 6 tokens by 8 rows, int8 by portable C++");
  EXPECT_EQ(KernelOf("avx512vnni-twin", "matmul_fast", "Q8_0 weights, from 4 tokens on"),
            "bytes from memory, tiles of 6 tokens by 32 rows, int8 by portable C++");
  EXPECT_EQ(
      KernelOf("avx512vnni-twin", "matmul_fast", "quantised weights but Q8_0, from 4 tokens on"),
      "unpacked panels (Q4_1 and Q4_K: unpacked in registers), tiles of 6 tokens by 32 rows, "
      "int8 by portable C++");
  EXPECT_EQ(KernelOf("amxbf16-twin", "matmul_fast", "BF16 weights"),
            "BF16 by the tile unit, tiles of 32 tokens by 32 rows");
  EXPECT_EQ(KernelOf("avx512vnni-twin", "matmul_fast", "BF16 weights"),
            "widened to F32, tiles of 6 tokens by 4 rows");
}

}  // namespace
}  // namespace rempart::kernels
