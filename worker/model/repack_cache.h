// SPDX-License-Identifier: Apache-2.0
// Repacked weights on disk, so that a second start maps them instead of computing them, and
// processes on one machine share their pages.
//
// One folder holds one file per (model file, kernel tier, layout). Whoever may write there decides
// what the model computes, so the folder must belong to the worker's user and be writable by nobody
// else; anything else is refused, and a file in it is held to the same rule. A file is written
// under a name of its own, synced and renamed: starts at the same time see a whole file or none.
//
// What a file is found by, and how it is trusted:
//  1. The source's size, time of change, inode and a hash of samples of its bytes; the tier; the
//     shapes; and a fingerprint of the layout, which is made by repacking a small known matrix, so
//     that kernels cannot change their layout unseen.
//  2. Its header carries a checksum, and the SHA-256 of the payload and of the whole source, which
//     the worker compares after the start, off the critical path.
// Blocking I/O; methods are thread-safe. What goes through a whole payload looks every MiB whether
// it is to stop, and then is Cancelled.
#pragma once

#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/hash/sha256.h"
#include "worker/model/packed_memory.h"

namespace rempart::worker {

// What tells one source from another without reading all of it. Unavailable when it cannot be read.
absl::StatusOr<Sha256> SampleSource(const std::string& path);

struct RepackKey {
  Sha256 source = {};  // of SampleSource
  std::string tier;    // name of the kernel table
  Sha256 layout = {};  // of shapes, types, offsets and the fingerprint
  int64_t bytes = 0;   // of the payload
};

struct RepackDigests {
  Sha256 source;   // SHA-256 of the source that was repacked
  Sha256 payload;  // of the repacked bytes as they were written
};

// As RepackDigests has it.
absl::StatusOr<Sha256> HashPayload(absl::Span<const uint8_t> payload, std::stop_token stop);

class RepackCache {
 public:
  // FailedPrecondition, naming the folder and the fix, when it cannot be made or trusted.
  static absl::StatusOr<RepackCache> Open(const std::string& folder);

  struct Found {
    PackedMemory memory;
    RepackDigests digests;
  };
  // NotFound when there is none, or none that is valid (which is removed).
  absl::StatusOr<Found> Find(const RepackKey& key) const;
  // Keeps `payload`, and removes the files used longest ago beyond kMaxFiles. ResourceExhausted
  // when the disk is full. One that is stopped leaves nothing.
  absl::Status Store(const RepackKey& key, absl::Span<const uint8_t> payload,
                     const Sha256& source_digest, std::stop_token stop = {}) const;
  void Remove(const RepackKey& key) const;

  const std::string& folder() const { return folder_; }
  static constexpr size_t kMaxFiles = 16;

 private:
  explicit RepackCache(std::string folder) : folder_(std::move(folder)) {}
  std::string PathOf(const RepackKey& key) const;
  void RemoveOldest() const;

  std::string folder_;
};

}  // namespace rempart::worker
