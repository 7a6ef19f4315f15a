// SPDX-License-Identifier: Apache-2.0
// What becomes of the driver's words: which are news, which break a GPU, and that the howto's table
// says the same.
#include "worker/device/gpu_health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "worker/device/xid.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

const absl::Time kStart = absl::FromUnixSeconds(1'800'000'000);

GpuSnapshot OfTwo() {
  GpuSnapshot snapshot;
  for (const char* uuid : {"GPU-a", "GPU-b"}) {
    GpuFacts& gpu = snapshot.gpus.emplace_back();
    gpu.uuid = uuid;
    gpu.name = "NVIDIA H200";
    gpu.ecc_uncorrected = 0;
  }
  return snapshot;
}

TEST(Record, AnXidOfAnotherGpuIsNotOurs) {
  GpuSnapshot snapshot = OfTwo();
  Record({"GPU-z", 79}, kStart, snapshot);
  EXPECT_FALSE(snapshot.fault.has_value());
  EXPECT_TRUE(snapshot.xids.empty());
  EXPECT_EQ(snapshot.version, 0);
}

TEST(Record, AnApplicationFaultIsReportedAndCounted) {
  GpuSnapshot snapshot = OfTwo();
  Record({"GPU-b", 13}, kStart, snapshot);
  ASSERT_TRUE(snapshot.fault.has_value());
  EXPECT_FALSE(snapshot.fault->is_broken);
  EXPECT_EQ(snapshot.fault->gpu, 1);
  EXPECT_EQ(snapshot.fault->Text(),
            "GPU 1 (NVIDIA H200, GPU-b): XID 13: a kernel did what the GPU does not allow");
  // A burst is one fault.
  for (int i = 1; i < 60; ++i) Record({"GPU-b", 13}, kStart + absl::Seconds(i), snapshot);
  EXPECT_EQ(snapshot.version, 1);
  EXPECT_EQ(snapshot.fault->at, kStart);
  EXPECT_THAT(snapshot.xids, ElementsAre(Pair(std::make_pair(1, int64_t{13}), 60)));
  Record({"GPU-b", 13}, kStart + absl::Minutes(2), snapshot);
  EXPECT_EQ(snapshot.version, 2);
  Record({"GPU-b", 31}, kStart + absl::Minutes(2), snapshot);
  EXPECT_EQ(snapshot.fault->xid, 31);
}

TEST(Record, WhatBreaksAGpuStaysWhateverFollows) {
  GpuSnapshot snapshot = OfTwo();
  Record({"GPU-a", 43}, kStart, snapshot);
  Record({"GPU-a", 79}, kStart, snapshot);
  ASSERT_TRUE(snapshot.fault->is_broken);
  EXPECT_EQ(snapshot.fault->meaning, "the GPU has fallen off the bus");
  EXPECT_THAT(snapshot.fault->advice, HasSubstr("reboot the node"));
  const int64_t version = snapshot.version;
  Record({"GPU-a", 45}, kStart + absl::Minutes(5), snapshot);
  Record({"GPU-b", 48}, kStart + absl::Minutes(5), snapshot);
  EXPECT_EQ(snapshot.fault->xid, 79);
  EXPECT_EQ(snapshot.version, version);
  EXPECT_EQ(snapshot.xids.size(), 4u);
}

TEST(Record, AnUnknownXidIsReportedAsSuch) {
  GpuSnapshot snapshot = OfTwo();
  Record({"GPU-a", 999}, kStart, snapshot);
  EXPECT_FALSE(snapshot.fault->is_broken);
  EXPECT_THAT(snapshot.fault->Text(), HasSubstr("XID 999: not one that Rempart knows"));
}

TEST(Renew, OnlyWhatIsToldIsNews) {
  GpuSnapshot snapshot = OfTwo();
  std::vector<GpuFacts> gpus = snapshot.gpus;
  gpus[0].used_bytes = 77;
  gpus[0].temperature_celsius = 80;
  gpus[0].power_milliwatts = 5;
  gpus[0].slowdowns = {"power_cap"};
  Renew(gpus, kStart, snapshot);
  EXPECT_EQ(snapshot.version, 0);
  EXPECT_EQ(snapshot.gpus[0].used_bytes, 77);
  gpus[0].ecc_uncorrected = 1;
  Renew(gpus, kStart, snapshot);
  EXPECT_EQ(snapshot.version, 1);
  gpus[1].remap_pending = true;
  Renew(gpus, kStart, snapshot);
  EXPECT_EQ(snapshot.version, 2);
  gpus[1].condition = GpuCondition::kWantsReset;
  Renew(gpus, kStart, snapshot);
  EXPECT_EQ(snapshot.version, 3);
  EXPECT_FALSE(snapshot.fault.has_value()) << "it can be used until then";
}

TEST(Renew, AGpuThatTheDriverGivesUpIsBroken) {
  for (const GpuCondition condition :
       {GpuCondition::kNeedsReset, GpuCondition::kNeedsReboot, GpuCondition::kLost}) {
    GpuSnapshot snapshot = OfTwo();
    std::vector<GpuFacts> gpus = snapshot.gpus;
    gpus[1].condition = condition;
    Renew(gpus, kStart, snapshot);
    ASSERT_TRUE(snapshot.fault.has_value());
    EXPECT_TRUE(snapshot.fault->is_broken);
    EXPECT_EQ(snapshot.fault->xid, 0);
    EXPECT_EQ(snapshot.fault->gpu, 1);
    EXPECT_THAT(snapshot.fault->Text(), HasSubstr("GPU 1 (NVIDIA H200, GPU-b): the driver "));
    const int64_t version = snapshot.version;
    Renew(gpus, kStart + absl::Minutes(9), snapshot);
    EXPECT_EQ(snapshot.version, version) << "once";
  }
}

TEST(Renew, ALinkThatGoesDownIsNews) {
  GpuSnapshot snapshot = OfTwo();
  const NvLinkPeer plug{"00000000:C0:00.0", NvLinkPeer::Kind::kSwitch};
  for (GpuFacts& gpu : snapshot.gpus) gpu.nvlink_peers = {plug, plug};
  snapshot.pairs = PairsOf(snapshot.gpus);
  ASSERT_EQ(snapshot.pairs.size(), 1u);
  EXPECT_EQ(snapshot.pairs[0].nvlinks, 2);
  std::vector<GpuFacts> gpus = snapshot.gpus;
  gpus[1].nvlink_peers = {plug};
  Renew(gpus, kStart, snapshot);
  EXPECT_EQ(snapshot.version, 1);
  EXPECT_EQ(snapshot.pairs[0].nvlinks, 1);
}

TEST(AtAddresses, FollowsTheOrderOfCuda) {
  std::vector<GpuFacts> all(3);
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].uuid = absl::StrCat("GPU-", i);
    all[i].pci_bus_id = absl::StrCat("00000000:1", i, ":00.0");
  }
  const auto ours = AtAddresses(all, {"0000:12:00.0", "0000:10:00.0"});
  ASSERT_TRUE(ours.ok()) << ours.status();
  ASSERT_EQ(ours->size(), 2u);
  EXPECT_EQ((*ours)[0].uuid, "GPU-2");
  EXPECT_EQ((*ours)[1].uuid, "GPU-0");
  const auto missing = AtAddresses(all, {"0000:10:00.0", "0000:77:00.0"});
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("0000:77:00.0"));
}

TEST(Xid, TheTableIsInOrderAndTheHowtoHasEachOfItsRows) {
  std::ifstream file("docs/howto/watch_gpus.md");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  int64_t last = 0;
  int broken = 0;
  for (const XidMeaning& known : KnownXids()) {
    EXPECT_GT(known.xid, last);
    last = known.xid;
    broken += known.is_broken ? 1 : 0;
    const std::string row = absl::StrCat("| ", known.xid, " | ", known.meaning, " | ",
                                         known.is_broken ? "**ends the worker**" : "reported",
                                         " | ", known.advice, " |");
    EXPECT_THAT(text, HasSubstr(row));
  }
  EXPECT_EQ(broken, 17);
  for (const int64_t xid : {48, 64, 74, 79, 94, 95, 119, 120}) {
    EXPECT_TRUE(MeaningOf(xid).is_broken) << xid;
  }
  for (const int64_t xid : {13, 31, 43, 45, 63}) EXPECT_FALSE(MeaningOf(xid).is_broken) << xid;
}

}  // namespace
}  // namespace rempart::worker
