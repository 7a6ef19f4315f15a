// SPDX-License-Identifier: Apache-2.0
// The part of NCCL's ABI that is used (NCCL user guide, "API"). Its header comes with the library,
// which a build does not need.
#pragma once

#include <cstddef>

extern "C" {
using NcclHandle = struct NcclOpaque*;
using NcclWindow = struct NcclOpaqueWindow*;
struct NcclUniqueId {
  char bytes[128];
};
// ncclConfig_t as of 2.14, its first version. The library reads as much as `size` says, and takes
// its own defaults for all that came later than `version`.
struct NcclConfig {
  size_t size;
  unsigned magic;
  unsigned version;
  int blocking;
};
}

inline constexpr unsigned kNcclConfigMagic = 0xcafebeef;
inline constexpr unsigned kNcclConfigVersion = 21400;
// Of ncclResult_t.
inline constexpr int kNcclSuccess = 0;
inline constexpr int kNcclInternalError = 3;
inline constexpr int kNcclInvalidArgument = 4;
inline constexpr int kNcclInvalidUsage = 5;
inline constexpr int kNcclRemoteError = 6;
inline constexpr int kNcclInProgress = 7;
// Of ncclRedOp_t and ncclDataType_t.
inline constexpr int kNcclSum = 0;
inline constexpr int kNcclUint8 = 1;
inline constexpr int kNcclFloat32 = 7;
inline constexpr int kNcclBfloat16 = 9;
// NCCL_WIN_COLL_SYMMETRIC.
inline constexpr int kNcclSymmetricWindow = 1;

// X(member, symbol, result, parameters)
#define REMPART_NCCL(X)                                                             \
  X(get_version, "ncclGetVersion", int, (int*))                                     \
  X(get_unique_id, "ncclGetUniqueId", int, (NcclUniqueId*))                         \
  X(init_rank, "ncclCommInitRankConfig", int,                                       \
    (NcclHandle*, int ranks, NcclUniqueId, int rank, NcclConfig*))                  \
  X(async_error, "ncclCommGetAsyncError", int, (NcclHandle, int*))                  \
  X(abort, "ncclCommAbort", int, (NcclHandle))                                      \
  X(all_reduce, "ncclAllReduce", int,                                               \
    (const void*, void*, size_t count, int type, int op, NcclHandle, void* stream)) \
  X(all_gather, "ncclAllGather", int,                                               \
    (const void*, void*, size_t count, int type, NcclHandle, void* stream))         \
  X(error_text, "ncclGetErrorString", const char*, (int))                           \
  X(last_error, "ncclGetLastError", const char*, (NcclHandle))

// Symmetric memory, since 2.27: all of these, or none.
#define REMPART_NCCL_WINDOWS(X)                             \
  X(memory_allocate, "ncclMemAlloc", int, (void**, size_t)) \
  X(memory_free, "ncclMemFree", int, (void*))               \
  X(window_register, "ncclCommWindowRegister", int,         \
    (NcclHandle, void*, size_t, NcclWindow*, int flags))

struct NcclFunctions {
#define REMPART_DECLARE(member, symbol, result, parameters) result(*member) parameters = nullptr;
  REMPART_NCCL(REMPART_DECLARE)
  REMPART_NCCL_WINDOWS(REMPART_DECLARE)
#undef REMPART_DECLARE
  bool has_windows = false;
};
