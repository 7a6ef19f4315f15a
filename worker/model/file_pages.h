// SPDX-License-Identifier: Apache-2.0
// Which file the pages of a mapping come from, for the moment when one cannot be read: the file was
// cut, or its disk or volume is gone. The system then sends SIGBUS to the thread that touched it,
// and nothing can be computed without it.
#pragma once

#include <cstdint>
#include <string>

#include "absl/types/span.h"

namespace rempart::worker {

// While it lives, a SIGBUS within `bytes` names `path`. Movable. Of a great many at a time the last
// are not named.
class FilePages {
 public:
  FilePages() = default;
  FilePages(absl::Span<const uint8_t> bytes, const std::string& path);
  FilePages(FilePages&& other) noexcept;
  FilePages& operator=(FilePages&& other) noexcept;
  ~FilePages();

 private:
  int slot_ = -1;
};

// From now on a page that cannot be read ends the process with `exit_code` and a line of the log
// that names the file and what to do. SIGBUS anywhere else stays what it is. Once, before threads.
void EndOnUnreadablePages(int exit_code);

}  // namespace rempart::worker
