// SPDX-License-Identifier: Apache-2.0
// Weights on a device are the same whether they were read from their files, in whatever pieces, or
// from memory: safetensors and GGUF, whole and by rank.
#include "worker/model/device_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/worker/model/tiny_gguf.h"
#include "worker/device/emulated_device.h"
#include "worker/model/model_source.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

struct Case {
  std::string model;
  RankPosition of;
  bool to_fp8 = false;
};

class DeviceWeightsTest : public testing::Test {
 protected:
  // A family's folder, or "gguf": one in three parts.
  void Open(const std::string& model) {
    std::string path = absl::StrCat("tests/goldens/families/", model);
    if (model == "gguf") {
      root_ = absl::StrCat("/tmp/rempart_device_weights_", getpid(), "/");
      std::filesystem::create_directories(root_);
      const std::vector<std::string> parts = TinyGguf(3);
      for (int i = 3; i > 0; --i) {
        path = absl::StrCat(root_, "tiny-0000", i, "-of-00003.gguf");
        std::ofstream(path, std::ios::binary) << parts[static_cast<size_t>(i) - 1];
      }
    }
    auto source = OpenModel(path);
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = *std::move(source);
  }
  ~DeviceWeightsTest() override {
    if (!root_.empty()) std::filesystem::remove_all(root_);
  }
  void Bind(const RankPosition& of) {
    auto weights = BindWeights(source_.tensors, source_.config, kernels::BestOps(), {.pack = false},
                               pool_, of, MatrixCut::kPairs);
    ASSERT_TRUE(weights.ok()) << weights.status();
    weights_ = *std::move(weights);
  }
  absl::StatusOr<DeviceWeights> Upload(const UploadOptions& upload, bool to_fp8 = false) {
    DeviceModelOptions options;
    options.weights_to_fp8 = to_fp8;
    return UploadWeights(device_, source_.config, weights_, options, upload);
  }
  // Without what lies before the layers where matrices become FP8: the last rows to come by.
  static std::string Bytes(const DeviceWeights& weights, bool to_fp8) {
    std::string bytes(weights.memory.as<char>(), static_cast<size_t>(weights.memory.bytes()));
    if (!to_fp8) return bytes;
    const auto* const layers = reinterpret_cast<const char*>(weights.layers[0].attention_norm);
    const int64_t scratch = layers - weights.memory.as<char>() - kReadPieceBytes;
    return bytes.erase(static_cast<size_t>(scratch), kReadPieceBytes);
  }

  std::string root_;
  ModelSource source_;
  ThreadPool pool_{{.threads = 1}};
  EmulatedDevice device_{int64_t{1} << 30};
  Weights weights_;
};

TEST_F(DeviceWeightsTest, AreThoseOfTheFilesWhateverThePieces) {
  for (const Case& each : std::vector<Case>{{"llama3", {}},
                                            {"llama3", {.rank = 0, .size = 2}},
                                            {"llama3", {.rank = 1, .size = 2}},
                                            {"llama3", {}, true},
                                            {"qwen2", {.rank = 1, .size = 2}, true},
                                            {"gguf", {}},
                                            {"gguf", {.rank = 1, .size = 2}}}) {
    SCOPED_TRACE(absl::StrCat(each.model, ", rank ", each.of.rank, " of ", each.of.size));
    ASSERT_NO_FATAL_FAILURE(Open(each.model));
    ASSERT_NO_FATAL_FAILURE(Bind(each.of));
    const auto from_memory = Upload({}, each.to_fp8);
    ASSERT_TRUE(from_memory.ok()) << from_memory.status();
    const std::string expected = Bytes(*from_memory, each.to_fp8);
    EXPECT_NE(expected.find_first_not_of('\0'), std::string::npos);
    for (const int64_t piece : {int64_t{256}, int64_t{5000}, kReadPieceBytes}) {
      UploadOptions upload;
      upload.files = source_.files;
      upload.piece_bytes = piece;
      upload.hash_files = piece == 5000;
      const auto from_files = Upload(upload, each.to_fp8);
      ASSERT_TRUE(from_files.ok()) << from_files.status();
      EXPECT_TRUE(Bytes(*from_files, each.to_fp8) == expected) << "pieces of " << piece;
      for (size_t i = 0; i < from_files->file_hashes.size(); ++i) {
        EXPECT_EQ(from_files->file_hashes[i], HashOf(source_.files[i].bytes()));
      }
      EXPECT_EQ(from_files->file_hashes.size(), upload.hash_files ? source_.files.size() : 0);
    }
  }
}

TEST_F(DeviceWeightsTest, ProgressEndsWhenAllIsThere) {
  ASSERT_NO_FATAL_FAILURE(Open("llama3"));
  ASSERT_NO_FATAL_FAILURE(Bind({}));
  for (const bool to_fp8 : {false, true}) {
    std::vector<int64_t> told;
    int64_t total = 0;
    UploadOptions upload;
    upload.files = source_.files;
    upload.piece_bytes = 4096;
    upload.on_progress = [&](int64_t done, int64_t of) { told.push_back(done), total = of; };
    const auto weights = Upload(upload, to_fp8);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(total, weights->memory.bytes());
    EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
    EXPECT_GT(told.size(), 20u);
    EXPECT_LT(told[told.size() - 2], total) << "until the last is there";
    EXPECT_EQ(told.back(), total);
  }
}

TEST_F(DeviceWeightsTest, WhatFailsLeavesNoMemoryTaken) {
  ASSERT_NO_FATAL_FAILURE(Open("gguf"));
  ASSERT_NO_FATAL_FAILURE(Bind({}));
  std::filesystem::resize_file(source_.files[1].path(), 1000);
  UploadOptions upload;
  upload.files = source_.files;
  const auto failed = Upload(upload);
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(failed.status().message()),
              HasSubstr("tiny-00002-of-00003.gguf: ends at byte 1000"));
  EXPECT_EQ(device_.used_bytes(), 0);
}

}  // namespace
}  // namespace rempart::worker
