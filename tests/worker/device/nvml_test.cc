// SPDX-License-Identifier: Apache-2.0
// The inventory over a library that is loaded like the driver's.
#include "worker/device/nvml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Nvml, TellsTheFactsOfEachGpu) {
  auto nvml = Nvml::Load(REMPART_FAKE_NVML);
  ASSERT_TRUE(nvml.ok()) << nvml.status();
  EXPECT_EQ(*(*nvml)->DriverVersion(), "580.65.06");
  const auto facts = (*nvml)->Inventory();
  ASSERT_TRUE(facts.ok()) << facts.status();
  ASSERT_EQ(facts->size(), 3u);
  const GpuFacts& second = (*facts)[1];
  EXPECT_EQ(second.uuid, "GPU-1");
  EXPECT_EQ(second.name, "NVIDIA H200");
  EXPECT_EQ(second.pci_bus_id, "00000000:11:00.0");
  EXPECT_EQ(second.total_bytes, int64_t{150} << 30);
  EXPECT_EQ(second.used_bytes, int64_t{1} << 30);
  EXPECT_EQ(second.ecc_uncorrected, 4);
  EXPECT_THAT(second.nvlink_peers, ElementsAre("00000000:C0:00.0", "00000000:C1:00.0"));
  EXPECT_EQ((*facts)[2].ecc_uncorrected, -1);
  EXPECT_TRUE((*facts)[2].nvlink_peers.empty());
  EXPECT_TRUE(AllLinkedByNvLink({(*facts)[0], (*facts)[1]}));
  EXPECT_FALSE(AllLinkedByNvLink(*facts));

  const auto errors = (*nvml)->Errors(absl::Milliseconds(1));
  ASSERT_TRUE(errors.ok()) << errors.status();
  ASSERT_EQ(errors->size(), 1u);
  EXPECT_EQ((*errors)[0].uuid, "GPU-1");
  EXPECT_EQ((*errors)[0].xid, 79);
  EXPECT_TRUE((*nvml)->Errors(absl::ZeroDuration())->empty());
}

TEST(Nvml, SaysThatThereIsNoDriver) {
  const auto nvml = Nvml::Load("/nonexistent/libnvidia-ml.so.1");
  EXPECT_EQ(nvml.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(nvml.status().message()), HasSubstr("no NVIDIA driver"));
}

TEST(Nvml, DirectLinksCountTooButThoseToAThirdGpuDoNot) {
  GpuFacts a, b, c;
  a.pci_bus_id = "a";
  b.pci_bus_id = "b";
  c.pci_bus_id = "c";
  a.nvlink_peers = {"b", "c"};
  b.nvlink_peers = {"a"};
  c.nvlink_peers = {"a"};
  EXPECT_TRUE(AllLinkedByNvLink({a, b}));
  EXPECT_FALSE(AllLinkedByNvLink({a, b, c}));  // b and c meet only at a
}

}  // namespace
}  // namespace rempart::worker
