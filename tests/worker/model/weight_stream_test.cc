// SPDX-License-Identifier: Apache-2.0
// What arrives in a device's memory, over the emulated one, and how a stream of weights ends when
// it cannot go on.
#include "worker/model/weight_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/numbers.h"
#include "worker/device/emulated_device.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

// Counts what is pinned, which bounds what is read ahead.
class CountingDevice : public EmulatedDevice {
 public:
  CountingDevice() : EmulatedDevice(int64_t{1} << 30) {}
  absl::StatusOr<void*> AllocatePinned(int64_t bytes) override {
    pinned += bytes;
    return EmulatedDevice::AllocatePinned(bytes);
  }
  int64_t pinned = 0;
};

class WeightStreamTest : public testing::Test {
 protected:
  WeightStreamTest() {
    static int next = 0;
    root_ = absl::StrCat("/tmp/rempart_stream_", getpid(), "_", ++next, "/");
    std::filesystem::create_directories(root_);
    options_.threads = 3;
    options_.read.piece_bytes = 4096;
  }
  ~WeightStreamTest() override { std::filesystem::remove_all(root_); }

  // A file of random BF16, F16 and F32 that are numbers.
  void AddFile(size_t bytes) {
    std::string content(bytes, '\0');
    for (size_t i = 0; i < bytes; ++i) content[i] = static_cast<char>(random_() & 0x3f);
    const std::string path = absl::StrCat(root_, files_.size(), ".safetensors");
    std::ofstream(path, std::ios::binary) << content;
    auto file = MappedFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    files_.push_back(*std::move(file));
  }
  const uint8_t* At(size_t file, size_t offset) const {
    return files_[file].bytes().data() + offset;
  }

  // Beside the copies before it.
  void AddCopy(WeightCopy copy) {
    to_.push_back(used_);
    used_ += RecastBytes(copy.recast, copy.rows * copy.row_bytes) + 256;
    copies_.push_back(std::move(copy));
  }
  absl::StatusOr<StreamResult> Run() {
    auto memory = DeviceBuffer::Make(device_, used_);
    EXPECT_TRUE(memory.ok());
    memory_ = *std::move(memory);
    for (size_t i = 0; i < copies_.size(); ++i) copies_[i].to = memory_.as<uint8_t>() + to_[i];
    return StreamWeights(device_, copies_, files_, options_);
  }

