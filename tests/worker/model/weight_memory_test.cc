// SPDX-License-Identifier: Apache-2.0
// What weights take of memory: each byte once, and while they are copied not much more.
#include "worker/model/weight_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/worker/model/random_model.h"
#include "worker/model/copy_weights.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMiB = 1 << 20;

// A random model whose tensors lie in a file that is mapped.
class ModelInFile {
 public:
  ModelInFile(const ModelConfig& config, kernels::DType type)
      : config_(config),
        path_(absl::StrCat(testing::TempDir(), "weight_memory_", getpid(), "_", ++next_)) {
    const RandomModel model(config, type, 11);
    std::ofstream out(path_, std::ios::binary);
    int64_t offset = 0;
    for (const auto& [name, tensor] : model.tensors()) {
      tensors_[name] = tensor;
      offsets_[name] = offset;
      out.write(reinterpret_cast<const char*>(tensor.data), tensor.bytes);
      offset += tensor.bytes;
    }
    out.close();
    auto file = MappedFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    files_.push_back(*std::move(file));
    for (auto& [name, tensor] : tensors_) tensor.data = files_[0].bytes().data() + offsets_[name];
  }
  ~ModelInFile() { std::filesystem::remove(path_); }

  Weights Bind(const RankPosition& of = {}) const {
    auto weights = BindTensors(tensors_, config_, kernels::BestOps(), of);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return *std::move(weights);
  }
  int64_t BytesOf(const std::string& name) const { return tensors_.at(name).bytes; }
  // The head is the embedding, as in files without an output.weight.
  void TieHead() { tensors_.erase("output.weight"); }
  absl::Span<const MappedFile> files() const { return files_; }
  // Of the file, as this process has it mapped.
  int64_t ResidentBytes() const {
    std::ifstream smaps("/proc/self/smaps");
    bool is_file = false;
    int64_t kib = 0;
    for (std::string line; std::getline(smaps, line);) {
      if (line.find('-') < line.find(' ')) is_file = line.find(path_) != std::string::npos;
      if (is_file && line.rfind("Rss:", 0) == 0) kib += std::stoll(line.substr(4));
    }
    return kib * 1024;
  }

 private:
  inline static int next_ = 0;
  const ModelConfig config_;
  const std::string path_;
  std::map<std::string, int64_t> offsets_;
  TensorMap tensors_;
  std::vector<MappedFile> files_;
};

WeightMemory Count(const PackOptions& options, std::vector<Weights>& ranks) {
  std::vector<Weights*> pointers;
  for (Weights& weights : ranks) pointers.push_back(&weights);
  return MemoryOf(kernels::BestOps(), options, pointers);
}

constexpr int64_t kNorms = 4 * 128 * (2 * 2 + 1);

TEST(WeightMemory, OfWhatIsRepackedTheFileDoesNotCount) {
  const ModelInFile model(SmallConfig(4, 2, 32, 128, 256, 512), kernels::DType::kQ8_0);
  std::vector<Weights> ranks;
  ranks.push_back(model.Bind());
  const WeightMemory memory = Count({}, ranks);
  EXPECT_EQ(memory.in_file, model.BytesOf("token_embd.weight") + kNorms);
  EXPECT_EQ(memory.repacked, PlanPack(kernels::BestOps(), ranks[0]).bytes);
  EXPECT_GT(memory.repacked, 0);
  EXPECT_EQ(memory.expanded + memory.scratch, 0);
  EXPECT_FALSE(memory.repacked_is_kept);
}

