// SPDX-License-Identifier: Apache-2.0
// Every CUDA op against the reference, run by the emulator, its threads in both orders; and that no
// op lacks a case.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "benchmarks/gpu/conformance/harness.h"
#include "kernels/cuda/emulator.h"
#include "tests/kernels/cuda/blas_fixture.h"
#include "worker/device/emulated_device.h"

namespace rempart::benchmarks {
namespace {

namespace emulator = kernels::cuda::emulator;

TEST(Conformance, EveryOpHasACase) {
  std::set<std::string> covered;
  for (const Case& each : Cases()) covered.insert(each.op);
#define REMPART_EXPECT_CASE(op, Args) \
  EXPECT_TRUE(covered.contains(#op)) << "the op " #op " has no conformance case";
  REMPART_DEVICE_OPS(REMPART_EXPECT_CASE)
#undef REMPART_EXPECT_CASE
}

class ConformanceTest : public testing::TestWithParam<std::tuple<size_t, emulator::ThreadOrder>> {};

TEST_P(ConformanceTest, MatchesTheReference) {
  const auto [index, order] = GetParam();
  emulator::SetThreadOrder(order);
  worker::EmulatedDevice device(int64_t{1} << 30);
  std::vector<Finding> findings;
  const Case& tested = Cases()[index];
  Trial trial(device, tested.op, findings);
  const absl::Status status = tested.run(trial);
  emulator::SetThreadOrder(emulator::ThreadOrder::kForward);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_FALSE(findings.empty());
  for (const Finding& finding : findings) {
    EXPECT_LE(finding.percent, 100.0) << finding.op << ": " << finding.what;
  }
  EXPECT_EQ(device.used_bytes(), 0);
}

std::string NameOf(const testing::TestParamInfo<ConformanceTest::ParamType>& info) {
  const auto [index, order] = info.param;
  return std::string(Cases()[index].op) +
         (order == emulator::ThreadOrder::kForward ? "_forward" : "_reverse");
}

INSTANTIATE_TEST_SUITE_P(Ops, ConformanceTest,
                         testing::Combine(testing::Range(size_t{0}, Cases().size()),
                                          testing::Values(emulator::ThreadOrder::kForward,
                                                          emulator::ThreadOrder::kReverse)),
                         NameOf);

// As on a GPU where cuBLASLt is found: Device::Matmul gives it products of many tokens.
TEST(Conformance, MatchesTheReferenceThroughALibrary) {
  kernels::cuda::BlasRoom room;
  worker::EmulatedDevice device(int64_t{1} << 30);
  device.UseBlas(room.Products());
  FakeCublasLtControls& fake = kernels::cuda::FakeControls();
  const int before[] = {fake.bf16_products, fake.row_products, fake.block_products,
                        fake.int8_products};
  std::vector<Finding> findings;
  Trial trial(device, "matmul", findings);
  const absl::Status status = MatmulCase(trial);
  ASSERT_TRUE(status.ok()) << status;
  for (const Finding& finding : findings) EXPECT_LE(finding.percent, 100.0) << finding.what;
  // Of each format all but the one that is too odd; to BF16 and INT8 none is.
  EXPECT_EQ(fake.bf16_products - before[0], 7);
  EXPECT_EQ(fake.row_products - before[1], 6);
  EXPECT_EQ(fake.block_products - before[2], 6);
  EXPECT_EQ(fake.int8_products - before[3], 7);
  EXPECT_EQ(fake.complaint, "");
}

// Findings about whose products those of FP8 were.
std::vector<Finding> OfTheLibrary(worker::Device& device) {
  std::vector<Finding> findings, of_library;
  Trial trial(device, "matmul", findings);
  const absl::Status status = MatmulCase(trial);
  EXPECT_TRUE(status.ok()) << status;
  for (const Finding& finding : findings) {
    const bool is_of_library = finding.what.find("by the library") != std::string::npos;
    if (is_of_library) of_library.push_back(finding);
  }
  return of_library;
}

TEST(Conformance, Fp8ThatALibraryShouldMultiplyAndDoesNotIsFound) {
  kernels::cuda::BlasRoom room;
  worker::EmulatedDevice device(int64_t{1} << 30);
  EXPECT_THAT(OfTheLibrary(device), testing::IsEmpty()) << "there is none";
  device.UseBlas(room.Products());
  for (const Finding& finding : OfTheLibrary(device)) EXPECT_EQ(finding.percent, 0) << finding.what;
  FakeCublasLtControls& fake = kernels::cuda::FakeControls();
  fake.refused_columns = 144;
  worker::EmulatedDevice refused(int64_t{1} << 30);
  refused.UseBlas(room.Products());
  const std::vector<Finding> found = OfTheLibrary(refused);
  fake.refused_columns = -1;
  EXPECT_EQ(found.size(), 4u) << "by rows and by blocks";
  EXPECT_TRUE(std::any_of(found.begin(), found.end(), [](const Finding& finding) {
    return finding.percent > 100 && finding.what.find("[144, ") != std::string::npos;
  }));
}

TEST(Conformance, NoLibraryIsAskedForFp8WhereItHasNone) {
  kernels::cuda::BlasRoom room;
  worker::EmulatedDevice device(int64_t{1} << 30);
  device.UseBlas(room.Products(8, 9));
  EXPECT_THAT(OfTheLibrary(device), testing::IsEmpty());
}

// A comparison that could not fail would prove nothing.
TEST(Conformance, ReportsWhatIsWrong) {
  worker::EmulatedDevice device(1 << 20);
  std::vector<Finding> findings;
  Trial trial(device, "embed", findings);
  trial.Compare("off by more than allowed", {1.0f, 2.0f}, {1.0f, 2.5f}, 0.1, 0.0);
  trial.Compare("not a number", {NAN}, {1.0f}, 0.1, 0.0);
  trial.Compare("too few", {1.0f}, {1.0f, 1.0f}, 0.1, 0.0);
  trial.CompareEither("neither", {1.0f, 2.0f}, {{{1.0f, 3.0f}, 0.1}, {{2.0f, 2.0f}, 0.1}}, 0.0);
  trial.Require("does not hold", false);
  for (const Finding& finding : findings) EXPECT_GT(finding.percent, 100.0) << finding.what;
  findings.clear();
  trial.CompareEither("the second", {2.0f, 2.0f}, {{{1.0f, 3.0f}, 0.1}, {{2.0f, 2.0f}, 0.1}}, 0.0);
  EXPECT_LE(findings[0].percent, 100.0);
}

}  // namespace
}  // namespace rempart::benchmarks
