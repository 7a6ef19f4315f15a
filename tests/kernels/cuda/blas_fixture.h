// SPDX-License-Identifier: Apache-2.0
// Products by the fake libcublasLt, for tests of kernels and of models. REMPART_FAKE_CUBLAS_LT is
// its path.
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "kernels/cuda/blas_products.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/fake_cublas_lt.h"

namespace rempart::kernels::cuda {

inline FakeCublasLtControls& FakeControls() {
  void* const handle = dlopen(REMPART_FAKE_CUBLAS_LT, RTLD_NOW | RTLD_LOCAL);
  EXPECT_NE(handle, nullptr) << dlerror();
  const auto find = reinterpret_cast<FakeCublasLtControls* (*)()>(dlsym(handle, "FakeCublasLt"));
  return *find();
}

// Memory for the library and for what is quantised for it, NaN where nobody has written.
class BlasRoom {
 public:
  explicit BlasRoom(int64_t bytes = int64_t{4} << 20) : bytes_(bytes) {
    memory_ = std::aligned_alloc(256, static_cast<size_t>(bytes + kWorkspace));
    Forget();
  }
  ~BlasRoom() { std::free(memory_); }
  BlasRoom(const BlasRoom&) = delete;
  BlasRoom& operator=(const BlasRoom&) = delete;

  void Forget() { std::memset(memory_, 0xff, static_cast<size_t>(bytes_ + kWorkspace)); }

  // Nothing was quantised into it.
  bool IsForgotten() const {
    const auto* const bytes = static_cast<const uint8_t*>(memory_);
    return std::all_of(bytes, bytes + bytes_, [](uint8_t byte) { return byte == 0xff; });
  }

  std::unique_ptr<BlasProducts> Products(
      int compute_major = 9, int compute_minor = 0,
      std::function<void(const std::string&)> when_refused = nullptr) {
    std::string why;
    auto* const workspace = static_cast<uint8_t*>(memory_) + bytes_;
    std::unique_ptr<CublasLt> library =
        CublasLt::Load(REMPART_FAKE_CUBLAS_LT, workspace, kWorkspace, &why);
    EXPECT_NE(library, nullptr) << why;
    return std::make_unique<BlasProducts>(
        std::move(library), Table(),
        BlasProducts::Options{compute_major, compute_minor, memory_, bytes_,
                              std::move(when_refused)});
  }

 private:
  static constexpr int64_t kWorkspace = 4096;

  const int64_t bytes_;
  void* memory_;
};

}  // namespace rempart::kernels::cuda
