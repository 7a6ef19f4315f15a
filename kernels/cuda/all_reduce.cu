// SPDX-License-Identifier: Apache-2.0
// AllReduce and AllReduceNorm: every rank copies what it adds into its slab, tells its peers, waits
// for them, and reads the slabs of all ranks over NVLink, summing in rank order, so that all ranks
// hold the same bits; AllReduceNorm does norm and residual in the same registers. One latency
// instead of NCCL's several, for messages of up to a few hundred KB. Bytes moved by a rank: the
// message twice on its own device, and once from each peer.
//
// Block b of each rank tells block b of every peer that its part of the round lies in the slab, and
// waits for the same from them: they read and write the same part. One such meeting a round
// suffices, because rounds use two buffers in turn: a rank writes a buffer again in round n + 2,
// after its kernel of round n + 1 has ended; in that round its peers had told it of their entry,
// which they do only after their kernels of round n, with all their reads, have ended.
//
// The number of the round lies in the slab and not in the arguments, so that a recorded graph may
// be started many times. Block b reads the b-th copy of it, and the blocks of a grid together add 1
// to all copies, whatever the size of the grid.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/ops.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kMaxRounds = 8;  // of 4096 columns
// A flag is looked at so often, some tens of microseconds, before the host's word is: that read
// crosses the PCI bus.
constexpr uint32_t kLooksPerStop = 64;

struct Shared {
  float scratch[32];
  uint32_t is_stopped;
};

REMPART_DEVICE uint32_t BeginRound(const PeerGroup& peers) {
  uint32_t* rounds = PeerRounds(peers.slabs[peers.rank]);
  const uint32_t round = rounds[blockIdx.x] + 1;
  __syncthreads();
  const uint32_t copy = threadIdx.x;
  if (copy < kAllReduceBlocks && copy % gridDim.x == blockIdx.x) rounds[copy] = round;
  return round;
}

// After the block has filled its part of its buffer. False: no result. The next kernel may start
// only afterwards: its blocks could take the room of what the other rank of a shared GPU must run
// before it comes.
REMPART_DEVICE bool MeetPeers(const PeerGroup& peers, uint32_t round, uint32_t* is_stopped) {
  if (threadIdx.x == 0) *is_stopped = 0;
  __syncthreads();
  const int peer = static_cast<int>(threadIdx.x);
  if (peer < peers.ranks) {
    StoreRelease(PeerFlag(peers.slabs[peer], blockIdx.x, peers.rank),
                 RoundFlag(peers.epoch, round));
  }
  // All peers are told before any is waited for.
  WarpBarrier();
  if (peer < peers.ranks) {
    const uint64_t* flag = PeerFlag(peers.slabs[peers.rank], blockIdx.x, peer);
    const uint64_t begin = NowNs();
    for (uint32_t look = 1; !HasEntered(LoadAcquire(flag), peers.epoch, round); ++look) {
      SpinPause();
      if (look % kLooksPerStop != 0) continue;
      uint32_t stop = LoadAcquire(peers.stop);
      if (stop == 0 && NowNs() - begin > peers.timeout_ns) {
        // Kernels that come after this one wait no more, either.
        stop = kPeerIsLate + static_cast<uint32_t>(peer);
        StoreRelease(peers.stop, stop);
      }
      if (stop == 0) continue;
      AtomicAdd(is_stopped, 1u);  // several may be late
      break;
    }
  }
  __syncthreads();
  return *is_stopped == 0;
}

// The 16 bytes at `offset` of every rank's buffer, all on their way at once.
REMPART_DEVICE void LoadPeers(const PeerGroup& peers, uint32_t round, int64_t offset,
                              uint4 (&parts)[kMaxPeers]) {
  REMPART_UNROLL
  for (int rank = 0; rank < kMaxPeers; ++rank) {
    if (rank < peers.ranks) {
      parts[rank] = LoadPeer(PeerBuffer(peers.slabs[rank], round, peers.buffer_bytes) + offset);
    }
  }
}

// 16 bytes of numbers, of which only the first `count` may be there.
template <class T>
inline constexpr int kUnit = 16 / static_cast<int>(sizeof(T));