  // What a copy should bring, made number by number from the mapping.
  static std::vector<uint8_t> Expected(const WeightCopy& copy) {
    std::vector<uint8_t> bytes;
    for (int64_t row = 0; row < copy.rows; ++row) {
      const uint8_t* const from = copy.from + row * copy.stride_bytes;
      const int64_t width = copy.recast == Recast::kF32ToBf16 ? 4 : 2;
      for (int64_t at = 0; at < copy.row_bytes; at += width) {
        uint8_t number[4] = {};
        std::memcpy(number, from + at, static_cast<size_t>(width));
        float value = 0;
        std::memcpy(&value, number, 4);
        uint16_t half = 0;
        std::memcpy(&half, number, 2);
        if (copy.recast == Recast::kF16ToBf16) value = kernels::cuda::HalfBitsToFloat(half);
        const kernels::cuda::Bf16 rounded = kernels::cuda::ToBf16(value);
        if (copy.recast != Recast::kNone) std::memcpy(number, &rounded, 2);
        bytes.insert(bytes.end(), number, number + 2);
      }
    }
    return bytes;
  }
  void ExpectAll() const {
    for (size_t i = 0; i < copies_.size(); ++i) {
      const std::vector<uint8_t> expected = Expected(copies_[i]);
      EXPECT_EQ(std::memcmp(copies_[i].to, expected.data(), expected.size()), 0) << "copy " << i;
      const uint8_t* const behind = copies_[i].to + expected.size();
      EXPECT_TRUE(std::all_of(behind, behind + 256, [](uint8_t byte) { return byte == 0; }))
          << "behind copy " << i;
    }
  }
  // Three files with tensors of all kinds at odd places, and some in memory.
  void AddAll() {
    for (const size_t bytes : {60'000, 30'002, 8'192}) AddFile(bytes);
    AddCopy({At(0, 40'000), 100, 200, 200});
    AddCopy({At(0, 10), 64, 96, 200});  // columns
    AddCopy({At(0, 13'002), 10, 400, 400, Recast::kF32ToBf16});
    AddCopy({At(0, 17'002), 40, 32, 80, Recast::kF32ToBf16});
    AddCopy({At(1, 2), 30, 1000, 1000, Recast::kF16ToBf16});
    AddCopy({At(2, 0), 16, 64, 512, Recast::kF16ToBf16});
    AddCopy({reinterpret_cast<const uint8_t*>(vector_.data()), 1, 4000, 4000});
  }

  std::mt19937 random_{7};
  std::string root_;
  std::vector<MappedFile> files_;
  const std::vector<float> vector_ = std::vector<float>(1000, 1.5f);
  CountingDevice device_;
  DeviceBuffer memory_;
  std::vector<WeightCopy> copies_;
  std::vector<int64_t> to_;
  int64_t used_ = 0;
  StreamOptions options_;
};

TEST_F(WeightStreamTest, EveryByteArrivesWhateverThePiecesAndReaders) {
  AddAll();
  for (const bool hash : {false, true}) {
    for (const int threads : {1, 2, 5}) {
      for (const int64_t piece : {64, 1024, 1 << 20}) {
        SCOPED_TRACE(absl::StrCat(threads, " readers, pieces of ", piece, hash ? ", hashed" : ""));
        options_.threads = threads;
        options_.read.piece_bytes = piece;
        options_.read.hash_files = hash;
        const auto result = Run();
        ASSERT_TRUE(result.ok()) << result.status();
        ExpectAll();
        ASSERT_EQ(result->hashes.size(), hash ? files_.size() : 0);
        for (size_t i = 0; i < result->hashes.size(); ++i) {
          EXPECT_EQ(result->hashes[i], HashOf(files_[i].bytes())) << "file " << i;
        }
        EXPECT_GT(result->times.read, absl::ZeroDuration());
        EXPECT_EQ(result->times.hash > absl::ZeroDuration(), hash);
      }
    }
  }
}

TEST_F(WeightStreamTest, TheDeviceMakesSomethingOfRowsBeforeTheNextComeToTheSamePlace) {
  AddFile(50 * 240);
  std::vector<uint8_t> seen;
  WeightCopy copy = {At(0, 0), 50, 160, 240, Recast::kF32ToBf16};
  copy.on_device = [&](int64_t first, int64_t rows) {
    EXPECT_EQ(first * 80, static_cast<int64_t>(seen.size()));
    seen.insert(seen.end(), copies_[0].to, copies_[0].to + rows * 80);
  };
  AddCopy(copy);
  options_.threads = 1;  // in the order of the file
  options_.read.piece_bytes = 1000;
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ(seen, Expected(copy));
}

TEST_F(WeightStreamTest, RowsAreMadeInWholeUnits) {
  std::vector<std::pair<int64_t, int64_t>> made;  // by one reader
  WeightCopy copy;
  copy.rows = 11;
  copy.row_bytes = copy.stride_bytes = 100;
  copy.make_rows = 4;
  copy.make = [&](int64_t first, int64_t rows, uint8_t* to) {
    made.emplace_back(first, rows);
    for (int64_t i = 0; i < rows * 100; ++i) to[i] = static_cast<uint8_t>(first + i / 100);
  };
  AddCopy(copy);
  options_.threads = 1;
  options_.read.piece_bytes = 500;
  ASSERT_TRUE(Run().ok());
  EXPECT_THAT(made,
              testing::ElementsAre(testing::Pair(0, 4), testing::Pair(4, 4), testing::Pair(8, 3)));
  for (int i = 0; i < 1100; ++i) EXPECT_EQ(copies_[0].to[i], i / 100);
}

TEST_F(WeightStreamTest, TellsHowFarItIsAndReadsNoMoreAheadThanItsBuffersHold) {
  AddFile(400'000);
  AddCopy({At(0, 0), 1, 400'000, 400'000});
  std::vector<int64_t> told;
  options_.on_progress = [&](int64_t bytes) { told.push_back(bytes); };
  ASSERT_TRUE(Run().ok());
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.size(), 98u);
  EXPECT_EQ(told.back(), 400'000);
  EXPECT_EQ(device_.pinned, 3 * 2 * 4096);
}

TEST_F(WeightStreamTest, SeveralFilesAreReadAtOnce) {
  for (int i = 0; i < 3; ++i) AddFile(4096);
  for (size_t i = 0; i < 3; ++i) AddCopy({At(i, 0), 1, 4096, 4096});
  // None returns before all are being read.
  std::atomic<int> reading = 0;
  options_.reader = [&](const MappedFile& file, int64_t offset, absl::Span<uint8_t> to) {
    ++reading;
    const absl::Time end = absl::Now() + absl::Seconds(60);
    while (reading < 3 && absl::Now() < end) std::this_thread::yield();
    if (reading < 3) return absl::DeadlineExceededError("read alone");
    return ReadMappedFile(file, offset, to);
  };
  const auto result = Run();
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectAll();
}

TEST_F(WeightStreamTest, AFileThatWasCutShortIsNamed) {
  AddAll();
  std::filesystem::resize_file(files_[0].path(), 41'000);
  for (const bool hash : {false, true}) {
    options_.read.hash_files = hash;
    const auto result = Run();
    EXPECT_EQ(result.status().code(), absl::StatusCode::kDataLoss) << result.status();
    EXPECT_THAT(std::string(result.status().message()),
                HasSubstr(absl::StrCat(files_[0].path(),
                                       ": ends at byte 41000, and had 60000 when it was opened")));
  }
}

TEST_F(WeightStreamTest, AReadBehindTheEndNamesTheEnd) {
  AddAll();
  std::filesystem::resize_file(files_[0].path(), 41'000);
  std::vector<uint8_t> to(100);
  for (const int64_t offset : {40'950, 41'000, 50'000}) {
    const absl::Status status = ReadMappedFile(files_[0], offset, absl::MakeSpan(to));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(": ends at byte 41000, and had 60000"))
        << offset;
  }
}

TEST_F(WeightStreamTest, AReadThatFailsHalfWayEndsIt) {
  AddAll();
  for (const bool hash : {false, true}) {
    options_.read.hash_files = hash;
    options_.read.piece_bytes = 256;
    std::atomic<int> reads = 0;
    options_.reader = [&](const MappedFile& file, int64_t offset, absl::Span<uint8_t> to) {
      if (++reads == 40) return absl::UnavailableError("Input/output error");
      return ReadMappedFile(file, offset, to);
    };
    const auto result = Run();
    EXPECT_EQ(result.status(), absl::UnavailableError("Input/output error"));
    EXPECT_LE(reads, 40 + 3 * options_.threads) << "nobody goes on long";
  }
}

TEST_F(WeightStreamTest, IsGivenUpWhenAsked) {
  AddAll();
  for (const bool hash : {false, true}) {
    options_.read.hash_files = hash;
    options_.read.piece_bytes = 256;
    std::stop_source stop;
    options_.stop = stop.get_token();
    std::atomic<int> reads = 0;
    options_.reader = [&](const MappedFile& file, int64_t offset, absl::Span<uint8_t> to) {
      if (++reads == 40) stop.request_stop();
      return ReadMappedFile(file, offset, to);
    };
    EXPECT_TRUE(absl::IsCancelled(Run().status()));
    EXPECT_LE(reads, 40 + 3 * options_.threads);
  }
}

// What is only hashed comes after the last copy.
TEST_F(WeightStreamTest, IsGivenUpWhileItOnlyHashes) {
  AddFile(200'000);
  AddCopy({At(0, 0), 1, 100, 100});
  options_.read.hash_files = true;
  std::stop_source stop;
  options_.stop = stop.get_token();
  std::atomic<int> reads = 0;
  options_.reader = [&](const MappedFile& file, int64_t offset, absl::Span<uint8_t> to) {
    if (++reads == 20) stop.request_stop();
    return ReadMappedFile(file, offset, to);
  };
  EXPECT_TRUE(absl::IsCancelled(Run().status()));
}

TEST_F(WeightStreamTest, ADeviceThatBreaksEndsIt) {
  class BrokenDevice : public CountingDevice {
   public:
    absl::Status Finish() override {
      return ++finishes > 2 ? absl::InternalError("off the bus") : absl::OkStatus();
    }
    int finishes = 0;
  } broken;
  AddFile(400'000);
  std::vector<uint8_t> memory(400'000);
  const std::vector<WeightCopy> copies = {
      {At(0, 0), 1, 400'000, 400'000, Recast::kNone, memory.data()}};
  EXPECT_EQ(StreamWeights(broken, copies, files_, options_).status(),
            absl::InternalError("off the bus"));
}

}  // namespace
}  // namespace rempart::worker
