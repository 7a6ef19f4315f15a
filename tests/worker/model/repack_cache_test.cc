// SPDX-License-Identifier: Apache-2.0
// Repacked weights on disk: what is found again, and everything that must not be.
#include "worker/model/repack_cache.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

namespace fs = std::filesystem;

class RepackCacheTest : public testing::Test {
 protected:
  RepackCacheTest() {
    static int next = 0;
    root_ = absl::StrCat("/tmp/rempart_repack_", getpid(), "_", ++next);
    fs::create_directories(root_);
  }
  ~RepackCacheTest() override { fs::remove_all(root_); }

  std::string folder() const { return root_ + "/cache"; }
  RepackCache Open() const {
    auto cache = RepackCache::Open(folder());
    EXPECT_TRUE(cache.ok()) << cache.status();
    return *std::move(cache);
  }
  // The only whole file in the folder.
  std::string OnlyFile() const {
    std::string found;
    for (const auto& entry : fs::directory_iterator(folder())) {
      EXPECT_TRUE(found.empty()) << found << " and " << entry.path();
      found = entry.path();
    }
    return found;
  }
  void Overwrite(const std::string& path, int64_t offset, char byte) const {
    const int fd = open(path.c_str(), O_WRONLY);
    ASSERT_GE(fd, 0);
    EXPECT_EQ(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
  }

  static constexpr int64_t kBytes = 10000;
  std::string root_;
  const std::vector<uint8_t> payload_ = [] {
    std::vector<uint8_t> bytes(kBytes);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7);
    return bytes;
  }();
  const RepackKey key_ = {{1, 2, 3}, "avx2", {4, 5, 6}, kBytes};
  const Sha256 source_ = {7, 8, 9};
};

TEST_F(RepackCacheTest, FindsWhatWasStoredAndNothingBefore) {
  const RepackCache cache = Open();
  EXPECT_EQ(cache.Find(key_).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(cache.Store(key_, payload_, source_).ok());
  auto found = Open().Find(key_);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->memory.bytes(), absl::MakeConstSpan(payload_));
  EXPECT_TRUE(found->memory.is_file());
  EXPECT_EQ(found->digests.source, source_);
  EXPECT_EQ(found->digests.payload, HashOf(payload_));
}

TEST_F(RepackCacheTest, AnotherSourceTierLayoutOrSizeIsAnotherEntry) {
  const RepackCache cache = Open();
  ASSERT_TRUE(cache.Store(key_, payload_, source_).ok());
  RepackKey other = key_;
  other.source[0] ^= 1;
  EXPECT_FALSE(cache.Find(other).ok());
  other = key_;
  other.tier = "avx512";
  EXPECT_FALSE(cache.Find(other).ok());
  other = key_;
  other.layout[31] ^= 1;
  EXPECT_FALSE(cache.Find(other).ok());
  other = key_;
  other.bytes += 1;
  EXPECT_FALSE(cache.Find(other).ok());
  EXPECT_TRUE(cache.Find(key_).ok());
}

TEST_F(RepackCacheTest, ADamagedHeaderOrLengthIsRefusedAndRemoved) {
  const RepackCache cache = Open();
  // Magic, payload size, key, source, payload digest, checksum.
  for (const int64_t offset : {0, 8, 16, 48, 80, 112}) {
    ASSERT_TRUE(cache.Store(key_, payload_, source_).ok());
    Overwrite(OnlyFile(), offset, '\x5a');
    EXPECT_FALSE(cache.Find(key_).ok()) << offset;
    EXPECT_EQ(OnlyFile(), "") << "removed, offset " << offset;
  }
  for (const int64_t size : {int64_t{0}, int64_t{100}, kBytes, int64_t{4096} + kBytes + 1}) {
    ASSERT_TRUE(cache.Store(key_, payload_, source_).ok());
    fs::resize_file(OnlyFile(), static_cast<uintmax_t>(size));
    EXPECT_FALSE(cache.Find(key_).ok()) << size;
    EXPECT_EQ(OnlyFile(), "");
  }
}

