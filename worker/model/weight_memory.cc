// SPDX-License-Identifier: Apache-2.0
#include "worker/model/weight_memory.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "worker/model/copy_weights.h"

namespace rempart::worker {
namespace {

// Addresses of mapped files.
using Bytes = std::pair<uintptr_t, uintptr_t>;

Bytes BytesOf(const Matrix& matrix) {
  const kernels::WeightView& view = matrix.view;
  const int64_t row = kernels::RowBytes(view.type, view.cols);
  const int64_t stride = matrix.stride_bytes > 0 ? matrix.stride_bytes : row;
  const auto begin = reinterpret_cast<uintptr_t>(view.data);
  return {begin, begin + static_cast<uintptr_t>((view.rows - 1) * stride + row)};
}

// The embedding may be the head as well, and all ranks look up the same one.
int64_t UnionBytes(std::vector<Bytes> ranges) {
  std::sort(ranges.begin(), ranges.end());
  uintptr_t end = 0;
  int64_t bytes = 0;
  for (const auto& [first, last] : ranges) {
    const uintptr_t begin = std::max(first, end);
    if (last <= begin) continue;
    bytes += static_cast<int64_t>(last - begin);
    end = last;
  }
  return bytes;
}

int64_t VectorBytes(const Weights& weights) {
  size_t floats = weights.output_norm.size() + weights.head.bias.size();
  for (const LayerWeights& layer : weights.layers) {
    for (const auto* vector : {&layer.attention_norm, &layer.ffn_norm, &layer.query_norm,
                               &layer.key_norm, &layer.post_attention_norm, &layer.post_ffn_norm}) {
      floats += vector->size();
    }
    for (const Matrix* matrix : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate,
                                 &layer.up, &layer.down}) {
      floats += matrix->bias.size();
    }
  }
  return static_cast<int64_t>(floats * sizeof(float));
}

}  // namespace

WeightMemory MemoryOf(const kernels::Ops& ops, const PackOptions& options,
                      absl::Span<Weights* const> ranks) {
  WeightMemory memory;
  memory.repacked_is_kept = !ranks.empty();
  std::vector<Bytes> in_file;
  for (Weights* const weights : ranks) {
    memory.in_file += VectorBytes(*weights);
    if (weights->embedding.view.data != nullptr) in_file.push_back(BytesOf(weights->embedding));
    for (const Matrix* matrix : ProductMatrices(*weights)) {
      if (IsExpanded(ops, options, *matrix)) {
        memory.expanded += ExpandedBytes(*matrix);
      } else if (!options.pack || ops.packed_bytes(matrix->view) == 0) {
        in_file.push_back(BytesOf(*matrix));
      }
    }
    memory.repacked_is_kept &= weights->from_cache.has_value();
    if (!options.pack) continue;
    const PackPlan plan = PlanPack(ops, *weights);
    memory.repacked += plan.bytes;
    if (!weights->from_cache) memory.scratch = std::max(memory.scratch, plan.scratch_bytes);
  }
  memory.in_file += UnionBytes(std::move(in_file));
  return memory;
}

}  // namespace rempart::worker
