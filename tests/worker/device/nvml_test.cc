// SPDX-License-Identifier: Apache-2.0
// The inventory over a library that is loaded like the driver's.
#include "worker/device/nvml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/device/fake_nvml.h"
#include "worker/device/nvml_abi.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> PeersOf(const GpuFacts& gpu) {
  std::vector<std::string> peers;
  for (const NvLinkPeer& peer : gpu.nvlink_peers) peers.push_back(peer.pci_bus_id);
  return peers;
}

TEST(Nvml, TheLayoutsAreThoseOfNvidiasHeader) {
  EXPECT_EQ(sizeof(NvmlPciInfo), 68u);
  EXPECT_EQ(sizeof(NvmlMemory), 24u);
  EXPECT_EQ(sizeof(NvmlEvent), 32u);
  EXPECT_EQ(sizeof(NvmlFieldValue), 40u);
  EXPECT_EQ(offsetof(NvmlPciInfo, bus_id), 36u);
  EXPECT_EQ(offsetof(NvmlFieldValue, value), 32u);
}

TEST(Nvml, TellsTheFactsOfEachGpu) {
  FakeNvml driver(REMPART_FAKE_NVML);
  driver.Raise(1, 79);
  auto nvml = Nvml::Load(REMPART_FAKE_NVML);
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  EXPECT_EQ(*(*nvml)->DriverVersion(), "580.65.06");
  EXPECT_EQ((*nvml)->CudaVersion(), "13.1");
  const auto facts = (*nvml)->Inventory();
  ASSERT_TRUE(facts.ok()) << facts.status();
  ASSERT_EQ(facts->size(), 3u);
  const GpuFacts& second = (*facts)[1];
  EXPECT_EQ(second.uuid, "GPU-1");
  EXPECT_EQ(second.name, "NVIDIA H200");
  EXPECT_EQ(second.pci_bus_id, "00000000:11:00.0");
  EXPECT_EQ(second.compute_capability, "9.0");
  EXPECT_TRUE(second.is_mig);
  EXPECT_EQ(second.total_bytes, int64_t{150} << 30);
  EXPECT_EQ(second.used_bytes, int64_t{1} << 30);
  EXPECT_EQ(second.ecc_uncorrected, 4);
  EXPECT_EQ(second.ecc_uncorrected_lifetime, 14);
  EXPECT_EQ(second.temperature_celsius, 41);
  EXPECT_EQ(second.power_milliwatts, 120'500);
  EXPECT_THAT(second.slowdowns, ElementsAre("power_cap", "thermal_hardware"));
  EXPECT_THAT(PeersOf(second), ElementsAre("00000000:C0:00.0", "00000000:C1:00.0"));
  const GpuFacts& third = (*facts)[2];
  EXPECT_EQ(third.ecc_uncorrected, -1);
  EXPECT_EQ(third.power_milliwatts, -1);
  EXPECT_FALSE(third.is_mig);
  EXPECT_TRUE(third.slowdowns.empty()) << "idle is none";
  EXPECT_TRUE(third.nvlink_peers.empty());
  EXPECT_TRUE(AllLinkedByNvLink({(*facts)[0], (*facts)[1]}));
  EXPECT_FALSE(AllLinkedByNvLink(*facts));
  EXPECT_EQ(NvLinksBetween((*facts)[0], (*facts)[1], *facts), 2);
  EXPECT_EQ(NvLinksBetween((*facts)[0], (*facts)[2], *facts), 0);
  EXPECT_EQ((*nvml)->PathBetween("GPU-0", "GPU-1"), "PHB");
  EXPECT_EQ((*nvml)->PathBetween("GPU-2", "GPU-1"), "SYS");
  EXPECT_EQ((*nvml)->PathBetween("GPU-2", "GPU-9"), "");

  const auto errors = (*nvml)->Errors(absl::Milliseconds(1));
  ASSERT_TRUE(errors.ok()) << errors.status();
  ASSERT_EQ(errors->size(), 1u);
  EXPECT_EQ((*errors)[0].uuid, "GPU-1");
  EXPECT_EQ((*errors)[0].xid, 79);
  EXPECT_TRUE((*nvml)->Errors(absl::ZeroDuration())->empty());
  EXPECT_EQ(driver.open_count(), 1);
  nvml->reset();
  EXPECT_EQ(driver.open_count(), 0);
}

TEST(Nvml, TellsWhatTheDriverThinksOfAGpu) {
  FakeNvml driver(REMPART_FAKE_NVML);
  auto nvml = Nvml::Load(REMPART_FAKE_NVML);
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  const struct {
    const char* what;
    long long value;
    GpuCondition expected;
  } cases[] = {
      {"recovery", 0, GpuCondition::kUsable},      {"recovery", 1, GpuCondition::kNeedsReset},
      {"recovery", 2, GpuCondition::kNeedsReboot}, {"recovery", 4, GpuCondition::kWantsReset},
      {"recovery", 5, GpuCondition::kUsable},      {"lost", 1, GpuCondition::kLost}};
  for (const auto& one : cases) {
    driver.Set(one.what, 1, one.value);
    const auto gpu = (*nvml)->Describe("GPU-1");
    ASSERT_TRUE(gpu.ok()) << gpu.status();
    EXPECT_EQ(gpu->condition, one.expected) << one.what << " " << one.value;
    EXPECT_EQ(gpu->name, "NVIDIA H200") << "what is known stays known";
  }
  driver.Set("remap_pending", 0, 1);
  driver.Set("remap_failed", 0, 1);
  EXPECT_TRUE((*nvml)->Describe("GPU-0")->remap_pending);
  EXPECT_TRUE((*nvml)->Describe("GPU-0")->remap_failed);
  EXPECT_EQ((*nvml)->Describe("GPU-7").status().code(), absl::StatusCode::kNotFound);
}

TEST(Nvml, SaysThatThereIsNoDriver) {
  const auto nvml = Nvml::Load("/nonexistent/libnvidia-ml.so.1");
  EXPECT_EQ(nvml.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(nvml.status().message()), HasSubstr("no NVIDIA driver"));
}

TEST(Nvml, NamesTheFunctionThatADriverLacks) {
  const auto nvml = Nvml::Load(REMPART_FAKE_NVML_TOO_OLD);
  EXPECT_EQ(nvml.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(nvml.status().message()),
              HasSubstr("the NVIDIA driver is too old: NVML has no nvmlEventSetCreate"));
}

TEST(Nvml, AnOldDriverTellsLess) {
  FakeNvml driver(REMPART_FAKE_NVML_OLD);
  auto nvml = Nvml::Load(REMPART_FAKE_NVML_OLD);
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  EXPECT_EQ((*nvml)->CudaVersion(), "");
  EXPECT_EQ((*nvml)->PathBetween("GPU-0", "GPU-1"), "");
  const auto facts = (*nvml)->Inventory();
  ASSERT_TRUE(facts.ok()) << facts.status();
  ASSERT_EQ(facts->size(), 3u);
  EXPECT_EQ((*facts)[1].compute_capability, "");
  EXPECT_EQ((*facts)[1].temperature_celsius, -1);
  EXPECT_EQ((*facts)[1].ecc_uncorrected, 4);
  EXPECT_TRUE(AllLinkedByNvLink({(*facts)[0], (*facts)[1]})) << "no GPU here has those addresses";
}

TEST(Nvml, SaysThatNoXidIsReported) {
  FakeNvml driver(REMPART_FAKE_NVML);
  driver.Set("no_events", 0, 1);
  auto nvml = Nvml::Load(REMPART_FAKE_NVML);
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  const auto errors = (*nvml)->Errors(absl::ZeroDuration());
  EXPECT_EQ(errors.status().code(), absl::StatusCode::kFailedPrecondition) << errors.status();
}

TEST(Nvml, DirectLinksCountTooButThoseToAThirdGpuDoNot) {
  GpuFacts a, b, c;
  a.pci_bus_id = "a";
  b.pci_bus_id = "b";
  c.pci_bus_id = "c";
  a.nvlink_peers = {{"b"}, {"c"}};
  b.nvlink_peers = {{"a"}};
  c.nvlink_peers = {{"a"}};
  EXPECT_TRUE(AllLinkedByNvLink({a, b}));
  EXPECT_FALSE(AllLinkedByNvLink({a, b, c}));  // b and c meet only at a
  // A GPU that this process does not see is no switch.
  b.nvlink_peers = {{"x", NvLinkPeer::Kind::kGpu}};
  c.nvlink_peers = {{"x", NvLinkPeer::Kind::kGpu}};
  EXPECT_EQ(NvLinksBetween(b, c, {b, c}), 0);
  b.nvlink_peers = {{"x", NvLinkPeer::Kind::kSwitch}};
  c.nvlink_peers = {{"x", NvLinkPeer::Kind::kSwitch}, {"x", NvLinkPeer::Kind::kSwitch}};
  EXPECT_EQ(NvLinksBetween(b, c, {b, c}), 1) << "as many as the one with fewer has";
}

TEST(CanonicalPciBusId, IsTheSameHoweverItIsWritten) {
  EXPECT_EQ(CanonicalPciBusId("0000:1b:00.0"), "00000000:1B:00.0");
  EXPECT_EQ(CanonicalPciBusId("00000000:1B:00.0"), "00000000:1B:00.0");
  EXPECT_EQ(CanonicalPciBusId("10000:c1:1f.0"), "00010000:C1:1F.0");
  for (const char* wrong : {"", "1b:00.0", "0000:1b:00", "0000:1b:00.0 ", "GPU-0"}) {
    EXPECT_EQ(CanonicalPciBusId(wrong), "") << wrong;
  }
}

}  // namespace
}  // namespace rempart::worker
