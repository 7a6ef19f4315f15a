// SPDX-License-Identifier: Apache-2.0
// gpu_bench over emulated GPUs, with models that these compute in seconds: the same program as on
// GPUs, its child processes included.
//   EMULATED_GPUS      how many there are
//   EMULATED_CUT_OFF   set where they do not reach each other, or themselves from another process
//   EMULATED_BAD_NORM  set where sums in one shot that are followed by a norm come out wrong
//   EMULATED_TROUBLE   PART:WHAT: what happens to a part's process, or the ranks' (PART ranks): it
//                      crashes, hangs, or its GPU has an error
//   EMULATED_PACE      BenchWork::pace
//   EMULATED_LOG       a file that gets a line for each of the ranks' processes: the variables
//                      CUDA_MODULE_LOADING and NCCL_MULTI_RANK_GPU_ENABLE, and what it is asked for
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "benchmarks/gpu/bench.h"
#include "benchmarks/gpu/decoder_config.h"
#include "tests/benchmarks/gpu/emulated.h"
#include "worker/device/emulated_device.h"
#include "worker/model/rope.h"

namespace rempart::benchmarks {
namespace {

absl::StatusOr<std::vector<worker::CudaDeviceInfo>> FindEmulated() {
  const char* const count = std::getenv("EMULATED_GPUS");
  std::vector<worker::CudaDeviceInfo> cards(count != nullptr ? std::atoi(count) : 1);
  for (worker::CudaDeviceInfo& card : cards) {
    card.name = "Emulated GPU";
    card.memory_bytes_per_second = 1'000'000'000'000;
    card.ordinal = static_cast<int>(&card - cards.data());
    for (int other = 0; other < static_cast<int>(cards.size()); ++other) {
      const bool reaches = other != card.ordinal && std::getenv("EMULATED_CUT_OFF") == nullptr;
      if (reaches) card.reaches.push_back(other);
    }
  }
  return cards;
}

std::string trouble;               // of this process
thread_local int current_gpu = 0;  // that this thread queues on

// What it shares may be reached from other processes, too.
class BenchDevice : public worker::EmulatedDevice {
 public:
  explicit BenchDevice(int ordinal) : EmulatedDevice(kMemory), ordinal_(ordinal) {}
  ~BenchDevice() override {
    if (shared_ != nullptr) munmap(shared_, static_cast<size_t>(share_.bytes));
    if (share_.file >= 0) close(share_.file);
  }

  const kernels::DeviceOps& ops() const override {
    static const kernels::DeviceOps& right = EmulatedDevice::ops();
    static const kernels::DeviceOps bad = [] {
      kernels::DeviceOps table = right;
      table.all_reduce_norm = [](const kernels::AllReduceNormArgs& args,
                                 kernels::DeviceStream stream) {
        kernels::AllReduceNormArgs other = args;
        other.norm.eps = 1.0f;
        right.all_reduce_norm(other, stream);
      };
      return table;
    }();
    EmulatedDevice::ops();  // is told who asks
    return std::getenv("EMULATED_BAD_NORM") != nullptr ? bad : right;
  }

  void Launch(std::function<void()> launch) override {
    current_gpu = ordinal_;
    EmulatedDevice::Launch(std::move(launch));
  }

  absl::StatusOr<Shared> ShareMemory(int64_t bytes) override {
    if (shared_ == nullptr) {
      share_ = {getpid(), memfd_create("share", MFD_CLOEXEC), bytes};
      if (share_.file < 0 || ftruncate(share_.file, bytes) != 0) {
        return absl::ErrnoToStatus(errno, "memory to share");
      }
      shared_ = Map(share_.file, bytes);
      if (shared_ == nullptr) return absl::ErrnoToStatus(errno, "mapping what is shared");
    }
    Shared shared;
    shared.memory = shared_;
    std::memcpy(shared.share.data(), &share_, sizeof(share_));
    return shared;
  }
  absl::StatusOr<void*> OpenShared(const worker::MemoryShare& given) override {
    if (std::getenv("EMULATED_CUT_OFF") != nullptr) {
      return absl::UnavailableError("the emulated GPU reaches no other");
    }
    Share share;
    std::memcpy(&share, given.data(), sizeof(share));
    const int file = open(absl::StrCat("/proc/", share.pid, "/fd/", share.file).c_str(), O_RDWR);
    if (file < 0) return absl::ErrnoToStatus(errno, "opening what another GPU shares");
    void* const memory = Map(file, share.bytes);
    close(file);
    if (memory == nullptr) return absl::ErrnoToStatus(errno, "mapping what another GPU shares");
    opened_[memory] = share.bytes;
    return memory;
  }
  void CloseShared(void* memory) override {
    munmap(memory, static_cast<size_t>(opened_[memory]));
    opened_.erase(memory);
  }

