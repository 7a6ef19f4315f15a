// SPDX-License-Identifier: Apache-2.0
// A libcublasLt whose device memory is the host's: it multiplies for real, and holds callers to
// what cuBLAS's documentation says ("cublasLtMatmul()", "Tensor Core Usage", "Outer Vector Scaling
// for FP8 Data Types", "128-element 1D and 128x128 2D Block Scaling For FP8 Data Types"). Where
// scales lie is written down here from there, not from what callers do.
// FAKE_CUBLAS_LT_WITHOUT_LAYOUTS leaves a function out.
#include "tests/kernels/cuda/fake_cublas_lt.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/cuda/cublas_lt_abi.h"

namespace {

struct Operation {
  int compute, factor;
  int transpose_a = kCublasAsItIs, transpose_b = kCublasAsItIs;
  int32_t mode_a = 0, mode_b = 0;
  const float* scales_a = nullptr;
  const float* scales_b = nullptr;
};
struct Layout {
  int type;
  int64_t rows, cols, stride;
};
struct Preference {
  size_t workspace_bytes = 0;
  uint32_t aligned[4] = {256, 256, 256, 256};  // of A, B, C, D
};
struct Handle {};

constexpr uint64_t kAlgorithm = 0x616c676f;

FakeCublasLtControls& Controls() { return *FakeCublasLt(); }

int Complain(const std::string& what) {
  const std::lock_guard lock(Controls().mutex);
  if (Controls().complaint.empty()) Controls().complaint = what;
  return kCublasInvalidValue;
}

template <class T, class Opaque>
int Make(Opaque* made, const T& value) {
  ++Controls().alive;
  *made = reinterpret_cast<Opaque>(new T(value));
  return kCublasSuccess;
}
template <class T, class Opaque>
int Free(Opaque made) {
  --Controls().alive;
  delete reinterpret_cast<T*>(made);
  return kCublasSuccess;
}
template <class T, class Opaque>
const T& In(Opaque opaque) {
  return *reinterpret_cast<const T*>(opaque);
}

template <class T>
int Take(T& to, const void* from, size_t bytes) {
  if (bytes != sizeof(T)) return Complain("an attribute of another size");
  std::memcpy(&to, from, bytes);
  return kCublasSuccess;
}

int BytesOf(int type) {
  if (type == kCudaF32 || type == kCudaInt32) return 4;
  return type == kCudaBf16 ? 2 : 1;
}

float E4M3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                   : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return code & 0x80 ? -size : size;
}

