// SPDX-License-Identifier: Apache-2.0
// Carries a plan of reads out (read_plan.h): threads read pieces from several files at once into
// pinned memory, hash them where that is asked for, and bring them into the device's formats, while
// the caller's thread queues the copies of those that are ready. Pieces that are read, ready or on
// their way share a fixed number of buffers: readers wait for the device, and it for them.
//
// Reads are asked of the file, not of its mapping: a page of a mapping that cannot be read would
// end the process, and page faults ask for little at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/hash/sha256.h"
#include "worker/device/device.h"
#include "worker/model/mapped_file.h"
#include "worker/model/read_plan.h"

namespace rempart::worker {

// Fills `to` from `offset` on; an error names the file.
using FileReader =
    std::function<absl::Status(const MappedFile& file, int64_t offset, absl::Span<uint8_t> to)>;
absl::Status ReadMappedFile(const MappedFile& file, int64_t offset, absl::Span<uint8_t> to);

struct StreamOptions {
  int threads = 4;
  ReadOptions read;
  FileReader reader = ReadMappedFile;
  std::stop_token stop = {};
  // Called, by the caller's thread, with the bytes queued for the device so far.
  std::function<void(int64_t bytes)> on_progress = {};
};

// What a stream spent its time on. Reading, hashing and copying go on side by side: the largest is
// what the others waited for.
struct StreamTimes {
  absl::Duration read;  // of a reader, on average: from the file, and into the device's formats
  absl::Duration hash;  // of the file that took longest
  absl::Duration wait;  // of the caller, for the device
};

struct StreamResult {
  StreamTimes times;
  std::vector<Sha256> hashes;  // of `files`, where they were asked for
};

// Returns when everything is on the device; what lies in memory has been read by then, too. After
// an error of a read, or Cancelled, what the device got is void.
absl::StatusOr<StreamResult> StreamWeights(Device& device, absl::Span<const WeightCopy> copies,
                                           absl::Span<const MappedFile> files,
                                           const StreamOptions& options);

}  // namespace rempart::worker
