// SPDX-License-Identifier: Apache-2.0
// A libnccl whose ranks are threads of one process and whose device memory is the host's: it adds
// up for real. As a non-blocking NCCL it returns ncclInProgress and goes on by itself, here when
// the last rank has come. FAKE_NCCL_VERSION, FAKE_NCCL_WITHOUT_ABORT and FAKE_NCCL_WITHOUT_WINDOWS
// make it older or incomplete.
#include "tests/worker/comm/fake_nccl.h"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "worker/comm/nccl_abi.h"

#ifndef FAKE_NCCL_VERSION
#define FAKE_NCCL_VERSION 23007
#endif

namespace {

struct Part {
  const void* from;
  void* to;
  ptrdiff_t from_offset = -1;  // in the rank's window; -1: outside
  ptrdiff_t to_offset = -1;
};

struct Collective {
  std::vector<Part> parts;  // by rank
  int arrived = 0;
  size_t count = 0;
  int type = 0;
  bool is_sum = false;
};

struct Group {
  int size = 0;
  int joined = 0;
  int registering = 0;      // how often ranks have come to register
  size_t window_bytes = 0;  // the same on all
  std::map<int64_t, Collective> collectives;
  bool is_broken = false;  // a rank has left: nothing ends any more
  int64_t done = 0;        // collectives that have ended: all up to this one
};

std::mutex mu;
std::map<void*, size_t> allocations;  // of ncclMemAlloc
std::map<std::string, std::shared_ptr<Group>> groups;

float Get(const void* at, int type, size_t i) {
  if (type == kNcclFloat32) return static_cast<const float*>(at)[i];
  return std::bit_cast<float>(static_cast<uint32_t>(static_cast<const uint16_t*>(at)[i]) << 16);
}

void Put(void* at, int type, size_t i, float value) {
  if (type == kNcclFloat32) {
    static_cast<float*>(at)[i] = value;
    return;
  }
  const auto bits = std::bit_cast<uint32_t>(value);
  static_cast<uint16_t*>(at)[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

bool IsSymmetric(const Collective& work) {
  for (const Part& part : work.parts) {
    if (part.from_offset < 0 || part.to_offset < 0) return false;
    if (part.from_offset != work.parts[0].from_offset) return false;
    if (part.to_offset != work.parts[0].to_offset) return false;
  }
  return true;
}

void Finish(const Collective& work) {
  if (IsSymmetric(work)) ++FakeNccl()->symmetric;
  if (work.is_sum) {
    for (size_t i = 0; i < work.count; ++i) {
      float sum = 0;
      for (const Part& part : work.parts) sum += Get(part.from, work.type, i);
      for (const Part& part : work.parts) Put(part.to, work.type, i, sum);
    }
    return;
  }
  for (const Part& to : work.parts) {
    for (size_t rank = 0; rank < work.parts.size(); ++rank) {
      std::memcpy(static_cast<uint8_t*>(to.to) + rank * work.count, work.parts[rank].from,
                  work.count);
    }
  }
}

}  // namespace

struct NcclOpaque {
  std::shared_ptr<Group> group;
  int rank = 0;
  int64_t queued = 0;
  int registered = 0;  // windows, each of which waits for all ranks
  uint8_t* window = nullptr;
  size_t window_bytes = 0;

  ptrdiff_t OffsetOf(const void* at) const {
    const ptrdiff_t offset = static_cast<const uint8_t*>(at) - window;
    const bool is_in =
        window != nullptr && offset >= 0 && static_cast<size_t>(offset) < window_bytes;
    return is_in ? offset : -1;
  }
};

namespace {

int Take(NcclHandle comm, const Part& part, size_t count, int type, bool is_sum) {
  FakeNcclControls& controls = *FakeNccl();
  ++controls.collectives;
  if (controls.collective_result != 0) return controls.collective_result;
  const std::lock_guard<std::mutex> lock(mu);
  Group& group = *comm->group;
  if (group.is_broken) return ++comm->queued, kNcclInProgress;
  Collective& work = group.collectives[++comm->queued];
  work.parts.resize(static_cast<size_t>(group.size));
  work.parts[static_cast<size_t>(comm->rank)] = {part.from, part.to, comm->OffsetOf(part.from),
                                                 comm->OffsetOf(part.to)};
  if (work.arrived > 0 && (work.count != count || work.type != type || work.is_sum != is_sum)) {
    return kNcclInternalError;
  }
  work.count = count;
  work.type = type;
  work.is_sum = is_sum;
  if (++work.arrived < group.size || controls.stalls_collectives) return kNcclInProgress;
  Finish(work);
  group.collectives.erase(comm->queued);
  group.done = comm->queued;
  return kNcclInProgress;
}

}  // namespace

extern "C" {
FakeNcclControls* FakeNccl() {
  static FakeNcclControls controls;
  return &controls;
}

int ncclGetVersion(int* version) {
  *version = FAKE_NCCL_VERSION;
  return kNcclSuccess;
}

int ncclGetUniqueId(NcclUniqueId* id) {
  static int next = 0;
  const std::lock_guard<std::mutex> lock(mu);
  std::memset(id->bytes, 0, sizeof(id->bytes));
  std::memcpy(id->bytes, &++next, sizeof(next));
  return kNcclSuccess;
}

int ncclCommInitRankConfig(NcclHandle* comm, int ranks, NcclUniqueId id, int rank,
                           NcclConfig* config) {
  FakeNcclControls& controls = *FakeNccl();
  if (config->magic != kNcclConfigMagic || config->size != sizeof(NcclConfig)) return 4;
  ++controls.inits;
  if (config->blocking != 0) ++controls.blocking_inits;
  if (controls.init_result != 0) return controls.init_result;
  const std::lock_guard<std::mutex> lock(mu);
  std::shared_ptr<Group>& group = groups[std::string(id.bytes, sizeof(id.bytes))];
  if (group == nullptr) group = std::make_shared<Group>();
  group->size = ranks;
  ++group->joined;
  *comm = new NcclOpaque{group, rank};
  return kNcclInProgress;
}

int ncclCommGetAsyncError(NcclHandle comm, int* error) {
  FakeNcclControls& controls = *FakeNccl();
  if (controls.async_error != 0) {
    *error = controls.async_error;
    return kNcclSuccess;
  }
  const std::lock_guard<std::mutex> lock(mu);
  const Group& group = *comm->group;
  const bool together = group.joined == group.size &&
                        group.registering >= comm->registered * group.size && !controls.stalls_init;
  *error = together && group.done >= comm->queued ? kNcclSuccess : kNcclInProgress;
  return kNcclSuccess;
}

#ifndef FAKE_NCCL_WITHOUT_ABORT
int ncclCommAbort(NcclHandle comm) {
  ++FakeNccl()->aborts;
  const std::lock_guard<std::mutex> lock(mu);
  comm->group->is_broken = true;
  delete comm;
  return kNcclSuccess;
}
#endif

int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, NcclHandle comm,
                  void*) {
  if (op != kNcclSum || (type != kNcclFloat32 && type != kNcclBfloat16)) return 4;
  return Take(comm, {from, to}, count, type, true);
}

int ncclAllGather(const void* from, void* to, size_t count, int type, NcclHandle comm, void*) {
  if (type != kNcclUint8) return 4;
  ++FakeNccl()->gathers;
  return Take(comm, {from, to}, count, type, false);
}

#ifndef FAKE_NCCL_WITHOUT_WINDOWS
int ncclMemAlloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  // As a GPU's memory: of an earlier owner.
  std::memset(*memory, 0xff, bytes);
  ++FakeNccl()->allocations;
  const std::lock_guard<std::mutex> lock(mu);
  allocations[*memory] = bytes;
  return kNcclSuccess;
}

int ncclMemFree(void* memory) {
  const std::lock_guard<std::mutex> lock(mu);
  if (allocations.erase(memory) == 0) return kNcclInvalidArgument;
  --FakeNccl()->allocations;
  std::free(memory);
  return kNcclSuccess;
}

int ncclCommWindowRegister(NcclHandle comm, void* memory, size_t bytes, NcclWindow* window,
                           int flags) {
  FakeNcclControls& controls = *FakeNccl();
  if (controls.register_result != 0) return controls.register_result;
  const std::lock_guard<std::mutex> lock(mu);
  const auto found = allocations.find(memory);
  if (flags != kNcclSymmetricWindow || found == allocations.end() || bytes > found->second) {
    return kNcclInvalidUsage;
  }
  Group& group = *comm->group;
  if (group.registering % group.size == 0) group.window_bytes = bytes;
  if (group.window_bytes != bytes) return kNcclInternalError;
  ++group.registering;
  ++comm->registered;
  if (controls.has_no_use_for_windows) return kNcclInProgress;
  ++controls.windows;
  comm->window = static_cast<uint8_t*>(memory);
  comm->window_bytes = bytes;
  *window = reinterpret_cast<NcclWindow>(memory);
  return kNcclInProgress;
}
#endif

const char* ncclGetErrorString(int result) {
  return result == kNcclRemoteError ? "remote process exited or there was a network error"
                                    : "internal error";
}

const char* ncclGetLastError(NcclHandle) { return "as the test wished"; }
}
