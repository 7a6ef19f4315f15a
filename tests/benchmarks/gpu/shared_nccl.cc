// SPDX-License-Identifier: Apache-2.0
// A libnccl whose ranks are threads or processes of one machine and whose device memory is the
// host's: they add up through a file that all map. As a non-blocking NCCL it returns ncclInProgress
// and goes on when it is asked how far it is. What is queued never ends once a rank is gone, until
// it is aborted. Its own memory alone is registered.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>

#include "worker/comm/nccl_abi.h"

namespace {

constexpr int kMostRanks = 2;
// Of one rank's part of a collective; the file is sparse.
constexpr size_t kMostBytes = size_t{64} << 20;
// A rank that begins a collective has ended the one before, so all have begun that one, and ended
// the one before it: its place is free.
constexpr int kSlots = 2;

struct Shared {
  std::atomic<int> joined;
  std::atomic<int> gpus[kMostRanks];
  std::atomic<int64_t> begun[kMostRanks];  // collectives whose part is in its slot
  std::atomic<int64_t> kinds[kSlots][kMostRanks];
  alignas(4096) uint8_t slots[kSlots][kMostRanks][kMostBytes];
};

std::mutex allocations_mutex;
std::map<void*, size_t> allocations;  // of ncclMemAlloc

struct Work {
  const void* from;
  void* to;
  size_t count;
  int type;
  bool is_sum;

  size_t bytes() const {
    return count * (type == kNcclFloat32 ? 4 : type == kNcclBfloat16 ? 2 : 1);
  }
  int64_t kind() const { return static_cast<int64_t>(count) * 32 + type * 2 + (is_sum ? 1 : 0); }
};

float Get(const uint8_t* at, int type, size_t i) {
  if (type == kNcclFloat32) return reinterpret_cast<const float*>(at)[i];
  return std::bit_cast<float>(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(at)[i])
                              << 16);
}

void Put(void* at, int type, size_t i, float value) {
  if (type == kNcclFloat32) {
    static_cast<float*>(at)[i] = value;
    return;
  }
  const auto bits = std::bit_cast<uint32_t>(value);
  static_cast<uint16_t*>(at)[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

struct NcclOpaque {
  Shared* shared = nullptr;
  int rank = 0;
  int ranks = 0;
  int64_t ended = 0;
  std::deque<Work> queue;  // the first has begun
  bool has_begun = false;
  int error = kNcclSuccess;
  bool may_share_gpu = false;
};

namespace {

void Begin(NcclOpaque& comm) {
  const Work& work = comm.queue.front();
  const int64_t slot = comm.ended % kSlots;
  std::memcpy(comm.shared->slots[slot][comm.rank], work.from, work.bytes());
  comm.shared->kinds[slot][comm.rank] = work.kind();
  comm.shared->begun[comm.rank] = comm.ended + 1;
  comm.has_begun = true;
}

void End(NcclOpaque& comm) {
  const Work work = comm.queue.front();
  const int64_t slot = comm.ended % kSlots;
  const auto& parts = comm.shared->slots[slot];
  for (int rank = 0; rank < comm.ranks; ++rank) {
    if (comm.shared->kinds[slot][rank] != work.kind()) comm.error = kNcclInternalError;
  }
  for (int rank = 0; !work.is_sum && rank < comm.ranks; ++rank) {
    std::memcpy(static_cast<uint8_t*>(work.to) + static_cast<size_t>(rank) * work.bytes(),
                parts[rank], work.bytes());
  }
  for (size_t i = 0; work.is_sum && i < work.count; ++i) {
    float sum = 0;
    for (int rank = 0; rank < comm.ranks; ++rank) sum += Get(parts[rank], work.type, i);
    Put(work.to, work.type, i, sum);
  }
  ++comm.ended;
  comm.queue.pop_front();
  comm.has_begun = false;
}

void GoOn(NcclOpaque& comm) {
  while (!comm.queue.empty() && comm.error == kNcclSuccess) {
    if (!comm.has_begun) Begin(comm);
    for (int rank = 0; rank < comm.ranks; ++rank) {
      if (comm.shared->begun[rank] <= comm.ended) return;
    }
    End(comm);
  }
}

// The GPU of the calling thread, as the program knows it (emulated_bench.cc).
int CurrentGpu() {
  const auto current = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "EmulatedCurrentGpu"));
  return current != nullptr ? current() : 0;
}

// Two ranks of one GPU are taken when NCCL is told so.
void CheckGpus(NcclOpaque& comm) {
  if (comm.may_share_gpu || comm.shared->joined < comm.ranks) return;
  if (comm.shared->gpus[0] == comm.shared->gpus[1]) comm.error = 5;
}

int Queue(NcclOpaque& comm, const Work& work) {
  if (work.bytes() > kMostBytes) return 4;
  comm.queue.push_back(work);
  GoOn(comm);
  return kNcclInProgress;
}

}  // namespace