float Bf16(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
uint16_t ToBf16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  if (std::isnan(value)) return 0x7fff;
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

float Element(const void* matrix, int type, int64_t at) {
  if (type == kCudaBf16) return Bf16(static_cast<const uint16_t*>(matrix)[at]);
  if (type == kCudaInt8) return static_cast<const int8_t*>(matrix)[at];
  return E4M3(static_cast<const uint8_t*>(matrix)[at]);
}

bool IsFp8(const Layout& a) { return a.type == kCudaE4M3; }
bool HasBlocks(const Operation& operation) {
  return operation.mode_a >= kLtScaleVectors || operation.mode_b >= kLtScaleVectors;
}

// The scale of row `at` of A^T or column `at` of B, and of the block of K that k is in.
float Scale(const float* scales, int32_t mode, int64_t at, int64_t count, int64_t k, int64_t ks) {
  const int64_t blocks = (ks + 127) / 128;
  if (mode == kLtScaleRows) return scales[at];
  if (mode == kLtScaleVectors) return scales[k / 128 * count + at];  // M-major, N-major
  return scales[at / 128 * ((blocks + 3) / 4 * 4) + k / 128];        // K-major, L rounded to four
}

bool AreTypesServed(const Operation& operation, const Layout& a, const Layout& d) {
  if (a.type == kCudaInt8) {
    return operation.compute == kCublasComputeInt32 && operation.factor == kCudaInt32 &&
           d.type == kCudaInt32;
  }
  return (a.type == kCudaBf16 || IsFp8(a)) && operation.compute == kCublasComputeF32 &&
         operation.factor == kCudaF32 && (d.type == kCudaBf16 || d.type == kCudaF32);
}

bool AreScalesServed(const Operation& operation, const Layout& a, const Layout& d) {
  const bool has_scales = operation.scales_a != nullptr && operation.scales_b != nullptr;
  if (!IsFp8(a)) return operation.mode_a == 0 && operation.scales_a == nullptr;
  if (!has_scales || Controls().capability != 90) return false;
  if (operation.mode_a == kLtScaleRows) return operation.mode_b == kLtScaleRows;
  const bool is_pair =
      (operation.mode_a == kLtScaleVectors && operation.mode_b == kLtScaleVectors) ||
      (operation.mode_a == kLtScaleVectors && operation.mode_b == kLtScaleBlocks) ||
      (operation.mode_a == kLtScaleBlocks && operation.mode_b == kLtScaleVectors);
  return is_pair && d.rows % 4 == 0 && d.cols % 4 == 0;
}

// Of FP8: dimensions, strides and addresses are multiples of 16 bytes.
bool IsFp8Aligned(const Layout& a, const Layout& b, const Layout& d, const Preference& preference) {
  const int64_t out = BytesOf(d.type);
  for (const uint32_t aligned : preference.aligned) {
    if (aligned < 16) return false;
  }
  return a.rows % 16 == 0 && d.rows * out % 16 == 0 && a.stride % 16 == 0 && b.stride % 16 == 0 &&
         d.stride * out % 16 == 0;
}

std::vector<uint64_t> ShapeOf(const Operation& operation, const Layout& a, const Layout& b,
                              const Layout& d) {
  const auto types = static_cast<uint64_t>(a.type * 10000 + d.type * 100 + operation.mode_a * 10 +
                                           operation.mode_b);
  return {kAlgorithm,
          static_cast<uint64_t>(d.rows),
          static_cast<uint64_t>(d.cols),
          static_cast<uint64_t>(a.rows),
          types,
          static_cast<uint64_t>(a.stride ^ b.stride << 20 ^ d.stride << 40)};
}

bool IsAligned(const void* memory, uint64_t bytes) {
  return reinterpret_cast<uintptr_t>(memory) % bytes == 0;
}

void Count(const Operation& operation, const Layout& a, const Layout& d) {
  FakeCublasLtControls& controls = Controls();
  if (a.type == kCudaBf16) ++controls.bf16_products;
  if (a.type == kCudaBf16) return;
  const bool is_int8 = a.type == kCudaInt8, has_blocks = HasBlocks(operation);
  ++(is_int8      ? controls.int8_products
     : has_blocks ? controls.block_products
                  : controls.row_products);
  const std::lock_guard lock(controls.mutex);
  (is_int8      ? controls.int8_columns
   : has_blocks ? controls.block_columns
                : controls.row_columns)
      .insert(d.cols);
}

// D = A^T B, all column-major.
void Multiply(const Operation& operation, const void* a, const Layout& of_a, const void* b,
              const Layout& of_b, void* d, const Layout& of_d) {
  const int64_t ks = of_a.rows;
  for (int64_t j = 0; j < of_d.cols; ++j) {
    for (int64_t i = 0; i < of_d.rows; ++i) {
      float sum = 0;
      int32_t int_sum = 0;
      for (int64_t first = 0; first < ks; first += 128) {
        float part = 0;
        for (int64_t k = first; k < std::min(ks, first + 128); ++k) {
          const float product = Element(a, of_a.type, i * of_a.stride + k) *
                                Element(b, of_b.type, j * of_b.stride + k);
          part += product;
          int_sum += of_a.type == kCudaInt8 ? static_cast<int32_t>(product) : 0;
        }
        if (IsFp8(of_a)) {
          part *= Scale(operation.scales_a, operation.mode_a, i, of_d.rows, first, ks) *
                  Scale(operation.scales_b, operation.mode_b, j, of_d.cols, first, ks);
        }
        sum += part;
      }
      const int64_t at = j * of_d.stride + i;
      if (of_d.type == kCudaInt32) static_cast<int32_t*>(d)[at] = int_sum;
      if (of_d.type == kCudaF32) static_cast<float*>(d)[at] = sum;
      if (of_d.type == kCudaBf16) static_cast<uint16_t*>(d)[at] = ToBf16(sum);
    }
  }
}

}  // namespace

extern "C" {

FakeCublasLtControls* FakeCublasLt() {
  static auto* const controls = new FakeCublasLtControls;
  return controls;
}

int cublasLtCreate(CublasLtHandle* handle) { return Make(handle, Handle()); }
int cublasLtDestroy(CublasLtHandle handle) { return Free<Handle>(handle); }
size_t cublasLtGetVersion() { return static_cast<size_t>(Controls().version.load()); }

int cublasLtMatmulDescCreate(CublasLtOperation* operation, int compute, int factor) {
  return Make(operation, Operation{compute, factor});
}
int cublasLtMatmulDescDestroy(CublasLtOperation operation) { return Free<Operation>(operation); }
int cublasLtMatmulDescSetAttribute(CublasLtOperation opaque, int attribute, const void* value,
                                   size_t bytes) {
  auto& operation = *reinterpret_cast<Operation*>(opaque);
  const bool is_mode = attribute == kLtScaleModeA || attribute == kLtScaleModeB;
  if (is_mode && Controls().version < 120900) return kCublasInvalidValue;  // knows them not
  switch (attribute) {
    case kLtTransposeA:
      return Take(operation.transpose_a, value, bytes);
    case kLtTransposeB:
      return Take(operation.transpose_b, value, bytes);
    case kLtScaleModeA:
      return Take(operation.mode_a, value, bytes);
    case kLtScaleModeB:
      return Take(operation.mode_b, value, bytes);
    case kLtScalesA:
      return Take(operation.scales_a, value, bytes);
    case kLtScalesB:
      return Take(operation.scales_b, value, bytes);
    default:
      return Complain("an attribute that nobody needs");
  }
}

int cublasLtMatmulPreferenceCreate(CublasLtPreference* preference) {
  return Make(preference, Preference());
}
int cublasLtMatmulPreferenceDestroy(CublasLtPreference preference) {
  return Free<Preference>(preference);
}
int cublasLtMatmulPreferenceSetAttribute(CublasLtPreference opaque, int attribute,
                                         const void* value, size_t bytes) {
  auto& preference = *reinterpret_cast<Preference*>(opaque);
  if (attribute == kLtMaxWorkspaceBytes) return Take(preference.workspace_bytes, value, bytes);
  if (attribute < kLtMinAlignmentA || attribute > kLtMinAlignmentD) {
    return Complain("a preference that nobody needs");
  }
  return Take(preference.aligned[attribute - kLtMinAlignmentA], value, bytes);
}

#ifndef FAKE_CUBLAS_LT_WITHOUT_LAYOUTS
int cublasLtMatrixLayoutCreate(CublasLtLayout* layout, int type, uint64_t rows, uint64_t cols,
                               int64_t stride) {
  if (stride < static_cast<int64_t>(rows)) return Complain("columns that overlap");
  return Make(layout, Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(cols), stride});
}
#endif
int cublasLtMatrixLayoutDestroy(CublasLtLayout layout) { return Free<Layout>(layout); }

