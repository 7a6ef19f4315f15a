// SPDX-License-Identifier: Apache-2.0
// In which order the bytes of a rank's weights are read: all of its matrices cut into pieces of a
// few MiB, each file from its beginning to its end, several files in turn. Storage gives most when
// it is asked for long runs by several readers at once; a matrix at a time is neither. Pure.
//
// Rows that are cut by columns are read with what lies between them: a long run is read faster than
// many short ones, and the ranks of a pod find in the page cache what another one has read.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace rempart::worker {

inline constexpr int64_t kReadPieceBytes = int64_t{4} << 20;
inline constexpr int kFilesAtOnce = 4;

// What becomes of numbers on their way to the device.
enum class Recast : uint8_t { kNone, kF32ToBf16, kF16ToBf16 };
// Bytes that `bytes` of a file become.
int64_t RecastBytes(Recast recast, int64_t bytes);

// Rows that go into device memory side by side.
struct WeightCopy {
  const uint8_t* from = nullptr;  // in a mapped file, or anywhere
  int64_t rows = 1;
  int64_t row_bytes = 0;     // that are wanted of each
  int64_t stride_bytes = 0;  // from one to the next
  Recast recast = Recast::kNone;
  uint8_t* to = nullptr;
  // When set, each piece is whole rows, is copied to the beginning of `to`, and this then queues
  // what the device makes of these rows. The next piece is copied after that.
  std::function<void(int64_t first_row, int64_t rows)> on_device = {};
  // When set, the rows are made by it instead of read, by any reader; row_bytes are what it makes
  // of each. Pieces are whole `make_rows`, but for the last.
  std::function<void(int64_t first_row, int64_t rows, uint8_t* to)> make = {};
  int64_t make_rows = 1;
};

// A file as it is mapped.
struct FileExtent {
  const uint8_t* data = nullptr;
  int64_t bytes = 0;
};

inline constexpr int kInMemory = -1;
inline constexpr int kOnlyHashed = -1;

// What is read at once: the bytes [begin, end) of a file, or, in memory, from `memory` on. Those
// that a copy wants begin `skip` bytes later.
struct ReadPiece {
  int file = kInMemory;
  const uint8_t* memory = nullptr;
  int64_t begin = 0, end = 0;
  int64_t hash_from = 0;   // those before have been hashed with an earlier piece
  int copy = kOnlyHashed;  // the index of a WeightCopy
  int64_t skip = 0;
  int64_t at = 0;     // of the copy's wanted bytes, how many go before this piece
  int64_t bytes = 0;  // of them in this piece

  int64_t size() const { return end - begin; }
};

struct ReadOptions {
  int64_t piece_bytes = kReadPieceBytes;  // a multiple of 4
  int files_at_once = kFilesAtOnce;
  // Every byte of every file is read, in order within a file, for its digest.
  bool hash_files = false;
};

struct ReadPlan {
  std::vector<ReadPiece> pieces;  // in the order in which they are begun
  int64_t largest = 0;            // bytes of one: piece_bytes, or one longer row
};

ReadPlan MakeReadPlan(absl::Span<const WeightCopy> copies, absl::Span<const FileExtent> files,
                      const ReadOptions& options);

}  // namespace rempart::worker