TEST_F(RepackCacheTest, AChangedPayloadShowsInItsDigest) {
  const RepackCache cache = Open();
  ASSERT_TRUE(cache.Store(key_, payload_, source_).ok());
  Overwrite(OnlyFile(), 4096 + 5000, '\x5a');
  auto found = cache.Find(key_);
  ASSERT_TRUE(found.ok());
  EXPECT_NE(HashOf(found->memory.bytes()), found->digests.payload);
}

TEST_F(RepackCacheTest, AFileThatOthersMayWriteOrALinkIsNotTrusted) {
  const RepackCache cache = Open();
  ASSERT_TRUE(cache.Store(key_, payload_, source_).ok());
  const std::string path = OnlyFile();
  ASSERT_EQ(chmod(path.c_str(), 0620), 0);
  EXPECT_FALSE(cache.Find(key_).ok());
  ASSERT_TRUE(cache.Store(key_, payload_, source_).ok());
  fs::rename(path, root_ + "/elsewhere");
  fs::create_symlink(root_ + "/elsewhere", path);
  EXPECT_FALSE(cache.Find(key_).ok());
}

TEST_F(RepackCacheTest, AFolderThatOthersMayWriteIsRefusedWithTheFix) {
  fs::create_directories(folder());
  ASSERT_EQ(chmod(folder().c_str(), 0770), 0);
  const absl::Status status = RepackCache::Open(folder()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("chmod 700"), absl::string_view::npos) << status;
  fs::remove(folder());
  std::ofstream(folder()) << "a file";
  EXPECT_FALSE(RepackCache::Open(folder()).ok());
}

TEST_F(RepackCacheTest, AFolderThatCannotBeMadeOrWrittenIsAnErrorNotAnEnd) {
  std::ofstream(root_ + "/file") << "x";
  EXPECT_EQ(RepackCache::Open(root_ + "/file/cache").status().code(),
            absl::StatusCode::kFailedPrecondition);
  const RepackCache cache = Open();
  fs::remove_all(folder());  // as on a volume that went away
  EXPECT_FALSE(cache.Store(key_, payload_, source_).ok());
  EXPECT_FALSE(cache.Find(key_).ok());
}

TEST_F(RepackCacheTest, StartsAtTheSameTimeSeeAWholeFileOrNone) {
  const RepackCache cache = Open();
  std::atomic<bool> stop = false;
  std::atomic<int> found = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        EXPECT_TRUE(cache.Store(key_, payload_, source_).ok());
      }
      stop = true;
    });
  }
  threads.emplace_back([&] {
    while (!stop || found == 0) {
      auto seen = cache.Find(key_);
      if (!seen.ok()) continue;
      ++found;
      EXPECT_EQ(HashOf(seen->memory.bytes()), seen->digests.payload);
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_NE(OnlyFile(), "") << "and no temporary file stays";
}

TEST_F(RepackCacheTest, KeepsAtMostItsNumberOfFiles) {
  const RepackCache cache = Open();
  for (size_t i = 0; i < RepackCache::kMaxFiles + 3; ++i) {
    RepackKey key = key_;
    key.tier = absl::StrCat("tier-", i);
    ASSERT_TRUE(cache.Store(key, payload_, source_).ok());
  }
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder())) ++count;
  EXPECT_EQ(count, RepackCache::kMaxFiles);
}

TEST_F(RepackCacheTest, ASampleTellsFilesApart) {
  const std::string path = root_ + "/model";
  std::ofstream(path) << std::string(1 << 20, 'a');
  const auto first = SampleSource(path);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*SampleSource(path), *first);
  // The same size and times, other content, in the first page and in the last.
  struct stat info = {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  for (const int64_t offset : {int64_t{10}, int64_t{(1 << 20) - 10}}) {
    Overwrite(path, offset, 'b');
    const timespec times[2] = {info.st_atim, info.st_mtim};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
    EXPECT_NE(*SampleSource(path), *first);
    Overwrite(path, offset, 'a');
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
    EXPECT_EQ(*SampleSource(path), *first);
  }
  fs::remove(path);
  EXPECT_FALSE(SampleSource(path).ok());
}

}  // namespace
}  // namespace rempart::worker
