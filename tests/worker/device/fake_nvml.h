// SPDX-License-Identifier: Apache-2.0
// Steers the libnvidia-ml of fake_nvml.cc, which is loaded as the driver's would be: two GPUs on
// one NVLink switch (0 and 1), and one without links or ECC (2).
#pragma once

#include <dlfcn.h>

#include <cstdint>

#include "common/check.h"

namespace rempart::worker {

class FakeNvml {
 public:
  explicit FakeNvml(const char* path) : library_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    CHECK(library_ != nullptr);
    Call<void()>("fake_nvml_reset")();
  }
  // Another loader's functions stay: this only gives up its own handle.
  ~FakeNvml() { dlclose(library_); }
  FakeNvml(const FakeNvml&) = delete;
  FakeNvml& operator=(const FakeNvml&) = delete;

  // The driver reports an XID now.
  void Raise(unsigned gpu, unsigned long long xid) {
    Call<void(unsigned, unsigned long long)>("fake_nvml_raise")(gpu, xid);
  }
  // "gpus" (how many there are), "ecc", "remap_pending", "remap_failed", "recovery" (the action),
  // "lost", "used_mib", "no_events", "stuck_ms" (a call that waits for events takes so long).
  void Set(const char* what, unsigned gpu, long long value) {
    CHECK(Call<bool(const char*, unsigned, long long)>("fake_nvml_set")(what, gpu, value));
  }
  int open_count() { return Call<int()>("fake_nvml_open_count")(); }

 private:
  template <class F>
  F* Call(const char* name) {
    auto* function = reinterpret_cast<F*>(dlsym(library_, name));
    CHECK(function != nullptr);
    return function;
  }

  void* const library_;
};

}  // namespace rempart::worker
