// SPDX-License-Identifier: Apache-2.0
// A whole start from a file: what it says of itself, and what an earlier start leaves for it.
#include "worker/api/load_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/worker/api/tiny_tokenizer.h"
#include "tests/worker/comm/communicator_contract.h"
#include "tests/worker/model/tiny_gguf.h"
#include "tests/worker/model/whole_model.h"
#include "worker/api/source_check.h"
#include "worker/comm/in_process.h"
#include "worker/device/cpu_count.h"
#include "worker/device/numa.h"

namespace rempart::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string TinyModel() { return TinyGguf().front(); }

class LoadModelTest : public testing::Test {
 protected:
  LoadModelTest() {
    static int next = 0;
    root_ = absl::StrCat("/tmp/rempart_load_", getpid(), "_", ++next);
    fs::create_directories(root_);
    settings_.model_path = root_ + "/tiny.gguf";
    std::ofstream(settings_.model_path, std::ios::binary) << TinyModel();
    settings_.engine.threads = 2;
    settings_.engine.max_sequences = 2;
  }
  ~LoadModelTest() override { fs::remove_all(root_); }

  // Loads, computes the logits of one token, and does what is left for later.
  std::vector<float> Start() {
    status_ = std::make_unique<WorkerStatus>();
    auto loaded = LoadModelFile(settings_, OpenGpu, nullptr, *status_);
    if (!loaded.ok()) {
      ADD_FAILURE() << loaded.status();
      return {};
    }
    blocks_ = loaded->engine.blocks_total;
    EXPECT_TRUE(loaded->ranks[0]->Begin(nullptr, blocks_).ok());
    std::vector<float> logits(loaded->ranks[0]->vocabulary_size());
    const std::vector<int32_t> ids = {3}, table = {0};
    StepBatch batch;
    batch.slices.push_back({ids, 0, table, true});
    EXPECT_TRUE(loaded->ranks[0]->Forward(batch, absl::MakeSpan(logits), {}).ok());
    later_ = loaded->check_later({});
    return logits;
  }
  std::vector<std::string> Parts() const {
    std::vector<std::string> names;
    for (const StartPart& part : status_->snapshot().start_parts) names.push_back(part.name);
    return names;
  }

  std::string root_;
  WorkerSettings settings_;
  std::unique_ptr<WorkerStatus> status_;
  int32_t blocks_ = 0;  // of the KV cache
  absl::Status later_;
};

TEST_F(LoadModelTest, SaysWhatTheStartWasMadeOf) {
  Start();
  for (const char* part : {"open", "tokenizer", "repack"}) {
    EXPECT_THAT(Parts(), Contains(part));
  }
  EXPECT_THAT(Parts(), Not(Contains("hash"))) << "not before the model serves";
  EXPECT_THAT(status_->snapshot().digest, HasSubstr("sha256:")) << "but after";
  EXPECT_TRUE(later_.ok()) << later_;
}

// By what one token's value becomes in it, and by how many tokens find room.
TEST_F(LoadModelTest, EachKvCacheTypeIsWhatItsNameSays) {
  struct Row {
    const char* name;
    kernels::DType type;
    int64_t bytes;  // of 16 tokens' K and V in a layer: 4 heads of 8, each with a scale in q8
  };
  const Row rows[] = {{"auto", kernels::DType::kF16, 16 * 2 * 4 * 8 * 2},
                      {"f16", kernels::DType::kF16, 16 * 2 * 4 * 8 * 2},
                      {"bf16", kernels::DType::kBF16, 16 * 2 * 4 * 8 * 2},
                      {"f32", kernels::DType::kF32, 16 * 2 * 4 * 8 * 4},
                      {"q8", kernels::DType::kQ8_0, 16 * 2 * 4 * (8 + 4)}};
  settings_.model_path = "tests/goldens/stories/stories260K.f32.gguf";
  settings_.engine.exact_arithmetic = true;
  settings_.engine.kv_cache_bytes = 1 << 20;
  std::set<std::vector<float>> different;
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    settings_.engine.kv_cache_type = row.name;
    const std::vector<float> logits = Start();
    WholeModel direct(settings_.model_path, kernels::BestOps(), /*exact=*/true, 2, row.type);
    EXPECT_EQ(logits, direct.Logits({3}));
    EXPECT_EQ(blocks_, (1 << 20) / (5 * row.bytes)) << "of five layers";
    different.insert(logits);
  }
  EXPECT_EQ(different.size(), 4u);
  settings_.engine.kv_cache_type = "fp8";
  WorkerStatus status;
  EXPECT_THAT(std::string(LoadModelFile(settings_, OpenGpu, nullptr, status).status().message()),
              HasSubstr("engine.kvCacheType is \"fp8\": on a CPU it must be one of auto, f16"));
}

TEST_F(LoadModelTest, MoreThreadsThanCpusAreNotStarted) {
  settings_.engine.threads = 1000;
  WorkerStatus status;
  const auto loaded = LoadModelFile(settings_, OpenGpu, nullptr, status);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->threads, UsableCpuCount());
}

