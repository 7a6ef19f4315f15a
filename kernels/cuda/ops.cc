// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/ops.h"

namespace rempart::kernels::cuda {

const DeviceOps& Table() {
  static constexpr DeviceOps kOps = {
#if defined(REMPART_EMULATED)
    .name = "cuda-emulated",
#else
    .name = "cuda",
#endif
    .embed = Embed,
    .add_norm = AddNorm,
    .rope_store = RopeStore,
    .attention_prefill = AttentionPrefill,
    .attention_decode = AttentionDecode,
    .activate = Activate,
    .matvec = Matvec,
    .matmul = Matmul,
    .quantize_rows = QuantizeRows,
    .scale_sums = ScaleSums,
    .sample = Sample,
    .advance = Advance,
    .copy_blocks = CopyBlocks,
    .hash = Hash,
    .all_reduce = AllReduce,
    .all_reduce_norm = AllReduceNorm,
  };
  return kOps;
}

}  // namespace rempart::kernels::cuda
