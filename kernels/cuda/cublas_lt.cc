// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cublas_lt.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <compare>
#include <cstdint>
#include <map>
#include <tuple>

namespace rempart::kernels::cuda {
namespace {

#define REMPART_TEXT_OF(x) #x
#define REMPART_TEXT(x) REMPART_TEXT_OF(x)
constexpr char kLibrary[] = "libcublasLt.so." REMPART_TEXT(CUBLAS_VER_MAJOR);

constexpr size_t kMaxPlans = 4096;

// X(name) for each function of the library that is used.
#define REMPART_CUBLAS_LT(X)              \
  X(cublasLtCreate)                       \
  X(cublasLtDestroy)                      \
  X(cublasLtGetVersion)                   \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)

struct Library {
#define REMPART_DECLARE(name) decltype(&::name) name = nullptr;
  REMPART_CUBLAS_LT(REMPART_DECLARE)
#undef REMPART_DECLARE

  // Empty, or what is missing.
  std::string Open(const std::string& path) {
    void* handle = dlopen(path.empty() ? kLibrary : path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return dlerror();
#define REMPART_FIND(symbol)                                           \
  symbol = reinterpret_cast<decltype(symbol)>(dlsym(handle, #symbol)); \
  if (symbol == nullptr) return std::string("it has no ") + #symbol;
    REMPART_CUBLAS_LT(REMPART_FIND)
#undef REMPART_FIND
    return "";
  }
};

// How w, x and y lie: the largest power of two up to kAligned that divides the address. The library
// takes kAligned for granted where it is not told, and rows of a part of a matrix begin elsewhere.
constexpr uint32_t kAligned = 256;
struct Alignments {
  uint32_t w, x, y;
  auto operator<=>(const Alignments&) const = default;
};
uint32_t AlignmentOf(const void* memory) {
  const auto address = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(memory)) | kAligned;
  return address & (~address + 1);
}

// A product as the library sees it.
struct Operands {
  const void* x = nullptr;
  int64_t x_stride = 0;
  void* y = nullptr;
  int64_t y_stride = 0;
  cudaDataType_t in = CUDA_R_16BF;
  cudaDataType_t out = CUDA_R_16BF;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t factor = CUDA_R_32F;  // of what the product is multiplied by
};
Operands OperandsOf(const DeviceMatmulArgs& args, const QuantizedTokens& tokens) {
  Operands of = {args.x, args.x_stride, args.y, args.y_stride};
  if (args.y_is_f32) of.out = CUDA_R_32F;
  if (args.w.format == DeviceFormat::kBF16) return of;
  of.x = tokens.codes;
  of.x_stride = args.w.cols;
  of.in = CUDA_R_8F_E4M3;
  if (args.w.format == DeviceFormat::kFP8Row) return of;
  of.y = tokens.sums;
  of.y_stride = args.w.rows;
  of.in = CUDA_R_8I;
  of.out = of.factor = CUDA_R_32I;
  of.compute = CUBLAS_COMPUTE_32I;
  return of;
}

// Format, rows, cols, tokens, strides of x and y, type of y.
using Shape = std::tuple<DeviceFormat, int64_t, int64_t, int64_t, int64_t, int64_t, cudaDataType_t,
                         Alignments>;

struct Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
  bool exists = false;
};

class Loaded : public CublasLt {
 public:
  Loaded(const Library& library, cublasLtHandle_t handle, void* workspace, int64_t workspace_bytes)
      : lt_(library),
        handle_(handle),
        workspace_(workspace),
        workspace_bytes_(static_cast<size_t>(workspace_bytes)) {}

  ~Loaded() override {
    Clear();
    lt_.cublasLtDestroy(handle_);
  }

  std::string Version() const override {
    const size_t version = lt_.cublasLtGetVersion();
    return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
           std::to_string(version % 100);
  }

  bool Matmul(const DeviceMatmulArgs& args, const QuantizedTokens& tokens,
              DeviceStream stream) override {
    const DeviceFormat format = args.w.format;
    if (format != DeviceFormat::kBF16 && format != DeviceFormat::kFP8Row &&
        format != DeviceFormat::kINT8Row) {
      return false;
    }
    const Operands of = OperandsOf(args, tokens);
    const Alignments aligned = {AlignmentOf(args.w.data), AlignmentOf(of.x), AlignmentOf(of.y)};
    const Shape shape = {format,      args.w.rows, args.w.cols, args.num_tokens,
                         of.x_stride, of.y_stride, of.out,      aligned};
    auto found = plans_.find(shape);
    if (found == plans_.end()) {
      if (plans_.size() >= kMaxPlans) Clear();
      found = plans_.emplace(shape, MakePlan(args, of, aligned)).first;
    }
    const Plan& plan = found->second;
    if (!plan.exists) return false;
    if (format == DeviceFormat::kFP8Row) {
      const void* w_scales = args.w.scales;
      const void* x_scales = tokens.scales;
      Set(plan.operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scales);
      Set(plan.operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scales);
    }
    const float one = 1.0f, zero = 0.0f;
    const int32_t int_one = 1, int_zero = 0;
    const bool is_int = of.factor == CUDA_R_32I;
    return lt_.cublasLtMatmul(handle_, plan.operation,
                              is_int ? static_cast<const void*>(&int_one) : &one, args.w.data,
                              plan.w, of.x, plan.x,
                              is_int ? static_cast<const void*>(&int_zero) : &zero, of.y, plan.y,
                              of.y, plan.y, &plan.algorithm, workspace_, workspace_bytes_,
                              static_cast<cudaStream_t>(stream)) == CUBLAS_STATUS_SUCCESS;
  }

