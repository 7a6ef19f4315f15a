// SPDX-License-Identifier: Apache-2.0
// The one-shot all-reduce as one rank of several sees it, on one stream: the peers' flags are set
// beforehand, as if they had arrived. Ranks that really meet:
// tests/kernels/cuda/all_reduce_test.cc.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/conformance/harness.h"
#include "kernels/ops.h"

namespace rempart::benchmarks {
namespace {

absl::Status RunRank(Trial& trial, int32_t rank, int32_t ranks, int64_t rows, int64_t cols,
                     bool peers_arrive) {
  std::vector<DeviceArray<uint16_t>> inputs;
  std::vector<DeviceArray<uint32_t>> flags;
  std::vector<float> sum(rows * cols, 0.0f);
  kernels::AllReduceNormArgs args;
  args.rank = rank;
  args.ranks = ranks;
  for (int32_t i = 0; i < ranks; ++i) {
    std::vector<float> input = RandomFloats(trial.random, rows * cols, 0.5f);
    RoundToBf16(input);
    for (int64_t j = 0; j < rows * cols; ++j) sum[j] += input[j];
    ASSIGN_OR_RETURN(auto input_device, DeviceArray<uint16_t>::From(trial.device, ToBits(input)));
    inputs.push_back(std::move(input_device));
    std::vector<uint32_t> own(kernels::kAllReduceFlags, 0);
    if (i == rank && peers_arrive)
      std::fill_n(own.begin(), kernels::kAllReduceBlocks * kernels::kMaxPeers, 1u);
    ASSIGN_OR_RETURN(auto flags_device, DeviceArray<uint32_t>::From(trial.device, own));
    flags.push_back(std::move(flags_device));
    args.inputs[i] = inputs.back().data();
    args.flags[i] = flags.back().data();
  }
  std::vector<float> residual = RandomFloats(trial.random, rows * cols);
  const std::vector<float> weight = RandomFloats(trial.random, cols);
  ASSIGN_OR_RETURN(auto residual_device, DeviceArray<float>::From(trial.device, residual));
  ASSIGN_OR_RETURN(auto weight_device, DeviceArray<float>::From(trial.device, weight));
  ASSIGN_OR_RETURN(auto out, DeviceArray<uint16_t>::Make(trial.device, rows * cols));
  ASSIGN_OR_RETURN(auto error, DeviceArray<uint32_t>::Make(trial.device, 1));
  args.timeout_ns = 20'000'000;
  args.error = error.data();
  args.norm.residual = residual_device.data();
  args.norm.weight = weight_device.data();
  args.norm.out = out.data();
  args.norm.num_rows = rows;
  args.norm.cols = cols;
  trial.device.ops().all_reduce_norm(args, trial.device.stream());
  const std::string what = absl::StrCat("rank ", rank, " of ", ranks, " [", rows, ", ", cols, "]");
  ASSIGN_OR_RETURN(const auto failed, error.Read(trial.device));
  trial.Require(what + (peers_arrive ? " in time" : " alone: error after the deadline"),
                failed[0] == (peers_arrive ? 0u : 1u));
  if (!peers_arrive) return absl::OkStatus();
  const kernels::Ops& reference = kernels::ReferenceOps();
  std::vector<float> expected(rows * cols);
  reference.add(residual.data(), sum.data(), residual.data(), 0, rows * cols);
  reference.rms_norm(residual.data(), cols, weight.data(), 1e-5f, cols, expected.data(), cols, 0,
                     rows);
  ASSIGN_OR_RETURN(const auto bits, out.Read(trial.device));
  trial.Compare(what, ToFloats(bits), expected, 1e-5, 0.004);
  bool told = true;
  for (int32_t i = 0; i < ranks; ++i) {
    if (i == rank) continue;
    ASSIGN_OR_RETURN(const auto peer, flags[i].Read(trial.device));
    for (int64_t b = 0; b < std::min(rows, kernels::kAllReduceBlocks); ++b) {
      told &= peer[b * kernels::kMaxPeers + rank] == 1;
    }
  }
  trial.Require(what + " told its peers", told);
  return absl::OkStatus();
}

}  // namespace

absl::Status AllReduceNormCase(Trial& trial) {
  RETURN_IF_ERROR(RunRank(trial, 0, 1, 3, 256, true));
  RETURN_IF_ERROR(RunRank(trial, 1, 2, 70, 576, true));
  RETURN_IF_ERROR(RunRank(trial, 3, 8, 2, 5120, true));
  return RunRank(trial, 0, 2, 1, 64, false);
}

}  // namespace rempart::benchmarks