extern "C" {
int ncclGetVersion(int* version) {
  *version = 23007;
  return kNcclSuccess;
}

// The path of the file.
int ncclGetUniqueId(NcclUniqueId* id) {
  std::memset(id->bytes, 0, sizeof(id->bytes));
  std::snprintf(id->bytes, sizeof(id->bytes), "/tmp/rempart_nccl_XXXXXX");
  const int fd = mkstemp(id->bytes);
  if (fd < 0 || ftruncate(fd, sizeof(Shared)) != 0) return kNcclInternalError;
  close(fd);
  return kNcclSuccess;
}

int ncclCommInitRankConfig(NcclHandle* comm, int ranks, NcclUniqueId id, int rank,
                           NcclConfig* config) {
  if (config->magic != kNcclConfigMagic || ranks > kMostRanks) return 4;
  const int fd = open(id.bytes, O_RDWR | O_CLOEXEC);
  if (fd < 0) return kNcclInternalError;
  void* const memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) return kNcclInternalError;
  auto* const shared = static_cast<Shared*>(memory);
  const char* const allowed = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  shared->gpus[rank] = CurrentGpu();
  if (++shared->joined == ranks) unlink(id.bytes);
  *comm = new NcclOpaque;
  (*comm)->shared = shared;
  (*comm)->rank = rank;
  (*comm)->ranks = ranks;
  (*comm)->may_share_gpu = allowed != nullptr && std::string(allowed) == "1";
  return kNcclInProgress;
}

int ncclCommGetAsyncError(NcclHandle comm, int* error) {
  CheckGpus(*comm);
  GoOn(*comm);
  const bool is_done = comm->shared->joined == comm->ranks && comm->queue.empty();
  *error = comm->error != kNcclSuccess ? comm->error : is_done ? kNcclSuccess : kNcclInProgress;
  return kNcclSuccess;
}

int ncclCommAbort(NcclHandle comm) {
  munmap(comm->shared, sizeof(Shared));
  delete comm;
  return kNcclSuccess;
}

int ncclMemAlloc(void** memory, size_t bytes) {
  if (posix_memalign(memory, 4096, bytes) != 0) return kNcclInternalError;
  const std::lock_guard<std::mutex> lock(allocations_mutex);
  allocations[*memory] = bytes;
  return kNcclSuccess;
}

int ncclMemFree(void* memory) {
  const std::lock_guard<std::mutex> lock(allocations_mutex);
  allocations.erase(memory);
  std::free(memory);
  return kNcclSuccess;
}

int ncclCommWindowRegister(NcclHandle, void* memory, size_t bytes, NcclWindow* window, int flags) {
  const std::lock_guard<std::mutex> lock(allocations_mutex);
  const auto found = allocations.find(memory);
  if (flags != kNcclSymmetricWindow || found == allocations.end() || bytes > found->second) {
    return kNcclInvalidArgument;
  }
  *window = reinterpret_cast<NcclWindow>(memory);
  return kNcclSuccess;
}

int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, NcclHandle comm,
                  void*) {
  if (op != kNcclSum || (type != kNcclFloat32 && type != kNcclBfloat16)) return 4;
  return Queue(*comm, {from, to, count, type, true});
}

int ncclAllGather(const void* from, void* to, size_t count, int type, NcclHandle comm, void*) {
  if (type != kNcclUint8) return 4;
  return Queue(*comm, {from, to, count, type, false});
}

const char* ncclGetErrorString(int result) {
  return result == 5 ? "invalid usage: two ranks on one GPU" : "internal error";
}

const char* ncclGetLastError(NcclHandle) { return ""; }
}
