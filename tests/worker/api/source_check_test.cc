// SPDX-License-Identifier: Apache-2.0
// What the digest of a model file decides.
#include "worker/api/source_check.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

namespace fs = std::filesystem;

class SourceCheckTest : public testing::Test {
 protected:
  SourceCheckTest() {
    static int next = 0;
    root_ = absl::StrCat("/tmp/rempart_source_", getpid(), "_", ++next);
    fs::create_directories(root_);
    path_ = root_ + "/model.gguf";
    std::ofstream(path_) << "abc";
    auto cache = RepackCache::Open(root_ + "/cache");
    EXPECT_TRUE(cache.ok());
    cache_.emplace(*std::move(cache));
  }
  ~SourceCheckTest() override { fs::remove_all(root_); }

  Weights Computed() {
    Weights weights;
    auto memory = PackedMemory::Allocate(8192);
    EXPECT_TRUE(memory.ok());
    weights.packed = *std::move(memory);
    weights.packed.writable()[100] = 42;
    weights.packed_key = {{1}, "avx2", {2}, 8192};
    return weights;
  }
  Weights FromCache() {
    Weights weights = Computed();
    auto found = cache_->Find(weights.packed_key);
    EXPECT_TRUE(found.ok()) << found.status();
    weights.packed = std::move(found->memory);
    weights.from_cache = found->digests;
    return weights;
  }

  std::string root_, path_;
  std::optional<RepackCache> cache_;
  const Sha256 source_ = {9};
};

TEST_F(SourceCheckTest, HashesAFileAsEveryoneDoes) {
  int64_t done = 0, total = 0;
  const auto digest = HashFile(path_, {}, [&](int64_t d, int64_t t) { done = d, total = t; });
  ASSERT_TRUE(digest.ok());
  // FIPS 180-2, appendix B.1.
  EXPECT_EQ(DigestText(*digest),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(done, 3);
  EXPECT_EQ(total, 3);
  EXPECT_EQ(HashFile(root_ + "/none", {}, nullptr).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(SourceCheckTest, WhatIsKnownIsNotReadAgain) {
  const Sha256 known = {5};
  EXPECT_EQ(*HashModel(path_, {}, nullptr, {{path_, known}}), known);
  const std::string folder = root_ + "/folder";
  fs::create_directories(folder);
  std::ofstream(folder + "/config.json") << "{}";
  std::ofstream(folder + "/model.safetensors") << "weights";
  const auto whole = HashModel(folder, {}, nullptr);
  ASSERT_TRUE(whole.ok());
  const std::string weights = folder + "/model.safetensors";
  EXPECT_EQ(*HashModel(folder, {}, nullptr, {{weights, *HashFile(weights, {}, nullptr)}}), *whole);
  EXPECT_NE(*HashModel(folder, {}, nullptr, {{weights, known}}), *whole);
}

TEST_F(SourceCheckTest, StopsWhenAsked) {
  std::stop_source stop;
  stop.request_stop();
  EXPECT_TRUE(absl::IsCancelled(HashFile(path_, stop.get_token(), nullptr).status()));
}

TEST_F(SourceCheckTest, ADigestThatIsAskedForMustBeTheOne) {
  const Sha256 digest = *HashFile(path_, {}, nullptr);
  EXPECT_TRUE(CheckDigest(path_, "", digest).ok());
  EXPECT_TRUE(CheckDigest(path_, DigestText(digest), digest).ok());
  const absl::Status other = CheckDigest(path_, DigestText({}), digest);
  EXPECT_EQ(other.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(other.message().find("source.digest"), absl::string_view::npos) << other;
}

TEST_F(SourceCheckTest, ComputedWeightsAreThereAtTheNextStart) {
  ASSERT_TRUE(SettleRepacked(path_, source_, Computed(), *cache_, {}).ok());
  const Weights next = FromCache();
  EXPECT_EQ(next.packed.bytes()[100], 42);
  EXPECT_TRUE(SettleRepacked(path_, source_, next, *cache_, {}).ok());
}

TEST_F(SourceCheckTest, WeightsOfAnotherSourceEndTheServiceAndTheEntry) {
  ASSERT_TRUE(SettleRepacked(path_, source_, Computed(), *cache_, {}).ok());
  const Weights next = FromCache();
  EXPECT_EQ(SettleRepacked(path_, {8}, next, *cache_, {}).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(cache_->Find(next.packed_key).ok());
}

TEST_F(SourceCheckTest, WeightsThatChangedOnDiskEndTheServiceAndTheEntry) {
  ASSERT_TRUE(SettleRepacked(path_, source_, Computed(), *cache_, {}).ok());
  for (const auto& entry : fs::directory_iterator(root_ + "/cache")) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096 + 100);
    file.put('x');
  }
  const Weights next = FromCache();
  EXPECT_EQ(SettleRepacked(path_, source_, next, *cache_, {}).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(cache_->Find(next.packed_key).ok());
}

// Whoever ends the process does not wait for gigabytes.
TEST_F(SourceCheckTest, RepackedWeightsAreNeitherStoredNorHashedOnceItIsToStop) {
  std::stop_source stop;
  stop.request_stop();
  EXPECT_TRUE(
      absl::IsCancelled(SettleRepacked(path_, source_, Computed(), *cache_, stop.get_token())));
  EXPECT_TRUE(fs::is_empty(root_ + "/cache"));
  ASSERT_TRUE(SettleRepacked(path_, source_, Computed(), *cache_, {}).ok());
  const Weights next = FromCache();
  EXPECT_TRUE(absl::IsCancelled(SettleRepacked(path_, source_, next, *cache_, stop.get_token())));
  EXPECT_TRUE(cache_->Find(next.packed_key).ok());
}

TEST_F(SourceCheckTest, AFolderThatCannotBeWrittenCostsOnlyTheNextStart) {
  fs::remove_all(root_ + "/cache");
  EXPECT_TRUE(SettleRepacked(path_, source_, Computed(), *cache_, {}).ok());
}

}  // namespace
}  // namespace rempart::worker