 private:
  template <class T>
  bool Set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
           const T& value) const {
    return lt_.cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)) ==
           CUBLAS_STATUS_SUCCESS;
  }

  template <class T>
  bool Prefer(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
              const T& value) const {
    return lt_.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)) ==
           CUBLAS_STATUS_SUCCESS;
  }

  // The library's matrices are column-major: y^T [rows, tokens] = (w^T)^T [rows, cols] x^T.
  Plan MakePlan(const DeviceMatmulArgs& args, const Operands& of, const Alignments& aligned) const {
    Plan plan;
    const auto rows = static_cast<uint64_t>(args.w.rows);
    const auto cols = static_cast<uint64_t>(args.w.cols);
    const auto tokens = static_cast<uint64_t>(args.num_tokens);
    bool ok = lt_.cublasLtMatmulDescCreate(&plan.operation, of.compute, of.factor) ==
              CUBLAS_STATUS_SUCCESS;
    ok = ok && Set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T) &&
         Set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    if (args.w.format == DeviceFormat::kFP8Row) ok = ok && SetFp8Scaling(plan.operation, args);
    ok = ok && Layout(&plan.w, of.in, cols, rows, args.w.cols) &&
         Layout(&plan.x, of.in, cols, tokens, of.x_stride) &&
         Layout(&plan.y, of.out, rows, tokens, of.y_stride);
    cublasLtMatmulPreference_t preference = nullptr;
    ok = ok && lt_.cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS;
    ok = ok && Prefer(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes_);
    ok = ok && Prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned.w) &&
         Prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned.x) &&
         Prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned.y) &&
         Prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned.y);
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    ok = ok && lt_.cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation, plan.w, plan.x, plan.y,
                                                  plan.y, preference, 1, &result,
                                                  &found) == CUBLAS_STATUS_SUCCESS;
    if (preference != nullptr) lt_.cublasLtMatmulPreferenceDestroy(preference);
    plan.exists = ok && found == 1;
    plan.algorithm = result.algo;
    if (!plan.exists) {
      Destroy(plan);
      plan = Plan();
    }
    return plan;
  }

  // One scale a row of w and one a token.
  bool SetFp8Scaling(cublasLtMatmulDesc_t operation, const DeviceMatmulArgs& args) const {
#if CUBLAS_VERSION >= 120900
    const cublasLtMatmulMatrixScale_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    const void* pointer = args.w.scales;  // the heuristic wants to see one
    return Set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode) &&
           Set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode) &&
           Set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, pointer) &&
           Set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, pointer);
#else
    static_cast<void>(operation);
    static_cast<void>(args);
    return false;
#endif
  }

  bool Layout(cublasLtMatrixLayout_t* layout, cudaDataType_t type, uint64_t rows, uint64_t cols,
              int64_t stride) const {
    return lt_.cublasLtMatrixLayoutCreate(layout, type, rows, cols, stride) ==
           CUBLAS_STATUS_SUCCESS;
  }

  void Destroy(const Plan& plan) const {
    if (plan.operation != nullptr) lt_.cublasLtMatmulDescDestroy(plan.operation);
    for (cublasLtMatrixLayout_t layout : {plan.w, plan.x, plan.y}) {
      if (layout != nullptr) lt_.cublasLtMatrixLayoutDestroy(layout);
    }
  }

  void Clear() {
    for (const auto& [shape, plan] : plans_) Destroy(plan);
    plans_.clear();
  }

  const Library lt_;
  cublasLtHandle_t handle_;
  void* const workspace_;
  const size_t workspace_bytes_;
  std::map<Shape, Plan> plans_;
};

}  // namespace

std::unique_ptr<CublasLt> CublasLt::Load(const std::string& library, void* workspace,
                                         int64_t workspace_bytes, std::string* why) {
  Library lt;
  *why = lt.Open(library);
  if (!why->empty()) return nullptr;
  cublasLtHandle_t handle = nullptr;
  if (lt.cublasLtCreate(&handle) != CUBLAS_STATUS_SUCCESS) {
    *why = "cublasLtCreate failed";
    return nullptr;
  }
  return std::make_unique<Loaded>(lt, handle, workspace, workspace_bytes);
}

}  // namespace rempart::kernels::cuda
