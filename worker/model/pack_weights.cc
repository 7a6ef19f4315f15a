// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "worker/model/copy_weights.h"
#include "worker/model/weights.h"

namespace rempart::worker {
namespace {

constexpr int64_t kPackChunk = 256;
constexpr int64_t kPackAlign = 64;
// Another one when Expand gives other blocks for the same file.
constexpr int64_t kExpandVersion = 1;
// Of the matrix that shows a layout.
constexpr int64_t kProbeRows = 64;
constexpr int64_t kProbeCols = 512;

int64_t RoundUp(int64_t bytes) { return (bytes + kPackAlign - 1) / kPackAlign * kPackAlign; }

// A known matrix as these kernels pack it.
void AppendProbe(const kernels::Ops& ops, kernels::DType type, std::string& layout) {
  std::vector<uint8_t> plain(kProbeRows * kernels::RowBytes(type, kProbeCols));
  for (size_t i = 0; i < plain.size(); ++i) plain[i] = static_cast<uint8_t>(i * 151 + i / 256);
  const kernels::WeightView view = {plain.data(), type, kProbeRows, kProbeCols};
  const int64_t bytes = ops.packed_bytes(view);
  std::unique_ptr<void, FreeDeleter> packed(std::aligned_alloc(kPackAlign, RoundUp(bytes)));
  CHECK(packed != nullptr);
  std::memset(packed.get(), 0, RoundUp(bytes));
  ops.pack_rows(view, packed.get(), 0, kProbeRows);
  layout.append(static_cast<const char*>(packed.get()), bytes);
}

// What the bytes of the copies depend on besides the source and the tier's name.
Sha256 Layout(const kernels::Ops& ops, const RankPosition& of, const std::vector<PackJob>& jobs) {
  std::vector<int64_t> facts = {of.rank, of.size, of.stage, of.stages};
  std::array<bool, kernels::kDTypeCount> types = {};
  for (const PackJob& job : jobs) {
    const kernels::WeightView& view = job.matrix->view;
    facts.insert(facts.end(), {static_cast<int64_t>(view.type), view.rows, view.cols, job.offset});
    if (job.matrix->quantized != nullptr) facts.push_back(kExpandVersion);
    types[static_cast<size_t>(view.type)] = true;
  }
  std::string layout(reinterpret_cast<const char*>(facts.data()), facts.size() * sizeof(int64_t));
  for (int type = 0; type < kernels::kDTypeCount; ++type) {
    if (types[type]) AppendProbe(ops, static_cast<kernels::DType>(type), layout);
  }
  return HashOf({reinterpret_cast<const uint8_t*>(layout.data()), layout.size()});
}

}  // namespace

void SourcePages::Copied(int64_t bytes) {
  bytes_ += bytes;
  if (bytes_ < kMostBytes) return;
  for (const MappedFile& file : files_) file.DropResidentPages();
  bytes_ = 0;
}

PackPlan PlanPack(const kernels::Ops& ops, Weights& weights) {
  PackPlan plan;
  // The embedding is looked up by rows: no copy.
  for (Matrix* matrix : ProductMatrices(weights)) {
    const int64_t bytes = ops.packed_bytes(matrix->view);
    if (bytes == 0) continue;
    plan.jobs.push_back({matrix, plan.bytes});
    plan.bytes += RoundUp(bytes);
    if (matrix->quantized == nullptr) continue;
    const int64_t expanded =
        matrix->view.rows * kernels::RowBytes(matrix->view.type, matrix->view.cols);
    plan.scratch_bytes = std::max(plan.scratch_bytes, expanded);
  }
  return plan;
}

void FindRepacked(const kernels::Ops& ops, const PackOptions& options, Weights& weights) {
  if (!options.pack) return;
  const PackPlan plan = PlanPack(ops, weights);
  if (plan.bytes == 0) return;
  weights.packed_key = {options.source, ops.name, Layout(ops, weights.partition.of, plan.jobs),
                        plan.bytes};
  if (options.cache == nullptr) return;
  absl::StatusOr<RepackCache::Found> found = options.cache->Find(weights.packed_key);
  if (!found.ok()) return;
  weights.packed = std::move(found->memory);
  weights.from_cache = found->digests;
}

absl::Status PackWeights(const kernels::Ops& ops, const PackOptions& options, ThreadPool& pool,
                         Weights& weights) {
  const PackPlan plan = PlanPack(ops, weights);
  if (plan.bytes == 0) return absl::OkStatus();
  if (!weights.from_cache) {
    ASSIGN_OR_RETURN(weights.packed, PackedMemory::Allocate(plan.bytes));
    uint8_t* const memory = weights.packed.writable();
    ASSIGN_OR_RETURN(PackedMemory scratch, PackedMemory::Allocate(plan.scratch_bytes));
    SourcePages source(options.files);
    for (const PackJob& job : plan.jobs) {
      kernels::WeightView view = job.matrix->view;
      if (job.matrix->quantized != nullptr) view.data = scratch.writable();
      pool.ParallelFor(view.rows, kPackChunk, [&](int64_t begin, int64_t end) {
        if (job.matrix->quantized != nullptr)
          ExpandRows(*job.matrix, begin, end, scratch.writable());
        ops.pack_rows(view, memory + job.offset, begin, end);
      });
      if (options.on_progress) options.on_progress(job.offset, plan.bytes);
      source.Copied(view.rows * kernels::RowBytes(view.type, view.cols));
    }
  }
  for (const PackJob& job : plan.jobs) {
    job.matrix->packed = weights.packed.bytes().data() + job.offset;
  }
  return absl::OkStatus();
}

}  // namespace rempart::worker