// As if this machine's first and last CPU were two nodes.
TEST_F(LoadModelTest, RanksComputeOnTheCpusOfTheirNumaNodes) {
  const std::vector<float> alone = Start();
  const std::vector<int32_t> cpus = AllowedCpus();
  const int32_t cpu_of_node[] = {cpus.front(), cpus.back()};
  settings_.system_root = root_ + "/system";
  const std::string nodes = settings_.system_root + "/sys/devices/system/node";
  fs::create_directories(nodes);
  std::ofstream(nodes + "/online") << "0-1\n";
  for (int node = 0; node < 2; ++node) {
    fs::create_directories(absl::StrCat(nodes, "/node", node));
    std::ofstream(absl::StrCat(nodes, "/node", node, "/cpulist")) << cpu_of_node[node] << "\n";
  }
  settings_.tensor_parallel = settings_.ranks_per_pod = 2;
  WorkerStatus status;
  const auto loaded = LoadModelFile(settings_, OpenGpu, nullptr, status);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->ranks.size(), 2u);
  Group group = CreateInProcess(2, {});
  for (int own = 0; own < 2; ++own) {
    ASSERT_TRUE(loaded->ranks[own]->Begin(group[own].get(), loaded->engine.blocks_total).ok());
  }
  std::vector<int32_t> seen[2];
  std::vector<float> logits(alone.size());
  OnAllRanks(group, [&](Communicator& communicator) {
    const int own = communicator.rank();
    const std::vector<int32_t> ids = {3}, table = {0};
    StepBatch batch;
    batch.slices.push_back({ids, 0, table, true});
    const auto room = own == 0 ? absl::MakeSpan(logits) : absl::Span<float>();
    EXPECT_TRUE(loaded->ranks[own]->Forward(batch, room, {}).ok());
    seen[own] = AllowedCpus();
  });
  for (int own = 0; own < 2; ++own) EXPECT_THAT(seen[own], ElementsAre(cpu_of_node[own]));
  EXPECT_EQ(logits, alone);
}

TEST_F(LoadModelTest, TheSecondStartMapsWhatTheFirstRepacked) {
  settings_.repack_cache_folder = root_ + "/cache";
  const std::vector<float> first = Start();
  EXPECT_THAT(Parts(), Contains("repack"));
  const std::vector<float> second = Start();
  EXPECT_THAT(Parts(), Contains("map"));
  EXPECT_THAT(Parts(), Not(Contains("repack")));
  EXPECT_EQ(first, second);
  EXPECT_TRUE(later_.ok()) << later_;
}

// The first is expanded on its way into the packed layout.
TEST_F(LoadModelTest, TheSecondStartMapsWhatAQuantisedFolderBecame) {
  fs::copy("tests/goldens/families/qwen2_awq", root_ + "/folder");
  std::ofstream(root_ + "/folder/tokenizer.json") << kTokenizer;
  settings_.model_path = root_ + "/folder";
  settings_.repack_cache_folder = root_ + "/cache";
  const std::vector<float> first = Start();
  EXPECT_THAT(Parts(), Contains("repack"));
  EXPECT_TRUE(later_.ok()) << later_;
  const std::vector<float> second = Start();
  EXPECT_THAT(Parts(), Contains("map"));
  EXPECT_EQ(first, second);
  settings_.repack_cache_folder.clear();
  EXPECT_EQ(Start(), first);
}

TEST_F(LoadModelTest, ACacheThatDoesNotFitIsRefusedWithTheArithmetic) {
  settings_.engine.kv_cache_bytes = int64_t{1} << 50;
  WorkerStatus status;
  const absl::Status refusal = LoadModelFile(settings_, OpenGpu, nullptr, status).status();
  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(refusal.message()),
      testing::AllOf(HasSubstr(settings_.model_path), HasSubstr("not enough memory: weights"),
                     HasSubstr("KV cache 1073741824 MiB for 64 tokens + workspace"),
                     HasSubstr("engine.kvCacheMib")));
}

TEST_F(LoadModelTest, AContextThatIsTooLongIsRefusedByTheNameInTheManifest) {
  settings_.engine.context_length = 65;
  WorkerStatus status;
  const absl::Status refusal = LoadModelFile(settings_, OpenGpu, nullptr, status).status();
  EXPECT_EQ(refusal.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refusal.message()),
              HasSubstr("engine.contextLength is 65, but the model was made for 64: set at most"));
}

// An engine of one token has no room for an answer.
TEST_F(LoadModelTest, AContextWithoutRoomForAnAnswerIsRefused) {
  const auto refusal = [&] {
    WorkerStatus status;
    return std::string(LoadModelFile(settings_, OpenGpu, nullptr, status).status().message());
  };
  settings_.engine.context_length = 1;
  EXPECT_THAT(refusal(), HasSubstr("engine.contextLength is 1: set at least 2"));
  settings_.engine.context_length = 0;
  std::string file = TinyModel();
  constexpr char kKey[] = "llama.context_length";
  // Behind the key and its type of four bytes.
  file[file.find(kKey) + sizeof(kKey) - 1 + 4] = 1;
  std::ofstream(settings_.model_path, std::ios::binary) << file;
  EXPECT_THAT(refusal(), HasSubstr("the context length is 1: a model needs at least 2"));
}