 private:
  struct Share {
    pid_t pid = 0;
    int file = -1;
    int64_t bytes = 0;
  };
  static void* Map(int file, int64_t bytes) {
    void* const memory =
        mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return memory == MAP_FAILED ? nullptr : memory;
  }

  const int ordinal_;
  Share share_;
  void* shared_ = nullptr;
  std::map<void*, int64_t> opened_;
};

absl::StatusOr<std::unique_ptr<worker::Device>> OpenEmulated(int ordinal) {
  if (trouble == "crash") std::abort();
  if (trouble == "hang") pause();
  if (trouble == "error") return absl::InternalError("unspecified launch failure");
  return std::make_unique<BenchDevice>(ordinal);
}

// As wide as takes an emulated rank a second.
void Shrink(worker::ModelConfig& config) {
  worker::RopeSpec rope = config.ropes[0];
  rope.inverse_frequency = worker::InverseFrequencies(10000, 16, 1.0);
  worker::ModelConfig small =
      DecoderConfig({64, 128, 256, config.heads, config.kv_heads, 16, 1}, std::move(rope));
  small.layers[0].window = config.layers[0].window;
  small.qkv_bias = config.qkv_bias;
  small.qk_norm = config.qk_norm;
  config = std::move(small);
}

BenchWork SmallWork() {
  BenchWork work;
  work.large = work.small[0].config;
  work.large.layers.resize(1);
  work.large.vocabulary = 256;
  for (NamedConfig& named : work.small) Shrink(named.config);
  for (NamedConfig& named : work.fp8) Shrink(named.config);
  for (NamedConfig& named : work.exact) {
    named.config.layers.resize(1);
    named.config.vocabulary = 256;
  }
  work.speed_options = {.context_length = 64,
                        .max_step_tokens = 32,
                        .max_sequences = 4,
                        .kv_bytes = int64_t{2} << 20,
                        .reserve_bytes = 0};
  work.speed.batches = {1, 3};
  work.speed.prompt_tokens = 16;
  work.speed.decode_steps = 4;
  work.speed.prefill_tokens = 32;
  work.speed.prefill_repeats = 1;
  work.load_options = work.speed_options;
  work.load = {.cases = {{8, 8, 1000}}, .window = absl::Milliseconds(500)};
  work.profile = {.batches = {1}, .prompt_tokens = 8, .steps = 4, .repeats = 1};
  // An emulated kernel that waits ends before what is behind it begins to wait: twice the deadline.
  work.ranks.notice = absl::Seconds(7);
  work.ranks.one_shot_time = std::chrono::milliseconds(60'000);
  work.products = {.shapes = {{"up", 128, 256}}, .tokens = {16}, .repeats = 1};
  work.all_reduce_bytes = {8 << 10, 1 << 20};
  if (const char* const pace = std::getenv("EMULATED_PACE")) work.pace = std::atof(pace);
  return work;
}

void TakeTrouble(const std::vector<std::string>& words) {
  const char* const of = std::getenv("EMULATED_TROUBLE");
  if (of == nullptr || words.size() < 2) return;
  const bool is_rank = words[0] == "--rank-child";
  if (!is_rank && words[0] != "--part") return;
  const std::string text = of, part = (is_rank ? "ranks" : words[1]) + ":";
  if (text.compare(0, part.size(), part) == 0) trouble = text.substr(part.size());
}

void LogRank(const std::vector<std::string>& words) {
  const char* const log = std::getenv("EMULATED_LOG");
  if (log == nullptr || words.empty() || words[0] != "--rank-child") return;
  std::string line;
  for (const char* const name : {"CUDA_MODULE_LOADING", "NCCL_MULTI_RANK_GPU_ENABLE"}) {
    const char* const value = std::getenv(name);
    absl::StrAppend(&line, value != nullptr ? value : "unset", " ");
  }
  std::ofstream(log, std::ios::app)
      << absl::StrCat(line, absl::StrJoin(words.begin() + 4, words.end(), " "), "\n");
}

}  // namespace
}  // namespace rempart::benchmarks

// What cudaGetDevice would say to shared_nccl.cc.
extern "C" int EmulatedCurrentGpu() { return rempart::benchmarks::current_gpu; }

int main(int argc, char** argv) {
  using namespace rempart::benchmarks;  // NOLINT
  const std::vector<std::string> words(argv + 1, argv + argc);
  TakeTrouble(words);
  LogRank(words);
  return RunBench({FindEmulated, OpenEmulated}, SmallWork(), words);
}
