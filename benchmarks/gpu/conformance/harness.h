// SPDX-License-Identifier: Apache-2.0
// Conformance of a device's ops: what every case needs. A case makes seeded inputs, runs one op on
// the device and compares with the definition in kernels/reference. The same cases run over the
// emulator in ./test and on a GPU in benchmarks/gpu/run.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/status_macros.h"
#include "kernels/cuda/numbers.h"
#include "kernels/device_ops.h"
#include "worker/device/device.h"

namespace rempart::benchmarks {

// How far the worst element of one comparison is from what is allowed: 100 is the limit.
struct Finding {
  std::string op;
  std::string what;  // dtype and shape
  double percent = 0;
};

// What a case runs on and reports to.
class Trial {
 public:
  Trial(worker::Device& device, std::string op, std::vector<Finding>& findings)
      : device(device), op_(std::move(op)), findings_(findings) {}

  // |actual - expected| <= absolute + relative * |expected| for each element.
  void Compare(const std::string& what, absl::Span<const float> actual,
               absl::Span<const float> expected, double absolute, double relative);
  // As Compare with the one that fits better, as a whole: what a device may choose between.
  struct Expectation {
    std::vector<float> values;
    double absolute;
  };
  void CompareEither(const std::string& what, absl::Span<const float> actual,
                     absl::Span<const Expectation> expected, double relative);
  // All or nothing: 0 or 1000 percent.
  void Require(const std::string& what, bool holds);

  worker::Device& device;
  std::mt19937 random{20261};

 private:
  const std::string op_;
  std::vector<Finding>& findings_;
};

struct Case {
  const char* op;  // a name of REMPART_DEVICE_OPS
  absl::Status (*run)(Trial& trial);
};
// At least one for every op.
const std::vector<Case>& Cases();

// An error of the device, not a wrong result.
struct OpError {
  std::string op;
  absl::Status status;
};
// Runs all cases, those of other ops after an error, too, unless the device is lost with it: then
// they have its error. `findings` are those of all that has run.
std::vector<OpError> RunConformance(worker::Device& device, std::vector<Finding>& findings);

std::vector<float> RandomFloats(std::mt19937& random, int64_t count, float deviation = 1.0f);
// Rounded to BF16, as bits, and the values that the bits mean.
std::vector<uint16_t> ToBits(absl::Span<const float> values);
std::vector<float> ToFloats(absl::Span<const uint16_t> bits);
// Rounds each to BF16.
void RoundToBf16(std::vector<float>& values);

// An array on the device.
template <class T>
class DeviceArray {
 public:
  static absl::StatusOr<DeviceArray> Make(worker::Device& device, int64_t count) {
    DeviceArray array;
    array.count_ = count;
    ASSIGN_OR_RETURN(array.buffer_,
                     worker::DeviceBuffer::Make(device, count * static_cast<int64_t>(sizeof(T))));
    return array;
  }
  static absl::StatusOr<DeviceArray> From(worker::Device& device, absl::Span<const T> values) {
    ASSIGN_OR_RETURN(DeviceArray array, Make(device, static_cast<int64_t>(values.size())));
    device.CopyIn(array.data(), values.data(), array.buffer_.bytes());
    RETURN_IF_ERROR(device.Finish());
    return array;
  }
  absl::StatusOr<std::vector<T>> Read(worker::Device& device) const {
    std::vector<T> values(count_);
    device.CopyOut(values.data(), data(), buffer_.bytes());
    RETURN_IF_ERROR(device.Finish());
    return values;
  }
  T* data() const { return buffer_.template as<T>(); }

 private:
  worker::DeviceBuffer buffer_;
  int64_t count_ = 0;
};

// A weight matrix on the device in some storage format, and its values.
struct TestMatrix {
  kernels::DeviceMatrix matrix;
  std::vector<float> values;  // [rows, cols]
  DeviceArray<uint8_t> data;
  DeviceArray<float> scales;
  DeviceArray<uint16_t> group_scales;
  DeviceArray<uint8_t> group_zeros;
};
struct MatrixFormat {
  kernels::DeviceFormat format;
  kernels::DType gguf = kernels::DType::kQ8_0;
};
const std::vector<MatrixFormat>& AllMatrixFormats();
std::string FormatName(const MatrixFormat& format);
// Columns of which the format's rows consist.
int64_t FormatColumns(const MatrixFormat& format);
absl::StatusOr<TestMatrix> MakeMatrix(Trial& trial, const MatrixFormat& format, int64_t rows,
                                      int64_t cols);

// The cases, by file.
absl::Status EmbedCase(Trial& trial);
absl::Status AddNormCase(Trial& trial);
absl::Status RopeStoreCase(Trial& trial);
absl::Status ActivateCase(Trial& trial);
absl::Status QuantizeRowsCase(Trial& trial);
absl::Status ScaleSumsCase(Trial& trial);
absl::Status AdvanceCase(Trial& trial);
absl::Status CopyBlocksCase(Trial& trial);
absl::Status HashCase(Trial& trial);
absl::Status MatvecCase(Trial& trial);
absl::Status MatmulCase(Trial& trial);
absl::Status AttentionPrefillCase(Trial& trial);
absl::Status AttentionDecodeCase(Trial& trial);
absl::Status SampleCase(Trial& trial);
absl::Status AllReduceCase(Trial& trial);
absl::Status AllReduceNormCase(Trial& trial);

}  // namespace rempart::benchmarks
