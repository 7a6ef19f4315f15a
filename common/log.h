// SPDX-License-Identifier: Apache-2.0
// One structured line per event on standard error: time, level, component, message, key=value
// pairs. Any thread may call it. It never receives prompt or completion text: log ids, counts and
// names.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace rempart {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// A value already rendered as text; quoted in the line when it holds spaces.
struct LogField {
  template <typename T>
  LogField(absl::string_view k, const T& v) : key(k), value(absl::StrCat(v)) {}
  absl::string_view key;
  std::string value;
};

void Log(LogLevel level, absl::string_view component, absl::string_view message,
         std::initializer_list<LogField> fields = {});
// Lines below this level are dropped; kInfo until changed.
void SetLogLevel(LogLevel level);

inline void LogInfo(absl::string_view component, absl::string_view message,
                    std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kInfo, component, message, fields);
}
inline void LogWarning(absl::string_view component, absl::string_view message,
                       std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kWarning, component, message, fields);
}
inline void LogError(absl::string_view component, absl::string_view message,
                     std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kError, component, message, fields);
}

}  // namespace rempart
