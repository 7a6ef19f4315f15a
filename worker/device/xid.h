// SPDX-License-Identifier: Apache-2.0
// What an XID means and what follows from it, after NVIDIA's XID catalogue
// (docs.nvidia.com/deploy/xid-errors, "Analyzing Xid Errors with the Xid Catalog", R575). The rule:
// a GPU is broken where the catalogue's immediate action is to reset it, to reboot its node, or a
// workflow for memory or NVLink that begins with either; also when memory of this process is lost
// (94). All else is reported and changes nothing. docs/howto/watch_gpus.md has the table.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace rempart::worker {

struct XidMeaning {
  int64_t xid = 0;
  bool is_broken = false;
  const char* meaning = "";  // ends "XID 79: "
  const char* advice = "";   // what a person does about it
};

// Also of an XID that is not in the table: it is reported as such.
XidMeaning MeaningOf(int64_t xid);

// Ascending.
absl::Span<const XidMeaning> KnownXids();

}  // namespace rempart::worker
