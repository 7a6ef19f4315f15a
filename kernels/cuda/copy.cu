// SPDX-License-Identifier: Apache-2.0
// Kernels that move data and compute little: embedding, KV block copies, step advance, checksum.
// Each is bound by memory and reads its input once.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/hash.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/primitives.h"
#include "kernels/cuda/quant_blocks.h"

namespace rempart::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <class WeightDecoder>
REMPART_KERNEL(kThreads)
EmbedKernel(DeviceEmbedArgs args) {
  WaitForPrevious();
  LetNextStart();
  const int64_t token = blockIdx.x;
  const int64_t id = args.ids[token] - args.first_id;
  const bool is_inside = id >= 0 && id < args.table.rows;
  for (int64_t at = static_cast<int64_t>(threadIdx.x) * 8; at < args.table.cols;
       at += static_cast<int64_t>(blockDim.x) * 8) {
    float values[8] = {};
    if (is_inside) WeightDecoder::Decode(args.table, id, at, values);
    for (int i = 0; i < 8; ++i) values[i] *= args.scale;
    StoreF32x8(args.out + token * args.table.cols + at, values);
  }
}

REMPART_KERNEL(kThreads) AdvanceKernel(AdvanceArgs args) {
  WaitForPrevious();
  LetNextStart();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= args.num_rows) return;
  if (args.sources != nullptr) {
    if (args.sources[row] >= 0) args.ids[row] = args.tokens[args.sources[row]];
    return;
  }
  if (args.positions[row] < 0) return;
  args.ids[row] = args.tokens[row];
  args.positions[row] += 1;
  args.contexts[row] += 1;
  args.samplings[row].position += 1;
}

REMPART_KERNEL(kThreads) CopyBlocksKernel(CopyBlocksArgs args) {
  WaitForPrevious();
  LetNextStart();
  const int64_t pair = blockIdx.y;
  const uint8_t* from = args.from + args.pairs[2 * pair] * args.block_bytes;
  uint8_t* to = args.to + args.pairs[2 * pair + 1] * args.block_bytes;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * 16;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 16;
       at < args.block_bytes; at += step) {
    *Wide<uint4>(to + at) = *Wide<uint4>(from + at);
  }
}

REMPART_KERNEL(kWarp) ClearKernel(uint64_t* out) {
  WaitForPrevious();
  LetNextStart();
  if (threadIdx.x == 0) *out = 0;
}

REMPART_KERNEL(kThreads) HashKernel(HashArgs args) {
  WaitForPrevious();
  LetNextStart();
  const auto* words = static_cast<const uint64_t*>(args.data);
  const int64_t count = CeilDivide(args.bytes, 8);
  uint64_t sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint64_t word = 0;
    if (i * 8 + 8 <= args.bytes) {
      word = words[i];
    } else {
      const auto* bytes = static_cast<const uint8_t*>(args.data);
      for (int64_t at = args.bytes - 1; at >= i * 8; --at) word = word << 8 | bytes[at];
    }
    sum += HashWord(word, static_cast<uint64_t>(i));
  }
  AtomicAdd(args.out, sum);
}

}  // namespace

void Embed(const DeviceEmbedArgs& args, DeviceStream stream) {
  if (args.num_tokens == 0) return;
  WithDecoder(args.table, [&](auto decoder) {
    Launch(EmbedKernel<decltype(decoder)>, {static_cast<uint32_t>(args.num_tokens)}, kThreads, 0,
           stream, args);
  });
}

void Advance(const AdvanceArgs& args, DeviceStream stream) {
  if (args.num_rows == 0) return;
  Launch(AdvanceKernel, {static_cast<uint32_t>(CeilDivide(args.num_rows, kThreads))}, kThreads, 0,
         stream, args);
}

void CopyBlocks(const CopyBlocksArgs& args, DeviceStream stream) {
  // A grid has at most 65535 rows.
  for (int64_t done = 0; done < args.num_pairs; done += 65535) {
    CopyBlocksArgs part = args;
    part.pairs = args.pairs + 2 * done;
    part.num_pairs = Min<int64_t>(args.num_pairs - done, 65535);
    const int64_t columns = Min<int64_t>(CeilDivide(args.block_bytes, kThreads * 16), 8);
    Launch(CopyBlocksKernel,
           {static_cast<uint32_t>(columns), static_cast<uint32_t>(part.num_pairs)}, kThreads, 0,
           stream, part);
  }
}

void Hash(const HashArgs& args, DeviceStream stream) {
  Launch(ClearKernel, {1}, kWarp, 0, stream, args.out);
  const int64_t blocks = Min<int64_t>(CeilDivide(args.bytes, kThreads * 8), 1024);
  if (blocks == 0) return;
  Launch(HashKernel, {static_cast<uint32_t>(blocks)}, kThreads, 0, stream, args);
}

}  // namespace rempart::kernels::cuda