TEST(WeightMemory, WhatIsReadInTheFileCountsOnceHoweverOftenItIsNamed) {
  for (const bool pack : {false, true}) {
    ModelInFile model(SmallConfig(4, 2, 32, 128, 256, 512), kernels::DType::kBF16);
    int64_t whole = model.files()[0].bytes().size() - kNorms;
    for (const int size : {1, 2}) {
      std::vector<Weights> ranks;
      for (int rank = 0; rank < size; ++rank)
        ranks.push_back(model.Bind(PositionOf(rank, size, 1)));
      const WeightMemory memory = Count({.pack = pack}, ranks);
      EXPECT_EQ(memory.in_file, whole + size * kNorms) << size << " ranks";
      EXPECT_EQ(memory.repacked, 0);
    }
    model.TieHead();
    std::vector<Weights> tied;
    tied.push_back(model.Bind());
    whole -= model.BytesOf("token_embd.weight");
    EXPECT_EQ(Count({.pack = pack}, tied).in_file, whole + kNorms);
  }
}

TEST(WeightMemory, RanksCountTheirOwnCopiesAndOneEmbedding) {
  const ModelInFile model(SmallConfig(4, 2, 32, 128, 256, 512), kernels::DType::kQ8_0);
  std::vector<Weights> ranks;
  for (int rank = 0; rank < 2; ++rank) ranks.push_back(model.Bind(PositionOf(rank, 2, 1)));
  const WeightMemory memory = Count({}, ranks);
  EXPECT_EQ(memory.in_file, model.BytesOf("token_embd.weight") + 2 * kNorms);
  EXPECT_EQ(memory.repacked, PlanPack(kernels::BestOps(), ranks[0]).bytes +
                                 PlanPack(kernels::BestOps(), ranks[1]).bytes);
}

TEST(WeightMemory, WhatAnEarlierStartKeptIsSaidToBeKept) {
  const ModelInFile model(SmallConfig(4, 2, 32, 128, 256, 512), kernels::DType::kQ8_0);
  const std::string folder = absl::StrCat(testing::TempDir(), "weight_memory_cache_", getpid());
  auto cache = RepackCache::Open(folder);
  ASSERT_TRUE(cache.ok()) << cache.status();
  ThreadPool pool({.threads = 2});
  const PackOptions options = {.cache = &*cache};
  std::vector<Weights> first;
  first.push_back(model.Bind());
  FindRepacked(kernels::BestOps(), options, first[0]);
  const WeightMemory made = Count(options, first);
  EXPECT_FALSE(made.repacked_is_kept);
  ASSERT_TRUE(CopyWeights(kernels::BestOps(), options, pool, first[0]).ok());
  ASSERT_TRUE(cache->Store(first[0].packed_key, first[0].packed.bytes(), {}).ok());
  std::vector<Weights> second;
  second.push_back(model.Bind());
  FindRepacked(kernels::BestOps(), options, second[0]);
  const WeightMemory kept = Count(options, second);
  EXPECT_TRUE(kept.repacked_is_kept);
  EXPECT_EQ(kept.sum(), made.sum());
  std::filesystem::remove_all(folder);
}

// 124 MiB are copied; of the file no more is resident than what waits to be given back and the
// largest matrix, however large the model is.
TEST(WeightMemory, CopiesAndTheirSourceAreNeverResidentAsAWhole) {
  const ModelInFile model(SmallConfig(16, 16, 64, 1024, 12288, 8192), kernels::DType::kQ8_0);
  constexpr int64_t kLargest = int64_t{12288} * 1024 / 32 * 34;
  const auto whole = static_cast<int64_t>(model.files()[0].bytes().size());
  ASSERT_GT(whole, SourcePages::kMostBytes + 3 * kLargest);
  Weights weights = model.Bind();
  ThreadPool pool({.threads = 2});
  int64_t most = 0;
  PackOptions options;
  options.files = model.files();
  options.on_progress = [&](int64_t, int64_t) { most = std::max(most, model.ResidentBytes()); };
  ASSERT_TRUE(CopyWeights(kernels::BestOps(), options, pool, weights).ok());
  EXPECT_GT(most, kLargest) << "the source is mapped";
  // Pages around a fault are mapped with it.
  EXPECT_LE(most, SourcePages::kMostBytes + kLargest + 8 * kMiB);
}

}  // namespace
}  // namespace rempart::worker