int cublasLtMatmulAlgoGetHeuristic(CublasLtHandle, CublasLtOperation opaque, CublasLtLayout of_a,
                                   CublasLtLayout of_b, CublasLtLayout of_c, CublasLtLayout of_d,
                                   CublasLtPreference preferred, int wanted,
                                   CublasLtHeuristic* results, int* found) {
  ++Controls().heuristics;
  const auto& operation = In<Operation>(opaque);
  const auto& [a, b] = std::pair(In<Layout>(of_a), In<Layout>(of_b));
  const auto& d = In<Layout>(of_d);
  const auto& preference = In<Preference>(preferred);
  *found = 0;
  if (wanted != 1 || of_c != of_d || a.type != b.type) return Complain("heuristic: arguments");
  if (a.rows != b.rows || a.cols != d.rows || b.cols != d.cols) {
    return Complain("heuristic: shapes that do not fit");
  }
  const bool is_served =
      operation.transpose_a == kCublasTransposed && operation.transpose_b == kCublasAsItIs &&
      AreTypesServed(operation, a, d) && AreScalesServed(operation, a, d) &&
      (!IsFp8(a) || IsFp8Aligned(a, b, d, preference)) && d.cols != Controls().refused_columns;
  if (!is_served) return kCublasNotSupported;
  const std::vector<uint64_t> shape = ShapeOf(operation, a, b, d);
  std::copy(shape.begin(), shape.end(), results[0].algorithm.data);
  for (int i = 0; i < 4; ++i) {
    results[0].algorithm.data[6] |= uint64_t{preference.aligned[i]} << (16 * i);
  }
  results[0].algorithm.data[7] = preference.workspace_bytes;
  results[0].workspace_bytes = preference.workspace_bytes;
  *found = 1;
  return kCublasSuccess;
}

int cublasLtMatmul(CublasLtHandle, CublasLtOperation opaque, const void* alpha, const void* a,
                   CublasLtLayout of_a, const void* b, CublasLtLayout of_b, const void* beta,
                   const void* c, CublasLtLayout, void* d, CublasLtLayout of_d,
                   const CublasLtAlgorithm* algorithm, void* workspace, size_t workspace_bytes,
                   void*) {
  if (Controls().matmul_result != 0) return Controls().matmul_result;
  const auto& operation = In<Operation>(opaque);
  const std::vector<uint64_t> shape =
      ShapeOf(operation, In<Layout>(of_a), In<Layout>(of_b), In<Layout>(of_d));
  if (!std::equal(shape.begin(), shape.end(), algorithm->data)) {
    return Complain("an algorithm of another shape");
  }
  const void* const memory[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    if (IsAligned(memory[i], algorithm->data[6] >> (16 * i) & 0xffff)) continue;
    return Complain("less aligned than promised");
  }
  if (workspace == nullptr || workspace_bytes < algorithm->data[7]) {
    return Complain("too small a workspace");
  }
  const bool is_int = operation.factor == kCudaInt32;
  const float one = 1, zero = 0;
  const int32_t int_one = 1, int_zero = 0;
  if (std::memcmp(alpha, is_int ? static_cast<const void*>(&int_one) : &one, 4) != 0 ||
      std::memcmp(beta, is_int ? static_cast<const void*>(&int_zero) : &zero, 4) != 0) {
    return Complain("factors that nobody needs");
  }
  if (HasBlocks(operation) &&
      !(IsAligned(operation.scales_a, 16) && IsAligned(operation.scales_b, 16))) {
    return Complain("scales that do not begin at a multiple of 16 bytes");
  }
  Count(operation, In<Layout>(of_a), In<Layout>(of_d));
  Multiply(operation, a, In<Layout>(of_a), b, In<Layout>(of_b), d, In<Layout>(of_d));
  return kCublasSuccess;
}

}  // extern "C"