TEST_F(LoadModelTest, WhatAnEarlierStartKeptIsCountedOnceAndNamed) {
  settings_.repack_cache_folder = root_ + "/cache";
  const auto refusal = [&] {
    WorkerStatus status;
    settings_.engine.kv_cache_bytes = int64_t{1} << 50;
    const absl::Status refused = LoadModelFile(settings_, OpenGpu, nullptr, status).status();
    settings_.engine.kv_cache_bytes = 0;
    return std::string(refused.message());
  };
  EXPECT_THAT(refusal(), HasSubstr("weights repacked 1 MiB + weights read from the file 1 MiB"));
  Start();
  EXPECT_THAT(refusal(), HasSubstr("weights repacked 1 MiB (kept from an earlier start) + weights "
                                   "read from the file 1 MiB"));
  settings_.engine.exact_arithmetic = true;
  EXPECT_THAT(refusal(), HasSubstr("not enough memory: weights read from the file 1 MiB + KV"));
}

TEST_F(LoadModelTest, AModelInPartsIsTheSameAndItsDigestIsOfAllParts) {
  const std::vector<float> whole = Start();
  const int64_t read = status_->snapshot().weight_bytes_read;
  settings_.repack_cache_folder = root_ + "/cache";
  settings_.model_path = root_ + "/tiny-00001-of-00003.gguf";
  const std::vector<std::string> parts = TinyGguf(3);
  for (int i = 0; i < 3; ++i) {
    std::ofstream(absl::StrCat(root_, "/tiny-0000", i + 1, "-of-00003.gguf"), std::ios::binary)
        << parts[i];
  }
  EXPECT_EQ(Start(), whole);
  EXPECT_EQ(status_->snapshot().weight_bytes_read, read);
  const std::string digest = status_->snapshot().digest;
  EXPECT_EQ(Start(), whole);
  EXPECT_THAT(Parts(), Contains("map"));
  std::string last = parts[2];
  last.back() ^= 1;
  std::ofstream(root_ + "/tiny-00003-of-00003.gguf", std::ios::binary) << last;
  Start();
  EXPECT_THAT(Parts(), Contains("repack")) << "of another model";
  EXPECT_NE(status_->snapshot().digest, digest);
}

TEST_F(LoadModelTest, AnotherTierOrAnotherFileIsRepackedAnew) {
  settings_.repack_cache_folder = root_ + "/cache";
  Start();
  settings_.engine.kernel_tier = "baseline";
  if (kernels::BestOps().name != std::string("baseline")) {
    Start();
    EXPECT_THAT(Parts(), Contains("repack"));
  }
  std::string other = TinyModel();
  other.back() ^= 1;
  std::ofstream(settings_.model_path, std::ios::binary) << other;
  Start();
  EXPECT_THAT(Parts(), Contains("repack"));
}

TEST_F(LoadModelTest, RepackedWeightsThatWereTamperedWithEndTheService) {
  settings_.repack_cache_folder = root_ + "/cache";
  Start();
  for (const auto& entry : fs::directory_iterator(root_ + "/cache")) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096 + 70);
    file.put('x');
  }
  Start();
  EXPECT_EQ(later_.code(), absl::StatusCode::kDataLoss) << later_;
  Start();
  EXPECT_THAT(Parts(), Contains("repack"));
  EXPECT_TRUE(later_.ok()) << later_;
}

TEST_F(LoadModelTest, AFolderThatIsNotOursMeansNoCache) {
  settings_.repack_cache_folder = root_ + "/cache";
  fs::create_directories(root_ + "/cache");
  fs::permissions(root_ + "/cache", fs::perms::all);
  EXPECT_FALSE(Start().empty());
  EXPECT_THAT(Parts(), Contains("repack"));
  EXPECT_TRUE(fs::is_empty(root_ + "/cache"));
}

TEST_F(LoadModelTest, ANamedDigestIsCheckedBeforeTheModelServes) {
  settings_.model_digest = DigestText(*HashFile(settings_.model_path, {}, nullptr));
  status_ = std::make_unique<WorkerStatus>();
  ASSERT_TRUE(LoadModelFile(settings_, OpenGpu, nullptr, *status_).ok());
  EXPECT_THAT(Parts(), Contains("hash"));
  EXPECT_EQ(status_->snapshot().digest, settings_.model_digest);
  settings_.model_digest.back() = settings_.model_digest.back() == '0' ? '1' : '0';
  const absl::Status refused = LoadModelFile(settings_, OpenGpu, nullptr, *status_).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr(settings_.model_digest));
}

}  // namespace
}  // namespace rempart::worker
