// SPDX-License-Identifier: Apache-2.0
// The parts of CopyWeights (worker/model/weights.h), and what they will take, for whoever counts
// it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/ops.h"
#include "worker/device/thread_pool.h"
#include "worker/model/mapped_file.h"
#include "worker/model/weights.h"

namespace rempart::worker {

// Whether a matrix is expanded into Weights::expanded, and how much of it that takes.
bool IsExpanded(const kernels::Ops& ops, const PackOptions& options, const Matrix& matrix);
int64_t ExpandedBytes(const Matrix& matrix);

// Where Weights::packed has a copy of each matrix that `ops` has a layout for.
struct PackJob {
  Matrix* matrix;
  int64_t offset;
};
struct PackPlan {
  std::vector<PackJob> jobs;
  int64_t bytes = 0;
  int64_t scratch_bytes = 0;  // of the largest matrix that is expanded on its way
};
PackPlan PlanPack(const kernels::Ops& ops, Weights& weights);

// Gives back the pages of files while copies are made from them.
class SourcePages {
 public:
  explicit SourcePages(absl::Span<const MappedFile> files) : files_(files) {}
  // That so many bytes more have been copied.
  void Copied(int64_t bytes);
  // Of pages that wait to be given back, beside those of the matrix that is copied.
  static constexpr int64_t kMostBytes = int64_t{32} << 20;

 private:
  const absl::Span<const MappedFile> files_;
  int64_t bytes_ = 0;
};

// Rows [begin, end) of a quantised matrix as its view's type, to where they belong in `memory`.
void ExpandRows(const Matrix& matrix, int64_t begin, int64_t end, uint8_t* memory);

// Expands quantised matrices, but those that `ops` has a packed layout for where options.pack.
absl::Status ExpandWeights(const kernels::Ops& ops, const PackOptions& options, ThreadPool& pool,
                           Weights& weights);
// Fills in `packed` of every matrix that `ops` has a layout for, quantised ones by way of a
// scratch.
absl::Status PackWeights(const kernels::Ops& ops, const PackOptions& options, ThreadPool& pool,
                         Weights& weights);

}  // namespace rempart::worker
