// SPDX-License-Identifier: Apache-2.0
// Products of many tokens by cuBLASLt: which of them it is given, how their activations are
// quantised for it, and how many tokens at once. What it is not given, our own tiles compute.
//
// Formats whose activations are quantised (FP8 by rows and by blocks, INT8). Tokens are added,
// which are zeros, up to one of few counts, and the rows of y that they stand for must be there
// (DeviceMatmulArgs::y_rows). The library is asked for all of these counts before a matrix is first
// multiplied: it does them all, or the matrix is never given to it. So whether activations are
// quantised does not depend on how many there are (invariant 3 of device_ops.h), and of each count
// the library chooses its algorithm once, from the shape alone.
//
// FP8 by blocks. The library multiplies them on GPUs of compute capability 9.0, since 12.9, by
// activations with a scale for each 128 columns, and wants the tokens to be a multiple of four.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cuda/cublas_lt.h"
#include "kernels/device_ops.h"

namespace rempart::kernels::cuda {

// Tokens of which a product is made, for `tokens` of them in a y of y_rows rows: not more than
// that, and one of BlasTokenCounts.
int64_t BlasTokens(int64_t tokens, int64_t y_rows);
// All that BlasTokens gives for parts of at most max_tokens, a multiple of 128, ascending.
std::vector<int64_t> BlasTokenCounts(int64_t y_rows, int64_t max_tokens);

class BlasProducts {
 public:
  struct Options {
    int compute_major = 0;
    int compute_minor = 0;
    // Device memory for quantised activations and the sums of INT8; aligned to kBlasAligned.
    void* room = nullptr;
    int64_t room_bytes = 0;
    // Called once for each product that the library could have and is not given, with its format,
    // rows and columns as text; may be empty.
    std::function<void(const std::string& product)> when_refused;
  };

  BlasProducts(std::unique_ptr<CublasLt> library, const DeviceOps& ops, const Options& options);

  // Whether the product is for the library. Of quantised activations num_tokens does not decide.
  bool Takes(const DeviceMatmulArgs& args);
  // Queues y = x w^T. False when it is not for the library; what is queued then is void.
  bool Multiply(const DeviceMatmulArgs& args, DeviceStream stream);
  // Whether the library is documented to multiply FP8 of this format on this GPU. Of the others
  // nothing is said.
  bool Has(DeviceFormat format) const;
  // Products that were for the library, so far.
  int64_t products() const { return products_; }
  // "cuBLASLt 13.0.2, FP8 too", or why without.
  std::string Describe() const;

 private:
  // Where the activations of one part lie in the room.
  struct Layout {
    uint8_t* codes;
    float* scales;
    int32_t* sums;
  };

  void NoteRefusal(const DeviceMatmulArgs& args);
  bool MultiplyQuantized(const DeviceMatmulArgs& args, DeviceStream stream);
  bool TakesBlocks(const DeviceMatmulArgs& args) const;
  bool TakesAllCounts(const DeviceMatmulArgs& args);
  // The most tokens at once whose codes, scales and sums have room: a multiple of 128.
  int64_t MostTokens(const DeviceMatrix& w) const;
  Layout LayOut(int64_t tokens, const DeviceMatrix& w) const;

  const std::unique_ptr<CublasLt> library_;
  int64_t products_ = 0;
  const DeviceOps& ops_;
  const Options options_;
  // Of the version and the GPU; empty: the library multiplies FP8, by rows and by blocks.
  const std::string without_fp8_;
  // Format, rows, cols, rows and stride of y, whether it is F32, alignments of w and y: whether the
  // library does all counts of tokens.
  using Shape =
      std::tuple<DeviceFormat, int64_t, int64_t, int64_t, int64_t, bool, uint32_t, uint32_t>;
  std::map<Shape, bool> takes_all_counts_;
  std::set<std::tuple<DeviceFormat, int64_t, int64_t>> refused_;  // and told; rows, cols
};

// What computes this product; null: there is no library. Should it fail, tiles do.
ProductWay WayOf(const DeviceMatmulArgs& args, BlasProducts* library);

}  // namespace rempart::kernels::cuda
