// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cublas_lt.h"

#include <dlfcn.h>

namespace rempart::kernels::cuda {
namespace {

constexpr size_t kMaxPlans = 4096;

// Empty, or what is missing.
std::string Open(const std::string& library, CublasLtFunctions& lt) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return dlerror();
#define REMPART_FIND(member, symbol, result, parameters)                     \
  lt.member = reinterpret_cast<decltype(lt.member)>(dlsym(handle, #symbol)); \
  if (lt.member == nullptr) return "it has no " #symbol;
  REMPART_CUBLAS_LT(REMPART_FIND)
#undef REMPART_FIND
  return "";
}

bool IsFp8(DeviceFormat format) {
  return format == DeviceFormat::kFP8Row || format == DeviceFormat::kFP8Block;
}

bool IsServed(DeviceFormat format) {
  return format == DeviceFormat::kBF16 || format == DeviceFormat::kINT8Row || IsFp8(format);
}

template <class Handle, class T>
bool Set(int (*set)(Handle, int, const void*, size_t), Handle handle, int attribute,
         const T& value) {
  return set(handle, attribute, &value, sizeof(value)) == kCublasSuccess;
}

}  // namespace

uint32_t AlignmentOf(const void* memory) {
  const auto address = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(memory)) | kBlasAligned;
  return address & (~address + 1);
}

std::unique_ptr<CublasLt> CublasLt::Load(const std::string& library, void* workspace,
                                         int64_t workspace_bytes, std::string* why) {
  CublasLtFunctions lt;
  *why = Open(library, lt);
  if (!why->empty()) return nullptr;
  CublasLtHandle handle = nullptr;
  if (lt.create(&handle) != kCublasSuccess) {
    *why = "cublasLtCreate failed";
    return nullptr;
  }
  return std::unique_ptr<CublasLt>(new CublasLt(lt, handle, workspace, workspace_bytes));
}

CublasLt::~CublasLt() {
  Clear();
  lt_.destroy(handle_);
}

bool CublasLt::Has(const DeviceMatmulArgs& args, const QuantizedTokens& tokens) {
  return IsServed(args.w.format) && PlanOf(args, OperandsOf(args, tokens), tokens).exists;
}

bool CublasLt::Matmul(const DeviceMatmulArgs& args, const QuantizedTokens& tokens,
                      DeviceStream stream) {
  if (!IsServed(args.w.format)) return false;
  const Operands of = OperandsOf(args, tokens);
  const Plan& plan = PlanOf(args, of, tokens);
  if (!plan.exists) return false;
  if (IsFp8(args.w.format) && !SetScales(plan.operation, args, tokens)) return false;
  const float one = 1.0f, zero = 0.0f;
  const int32_t int_one = 1, int_zero = 0;
  const bool is_int = of.factor == kCudaInt32;
  return lt_.matmul(handle_, plan.operation, is_int ? static_cast<const void*>(&int_one) : &one,
                    args.w.data, plan.w, of.x, plan.x,
                    is_int ? static_cast<const void*>(&int_zero) : &zero, of.y, plan.y, of.y,
                    plan.y, &plan.algorithm, workspace_, workspace_bytes_,
                    stream) == kCublasSuccess;
}

CublasLt::Operands CublasLt::OperandsOf(const DeviceMatmulArgs& args,
                                        const QuantizedTokens& tokens) {
  Operands of = {args.x, args.x_stride, args.y, args.y_stride};
  if (args.y_is_f32) of.out = kCudaF32;
  if (args.w.format == DeviceFormat::kBF16) return of;
  of.x = tokens.codes;
  of.x_stride = args.w.cols;
  of.in = kCudaE4M3;
  if (IsFp8(args.w.format)) return of;
  of.y = tokens.sums;
  of.y_stride = args.w.rows;
  of.in = kCudaInt8;
  of.out = of.factor = kCudaInt32;
  of.compute = kCublasComputeInt32;
  return of;
}

const CublasLt::Plan& CublasLt::PlanOf(const DeviceMatmulArgs& args, const Operands& of,
                                       const QuantizedTokens& tokens) {
  const Alignments aligned = {AlignmentOf(args.w.data), AlignmentOf(of.x), AlignmentOf(of.y)};
  const Shape shape = {args.w.format, args.w.rows, args.w.cols, args.num_tokens,
                       of.x_stride,   of.y_stride, of.out,      aligned};
  auto found = plans_.find(shape);
  if (found == plans_.end()) {
    if (plans_.size() >= kMaxPlans) Clear();
    found = plans_.emplace(shape, MakePlan(args, of, aligned, tokens)).first;
  }
  return found->second;
}

// The library's matrices are column-major: y^T [rows, tokens] = (w^T)^T [rows, cols] x^T.
CublasLt::Plan CublasLt::MakePlan(const DeviceMatmulArgs& args, const Operands& of,
                                  const Alignments& aligned, const QuantizedTokens& tokens) const {
  Plan plan;
  const auto rows = static_cast<uint64_t>(args.w.rows);
  const auto cols = static_cast<uint64_t>(args.w.cols);
  const auto columns_of_x = static_cast<uint64_t>(args.num_tokens);
  const auto layout = [&](CublasLtLayout* made, int type, uint64_t columns, uint64_t count,
                          int64_t stride) {
    return lt_.make_layout(made, type, columns, count, stride) == kCublasSuccess;
  };
  bool ok = lt_.make_operation(&plan.operation, of.compute, of.factor) == kCublasSuccess;
  ok = ok && Set(lt_.set_operation, plan.operation, kLtTransposeA, kCublasTransposed) &&
       Set(lt_.set_operation, plan.operation, kLtTransposeB, kCublasAsItIs);
  if (IsFp8(args.w.format)) {
    // The heuristic wants to see scales.
    ok = ok && SetScaleModes(plan.operation, args.w.format) &&
         SetScales(plan.operation, args, tokens);
  }
  ok = ok && layout(&plan.w, of.in, cols, rows, args.w.cols) &&
       layout(&plan.x, of.in, cols, columns_of_x, of.x_stride) &&
       layout(&plan.y, of.out, rows, columns_of_x, of.y_stride);
  CublasLtPreference preference = nullptr;
  ok = ok && lt_.make_preference(&preference) == kCublasSuccess;
  ok = ok && Set(lt_.set_preference, preference, kLtMaxWorkspaceBytes, workspace_bytes_) &&
       Set(lt_.set_preference, preference, kLtMinAlignmentA, aligned.w) &&
       Set(lt_.set_preference, preference, kLtMinAlignmentB, aligned.x) &&
       Set(lt_.set_preference, preference, kLtMinAlignmentC, aligned.y) &&
       Set(lt_.set_preference, preference, kLtMinAlignmentD, aligned.y);
  CublasLtHeuristic result = {};
  int found = 0;
  ok = ok && lt_.heuristic(handle_, plan.operation, plan.w, plan.x, plan.y, plan.y, preference, 1,
                           &result, &found) == kCublasSuccess;
  if (preference != nullptr) lt_.free_preference(preference);
  plan.exists = ok && found == 1;
  plan.algorithm = result.algorithm;
  if (!plan.exists) {
    Destroy(plan);
    plan = Plan();
  }
  return plan;
}

// A library older than 12.9 knows no such modes and refuses them.
bool CublasLt::SetScaleModes(CublasLtOperation operation, DeviceFormat format) const {
  const bool is_block = format == DeviceFormat::kFP8Block;
  return Set(lt_.set_operation, operation, kLtScaleModeA,
             is_block ? kLtScaleBlocks : kLtScaleRows) &&
         Set(lt_.set_operation, operation, kLtScaleModeB,
             is_block ? kLtScaleVectors : kLtScaleRows);
}

bool CublasLt::SetScales(CublasLtOperation operation, const DeviceMatmulArgs& args,
                         const QuantizedTokens& tokens) const {
  const void* of_w = args.w.scales;
  const void* of_x = tokens.scales;
  return Set(lt_.set_operation, operation, kLtScalesA, of_w) &&
         Set(lt_.set_operation, operation, kLtScalesB, of_x);
}

void CublasLt::Destroy(const Plan& plan) const {
  if (plan.operation != nullptr) lt_.free_operation(plan.operation);
  for (CublasLtLayout layout : {plan.w, plan.x, plan.y}) {
    if (layout != nullptr) lt_.free_layout(layout);
  }
}

void CublasLt::Clear() {
  for (const auto& [shape, plan] : plans_) Destroy(plan);
  plans_.clear();
}

}  // namespace rempart::kernels::cuda
