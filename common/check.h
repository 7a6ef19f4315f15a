// SPDX-License-Identifier: Apache-2.0
// CHECK: programmer errors crash with the values. Never for what comes from outside the process.
#pragma once

#include <sstream>

namespace rempart {

// Streams a message to standard error and aborts when destroyed.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

}  // namespace rempart

#define CHECK(condition)      \
  if (condition) [[likely]] { \
  } else                      \
    ::rempart::CheckFailure(__FILE__, __LINE__, #condition).stream()
#define REMPART_CHECK_OP(op, a, b) CHECK((a)op(b)) << " [" << (a) << " vs " << (b) << "] "
#define CHECK_EQ(a, b) REMPART_CHECK_OP(==, a, b)
#define CHECK_NE(a, b) REMPART_CHECK_OP(!=, a, b)
#define CHECK_LT(a, b) REMPART_CHECK_OP(<, a, b)
#define CHECK_LE(a, b) REMPART_CHECK_OP(<=, a, b)
#define CHECK_GT(a, b) REMPART_CHECK_OP(>, a, b)
#define CHECK_GE(a, b) REMPART_CHECK_OP(>=, a, b)
