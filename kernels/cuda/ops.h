// SPDX-License-Identifier: Apache-2.0
// The kernels of kernels/cuda/, one function per op of kernels/device_ops.h, and their table. Built
// twice from the same sources: by nvcc for GPUs (target kernels_cuda), and by the host's compiler
// over the emulator for tests (target kernels_cuda_emulated). No binary holds both.
#pragma once

#include "kernels/device_ops.h"

namespace rempart::kernels::cuda {

void Embed(const DeviceEmbedArgs& args, DeviceStream stream);
void AddNorm(const AddNormArgs& args, DeviceStream stream);
void RopeStore(const RopeStoreArgs& args, DeviceStream stream);
void AttentionPrefill(const DeviceAttentionArgs& args, DeviceStream stream);
void AttentionDecode(const DeviceAttentionArgs& args, DeviceStream stream);
void Activate(const ActivateArgs& args, DeviceStream stream);
void Matvec(const DeviceMatmulArgs& args, DeviceStream stream);
void Matmul(const DeviceMatmulArgs& args, DeviceStream stream);
void QuantizeRows(const QuantizeRowsArgs& args, DeviceStream stream);
void ScaleSums(const ScaleSumsArgs& args, DeviceStream stream);
void Sample(const SampleArgs& args, DeviceStream stream);
void Advance(const AdvanceArgs& args, DeviceStream stream);
void CopyBlocks(const CopyBlocksArgs& args, DeviceStream stream);
void Hash(const HashArgs& args, DeviceStream stream);
void AllReduce(const AllReduceArgs& args, DeviceStream stream);
void AllReduceNorm(const AllReduceNormArgs& args, DeviceStream stream);

// "cuda", or "cuda-emulated".
const DeviceOps& Table();

}  // namespace rempart::kernels::cuda
