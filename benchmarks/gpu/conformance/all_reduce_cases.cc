// SPDX-License-Identifier: Apache-2.0
// The one-shot all-reduce as one rank of several sees it, on one stream: what the peers show and
// their flags are there beforehand, as if they had arrived. Ranks that really meet:
// tests/kernels/cuda/all_reduce_test.cc.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/conformance/harness.h"
#include "kernels/cuda/layout.h"
#include "kernels/ops.h"

namespace rempart::benchmarks {
namespace {

using kernels::DType;
using worker::PinnedBuffer;

constexpr uint32_t kEpoch = 77;
constexpr uint32_t kRound = 1;  // the first

struct Peers {
  std::vector<DeviceArray<uint8_t>> slabs;
  PinnedBuffer stop;
  kernels::PeerGroup group;
};

int64_t BytesOf(DType type) { return type == DType::kF32 ? 4 : 2; }

// Rounded to the type.
std::vector<uint8_t> ToBytes(absl::Span<const float> values, DType type) {
  std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(BytesOf(type)));
  for (size_t i = 0; i < values.size(); ++i) {
    const kernels::cuda::Bf16 bf16 = kernels::cuda::ToBf16(values[i]);
    const kernels::cuda::Half half = kernels::cuda::ToHalf(values[i]);
    if (type == DType::kF32) std::memcpy(&bytes[4 * i], &values[i], 4);
    if (type == DType::kBF16) std::memcpy(&bytes[2 * i], &bf16, 2);
    if (type == DType::kF16) std::memcpy(&bytes[2 * i], &half, 2);
  }
  return bytes;
}

std::vector<float> FromBytes(absl::Span<const uint8_t> bytes, DType type) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(BytesOf(type)));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits = 0;
    if (type == DType::kF32) {
      std::memcpy(&values[i], &bytes[4 * i], 4);
      continue;
    }
    std::memcpy(&bits, &bytes[2 * i], 2);
    values[i] = type == DType::kBF16 ? ToFloat(kernels::cuda::Bf16{bits})
                                     : ToFloat(kernels::cuda::Half{bits});
  }
  return values;
}

// inputs[i]: what rank i adds, as bytes. That of `rank` itself is not shown: its kernel does that.
absl::StatusOr<Peers> MakePeers(worker::Device& device, int32_t rank,
                                const std::vector<std::vector<uint8_t>>& inputs,
                                bool peers_arrive) {
  Peers peers;
  ASSIGN_OR_RETURN(peers.stop, PinnedBuffer::Make(device, 4));
  kernels::PeerGroup& group = peers.group;
  group.rank = rank;
  group.ranks = static_cast<int32_t>(inputs.size());
  group.buffer_bytes = (static_cast<int64_t>(inputs[0].size()) + 15) / 16 * 16;
  group.epoch = kEpoch;
  group.timeout_ns = 20'000'000;
  group.stop = peers.stop.as<uint32_t>();
  for (int32_t i = 0; i < group.ranks; ++i) {
    std::vector<uint8_t> slab(kernels::PeerSlabBytes(group.buffer_bytes), 0);
    if (i == rank && peers_arrive) {
      std::fill_n(reinterpret_cast<uint64_t*>(slab.data()),
                  kernels::kAllReduceBlocks * kernels::kMaxPeers,
                  kernels::cuda::RoundFlag(kEpoch, kRound));
    }
    if (i != rank) {
      std::copy(inputs[i].begin(), inputs[i].end(),
                kernels::cuda::PeerBuffer(slab.data(), kRound, group.buffer_bytes));
    }
    ASSIGN_OR_RETURN(auto on_device, DeviceArray<uint8_t>::From(device, slab));
    group.slabs[i] = on_device.data();
    peers.slabs.push_back(std::move(on_device));
  }
  return peers;
}

struct Inputs {
  std::vector<std::vector<uint8_t>> bytes;  // by rank
  std::vector<float> sum;
};
Inputs MakeInputs(Trial& trial, int32_t ranks, DType type, int64_t count) {
  Inputs inputs;
  inputs.sum.resize(count);
  for (int32_t i = 0; i < ranks; ++i) {
    inputs.bytes.push_back(ToBytes(RandomFloats(trial.random, count, 0.5f), type));
    const std::vector<float> rounded = FromBytes(inputs.bytes.back(), type);
    for (int64_t j = 0; j < count; ++j) inputs.sum[j] += rounded[j];
  }
  return inputs;
}

// That the rank has told each peer of its round, for as many blocks as it ran, and counted it.
absl::Status CheckFlags(Trial& trial, const Peers& peers, int64_t blocks, const std::string& what) {
  const kernels::PeerGroup& group = peers.group;
  bool told = true, counted = true;
  for (int32_t i = 0; i < group.ranks; ++i) {
    ASSIGN_OR_RETURN(std::vector<uint8_t> slab, peers.slabs[i].Read(trial.device));
    for (int64_t block = 0; block < blocks; ++block) {
      told &= *kernels::cuda::PeerFlag(slab.data(), block, group.rank) ==
              kernels::cuda::RoundFlag(kEpoch, kRound);
    }
    const uint32_t* const rounds = kernels::cuda::PeerRounds(slab.data());
    counted &= std::all_of(rounds, rounds + kernels::kAllReduceBlocks,
                           [&](uint32_t round) { return round == (i == group.rank ? kRound : 0); });
  }
  trial.Require(what + " told its peers", told);
  trial.Require(what + " counted the round for every block", counted);
  return absl::OkStatus();
}

