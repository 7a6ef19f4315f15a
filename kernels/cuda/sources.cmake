# SPDX-License-Identifier: Apache-2.0
# The kernel sources, which two targets compile: with nvcc (here) and over the emulator.
set(REMPART_CUDA_KERNELS
  all_reduce.cu
  attention_decode.cu
  attention_prefill.cu
  copy.cu
  elementwise.cu
  matmul.cu
  matvec.cu
  norm.cu
  rope.cu
  sample.cu)