template <class T>
REMPART_DEVICE bool IsWhole(const T* at, int64_t count) {
  return count >= kUnit<T> && reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

template <class T>
REMPART_DEVICE uint4 LoadUnit(const T* from, int64_t count) {
  if (IsWhole(from, count)) return *Wide<uint4>(from);
  T numbers[kUnit<T>] = {};
  REMPART_UNROLL
  for (int i = 0; i < kUnit<T>; ++i) {
    if (i < count) numbers[i] = from[i];
  }
  uint4 unit;
  memcpy(&unit, numbers, 16);
  return unit;
}

template <class T>
REMPART_DEVICE void StoreUnit(T* to, int64_t count, const float (&values)[kUnit<T>]) {
  T numbers[kUnit<T>];
  REMPART_UNROLL
  for (int i = 0; i < kUnit<T>; ++i) Store(&numbers[i], values[i]);
  if (IsWhole(to, count)) {
    uint4 unit;
    memcpy(&unit, numbers, 16);
    *Wide<uint4>(to) = unit;
    return;
  }
  REMPART_UNROLL
  for (int i = 0; i < kUnit<T>; ++i) {
    if (i < count) to[i] = numbers[i];
  }
}

template <class T>
REMPART_DEVICE void AddUnits(const PeerGroup& peers, const uint4 (&parts)[kMaxPeers],
                             float (&sum)[kUnit<T>]) {
  REMPART_UNROLL
  for (int i = 0; i < kUnit<T>; ++i) sum[i] = 0.0f;
  REMPART_UNROLL
  for (int rank = 0; rank < kMaxPeers; ++rank) {
    if (rank < peers.ranks) {
      T numbers[kUnit<T>];
      memcpy(numbers, &parts[rank], 16);
      REMPART_UNROLL
      for (int i = 0; i < kUnit<T>; ++i) sum[i] += ToFloat(numbers[i]);
    }
  }
}

template <class T>
REMPART_KERNEL(kThreads)
AllReduceKernel(const REMPART_IN_PLACE AllReduceArgs args) {
  WaitForPrevious();
  Shared& shared = *DynamicShared<Shared>();
  const PeerGroup& peers = args.peers;
  T* values = static_cast<T*>(args.values);
  const uint32_t round = BeginRound(peers);
  uint8_t* own = PeerBuffer(peers.slabs[peers.rank], round, peers.buffer_bytes);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t unit = first; unit * kUnit<T> < args.count; unit += step) {
    const int64_t at = unit * kUnit<T>;
    *Wide<uint4>(own + unit * 16) = LoadUnit(values + at, args.count - at);
  }
  if (!MeetPeers(peers, round, &shared.is_stopped)) return;
  LetNextStart();
  for (int64_t unit = first; unit * kUnit<T> < args.count; unit += step) {
    const int64_t at = unit * kUnit<T>;
    uint4 parts[kMaxPeers] = {};
    LoadPeers(peers, round, unit * 16, parts);
    float sum[kUnit<T>];
    AddUnits<T>(peers, parts, sum);
    StoreUnit(values + at, args.count - at, sum);
  }
}

template <int kRounds>
REMPART_KERNEL(kThreads)
AllReduceNormKernel(const REMPART_IN_PLACE AllReduceNormArgs args) {
  WaitForPrevious();
  Shared& shared = *DynamicShared<Shared>();
  const PeerGroup& peers = args.peers;
  const AddNormArgs& norm = args.norm;
  const uint32_t round = BeginRound(peers);
  uint8_t* own = PeerBuffer(peers.slabs[peers.rank], round, peers.buffer_bytes);
  const int64_t first = static_cast<int64_t>(threadIdx.x) * 8;
  const int64_t step = static_cast<int64_t>(blockDim.x) * 8;
  for (int64_t i = blockIdx.x; i < norm.num_rows; i += gridDim.x) {
    const int64_t row = norm.rows != nullptr ? norm.rows[i] : i;
    for (int64_t at = first; at < norm.cols; at += step) {
      *Wide<uint4>(own + (i * norm.cols + at) * 2) =
          *Wide<uint4>(norm.branch + row * norm.cols + at);
    }
  }
  if (!MeetPeers(peers, round, &shared.is_stopped)) return;
  LetNextStart();
  for (int64_t i = blockIdx.x; i < norm.num_rows; i += gridDim.x) {
    const int64_t row = norm.rows != nullptr ? norm.rows[i] : i;
    float values[kRounds][8];
    AddNormRow<kRounds>(norm, row, i, values, shared.scratch, [&](int64_t at, float(&branch)[8]) {
      uint4 parts[kMaxPeers] = {};
      LoadPeers(peers, round, (i * norm.cols + at) * 2, parts);
      AddUnits<Bf16>(peers, parts, branch);
      for (float& sum : branch) sum = ToFloat(ToBf16(sum));
    });
  }
}

Grid GridOf(int64_t parts) {
  return {static_cast<uint32_t>(Min<int64_t>(parts, kAllReduceBlocks))};
}

template <class T>
void LaunchAllReduce(const AllReduceArgs& args, DeviceStream stream) {
  const Grid grid = GridOf(CeilDivide(args.count, kThreads * kUnit<T>));
  Launch(AllReduceKernel<T>, grid, kThreads, sizeof(Shared), stream, args);
}

}  // namespace

void AllReduce(const AllReduceArgs& args, DeviceStream stream) {
  if (args.count == 0) return;
  if (args.type == DType::kF32) {
    LaunchAllReduce<float>(args, stream);
  } else if (args.type == DType::kF16) {
    LaunchAllReduce<Half>(args, stream);
  } else {
    LaunchAllReduce<Bf16>(args, stream);
  }
}

void AllReduceNorm(const AllReduceNormArgs& args, DeviceStream stream) {
  if (args.norm.num_rows == 0) return;
  const Grid grid = GridOf(args.norm.num_rows);
  const int64_t rounds = CeilDivide(args.norm.cols, kThreads * 8);
  if (rounds <= 1) {
    Launch(AllReduceNormKernel<1>, grid, kThreads, sizeof(Shared), stream, args);
  } else if (rounds <= 2) {
    Launch(AllReduceNormKernel<2>, grid, kThreads, sizeof(Shared), stream, args);
  } else {
    Launch(AllReduceNormKernel<kMaxRounds>, grid, kThreads, sizeof(Shared), stream, args);
  }
}

}  // namespace rempart::kernels::cuda