absl::Status RunSum(Trial& trial, int32_t rank, int32_t ranks, DType type, int64_t count) {
  const Inputs inputs = MakeInputs(trial, ranks, type, count);
  ASSIGN_OR_RETURN(const Peers peers, MakePeers(trial.device, rank, inputs.bytes, true));
  ASSIGN_OR_RETURN(auto values, DeviceArray<uint8_t>::From(trial.device, inputs.bytes[rank]));
  trial.device.ops().all_reduce({peers.group, values.data(), type, count}, trial.device.stream());
  ASSIGN_OR_RETURN(const auto result, values.Read(trial.device));
  const std::string what =
      absl::StrCat("rank ", rank, " of ", ranks, ", ", kernels::DTypeName(type), " [", count, "]");
  // The same additions in the same order: but for rounding to the type nothing may differ.
  trial.Compare(what, FromBytes(result, type), FromBytes(ToBytes(inputs.sum, type), type), 1e-30,
                0.0);
  const int64_t blocks = (count * BytesOf(type) + 8191) / 8192;
  return CheckFlags(trial, peers, std::min(blocks, kernels::kAllReduceBlocks), what);
}

absl::Status RunNorm(Trial& trial, int32_t rank, int32_t ranks, int64_t rows, int64_t cols,
                     bool peers_arrive) {
  Inputs inputs = MakeInputs(trial, ranks, DType::kBF16, rows * cols);
  RoundToBf16(inputs.sum);
  ASSIGN_OR_RETURN(const Peers peers, MakePeers(trial.device, rank, inputs.bytes, peers_arrive));
  std::vector<float> residual = RandomFloats(trial.random, rows * cols);
  const std::vector<float> weight = RandomFloats(trial.random, cols);
  ASSIGN_OR_RETURN(auto branch, DeviceArray<uint8_t>::From(trial.device, inputs.bytes[rank]));
  ASSIGN_OR_RETURN(auto residual_device, DeviceArray<float>::From(trial.device, residual));
  ASSIGN_OR_RETURN(auto weight_device, DeviceArray<float>::From(trial.device, weight));
  ASSIGN_OR_RETURN(auto out, DeviceArray<uint16_t>::Make(trial.device, rows * cols));
  kernels::AllReduceNormArgs args;
  args.peers = peers.group;
  args.norm.residual = residual_device.data();
  args.norm.branch = reinterpret_cast<const uint16_t*>(branch.data());
  args.norm.weight = weight_device.data();
  args.norm.out = out.data();
  args.norm.num_rows = rows;
  args.norm.cols = cols;
  trial.device.ops().all_reduce_norm(args, trial.device.stream());
  ASSIGN_OR_RETURN(const auto bits, out.Read(trial.device));
  const std::string what = absl::StrCat("rank ", rank, " of ", ranks, " [", rows, ", ", cols, "]");
  const uint32_t stop = *peers.stop.as<uint32_t>();
  if (!peers_arrive) {
    trial.Require(what + " alone: names who is late", stop == kernels::kPeerIsLate + 1 - rank);
    return absl::OkStatus();
  }
  trial.Require(what + " in time", stop == 0);
  const kernels::Ops& reference = kernels::ReferenceOps();
  std::vector<float> expected(rows * cols);
  reference.add(residual.data(), inputs.sum.data(), residual.data(), 0, rows * cols);
  reference.rms_norm(residual.data(), cols, weight.data(), 1e-5f, cols, expected.data(), cols, 0,
                     rows);
  trial.Compare(what, ToFloats(bits), expected, 1e-5, 0.004);
  return CheckFlags(trial, peers, std::min(rows, kernels::kAllReduceBlocks), what);
}

}  // namespace

absl::Status AllReduceCase(Trial& trial) {
  RETURN_IF_ERROR(RunSum(trial, 0, 1, DType::kF32, 17));
  RETURN_IF_ERROR(RunSum(trial, 1, 2, DType::kF32, 5001));
  RETURN_IF_ERROR(RunSum(trial, 2, 3, DType::kBF16, 1));
  RETURN_IF_ERROR(RunSum(trial, 7, 8, DType::kBF16, 4099));
  RETURN_IF_ERROR(RunSum(trial, 0, 2, DType::kBF16, 64 * 4096 + 3));
  return RunSum(trial, 3, 4, DType::kF16, 1023);
}

absl::Status AllReduceNormCase(Trial& trial) {
  RETURN_IF_ERROR(RunNorm(trial, 0, 1, 3, 256, true));
  RETURN_IF_ERROR(RunNorm(trial, 1, 2, 70, 576, true));
  RETURN_IF_ERROR(RunNorm(trial, 3, 8, 2, 5120, true));
  RETURN_IF_ERROR(RunNorm(trial, 1, 4, 1, 16384, true));
  return RunNorm(trial, 0, 2, 1, 64, false);
}

}  // namespace rempart::benchmarks
