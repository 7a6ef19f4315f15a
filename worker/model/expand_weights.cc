// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "worker/model/copy_weights.h"
#include "worker/model/weights.h"

namespace rempart::worker {
namespace {

constexpr int64_t kExpandChunk = 256;  // rows; a multiple of kINT4Rows
constexpr int64_t kExpandAlign = 64;

}  // namespace

int64_t ExpandedBytes(const Matrix& matrix) {
  const int64_t bytes = matrix.view.rows * kernels::RowBytes(matrix.view.type, matrix.view.cols);
  return (bytes + kExpandAlign - 1) / kExpandAlign * kExpandAlign;
}

bool IsExpanded(const kernels::Ops& ops, const PackOptions& options, const Matrix& matrix) {
  if (options.expand != ExpandQuantized::kForCpu || matrix.quantized == nullptr) return false;
  return !options.pack || ops.packed_bytes(matrix.view) == 0;
}

void ExpandRows(const Matrix& matrix, int64_t begin, int64_t end, uint8_t* memory) {
  const kernels::WeightView& view = matrix.view;
  Expand({*matrix.quantized, matrix.first_row + begin, end - begin, matrix.first_col, view.cols},
         memory + begin * kernels::RowBytes(view.type, view.cols));
}

absl::Status ExpandWeights(const kernels::Ops& ops, const PackOptions& options, ThreadPool& pool,
                           Weights& weights) {
  std::vector<Matrix*> matrices;
  int64_t total = 0;
  for (Matrix* matrix : ProductMatrices(weights)) {
    if (!IsExpanded(ops, options, *matrix)) continue;
    matrices.push_back(matrix);
    total += ExpandedBytes(*matrix);
  }
  if (total == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(weights.expanded, PackedMemory::Allocate(total));
  uint8_t* memory = weights.expanded.writable();
  SourcePages source(options.files);
  int64_t done = 0;
  for (Matrix* matrix : matrices) {
    uint8_t* const to = memory + done;
    pool.ParallelFor(matrix->view.rows, kExpandChunk,
                     [&](int64_t begin, int64_t end) { ExpandRows(*matrix, begin, end, to); });
    matrix->view.data = to;
    done += ExpandedBytes(*matrix);
    source.Copied(ExpandedBytes(*matrix));
    if (options.on_progress) options.on_progress(done, total);
  }
  return absl::OkStatus();
}

}  // namespace rempart::worker
