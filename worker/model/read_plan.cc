// SPDX-License-Identifier: Apache-2.0
#include "worker/model/read_plan.h"

#include <algorithm>
#include <deque>

#include "common/check.h"

namespace rempart::worker {
namespace {

// Where a copy's bytes are: the file, or kInMemory.
int FileOf(const WeightCopy& copy, absl::Span<const FileExtent> files) {
  for (size_t i = 0; i < files.size(); ++i) {
    const FileExtent& file = files[i];
    if (copy.from >= file.data && copy.from < file.data + file.bytes) return static_cast<int>(i);
  }
  return kInMemory;
}

// The pieces of one copy, `base` being the beginning of what it lies in.
void CutCopy(const WeightCopy& copy, const ReadPiece& like, const uint8_t* base,
             int64_t piece_bytes, std::vector<ReadPiece>& pieces) {
  ReadPiece piece = like;
  const int64_t wanted = copy.rows * copy.row_bytes;
  const int64_t start = base == nullptr ? 0 : copy.from - base;
  if (copy.stride_bytes == copy.row_bytes && !copy.on_device && !copy.make) {
    for (piece.at = 0; piece.at < wanted; piece.at += piece.bytes) {
      piece.bytes = std::min(piece_bytes, wanted - piece.at);
      piece.begin = start + piece.at;
      piece.end = piece.begin + piece.bytes;
      pieces.push_back(piece);
    }
    return;
  }
  const int64_t unit = copy.make_rows;
  const int64_t units_at_once = std::max<int64_t>(1, piece_bytes / (copy.stride_bytes * unit));
  const int64_t rows_at_once = units_at_once * unit;
  for (int64_t row = 0; row < copy.rows; row += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, copy.rows - row);
    piece.at = row * copy.row_bytes;
    piece.bytes = rows * copy.row_bytes;
    piece.begin = start + row * copy.stride_bytes;
    piece.end = piece.begin + (rows - 1) * copy.stride_bytes + copy.row_bytes;
    pieces.push_back(piece);
  }
}

// Adds what lies between the pieces of a file, and says of each piece what it adds to the hash.
std::vector<ReadPiece> CoverFile(const std::vector<ReadPiece>& pieces, int file, int64_t file_bytes,
                                 int64_t piece_bytes) {
  std::vector<ReadPiece> all;
  int64_t covered = 0;
  const auto cover_until = [&](int64_t until) {
    while (covered < until) {
      ReadPiece gap;
      gap.file = file;
      gap.begin = gap.hash_from = covered;
      gap.end = covered = std::min(until, covered + piece_bytes);
      all.push_back(gap);
    }
  };
  for (ReadPiece piece : pieces) {
    // A short gap is read with the piece behind it.
    const int64_t gap = piece.begin - covered;
    if (gap > 0 && gap + piece.size() <= piece_bytes) {
      piece.begin = covered;
      piece.skip = gap;
    }
    cover_until(piece.begin);
    piece.hash_from = std::min(std::max(covered, piece.begin), piece.end);
    covered = std::max(covered, piece.end);
    all.push_back(piece);
  }
  cover_until(file_bytes);
  return all;
}

// Takes from `at_once` files in turn; the next one begins when one has ended.
std::vector<ReadPiece> TakeInTurn(std::vector<std::vector<ReadPiece>> files, int at_once) {
  struct Cursor {
    const std::vector<ReadPiece>* pieces;
    size_t next;
  };
  std::vector<ReadPiece> order;
  std::deque<Cursor> turn;
  size_t next_file = 0;
  const auto begin_next = [&] {
    while (next_file < files.size() && files[next_file].empty()) ++next_file;
    if (next_file < files.size()) turn.push_back({&files[next_file++], 0});
  };
  for (int i = 0; i < std::max(1, at_once); ++i) begin_next();
  while (!turn.empty()) {
    Cursor cursor = turn.front();
    turn.pop_front();
    order.push_back((*cursor.pieces)[cursor.next++]);
    if (cursor.next < cursor.pieces->size()) {
      turn.push_back(cursor);
    } else {
      begin_next();
    }
  }
  return order;
}

}  // namespace

int64_t RecastBytes(Recast recast, int64_t bytes) {
  return recast == Recast::kF32ToBf16 ? bytes / 2 : bytes;
}

ReadPlan MakeReadPlan(absl::Span<const WeightCopy> copies, absl::Span<const FileExtent> files,
                      const ReadOptions& options) {
  CHECK(options.piece_bytes > 0 && options.piece_bytes % 4 == 0);
  // The last is what lies in memory.
  std::vector<std::vector<ReadPiece>> by_file(files.size() + 1);
  for (size_t i = 0; i < copies.size(); ++i) {
    ReadPiece like;
    like.copy = static_cast<int>(i);
    like.file = FileOf(copies[i], files);
    const bool in_memory = like.file == kInMemory;
    if (in_memory) like.memory = copies[i].from;
    const size_t group = in_memory ? files.size() : static_cast<size_t>(like.file);
    CutCopy(copies[i], like, in_memory ? nullptr : files[group].data, options.piece_bytes,
            by_file[group]);
  }
  for (size_t i = 0; i < files.size(); ++i) {
    std::stable_sort(by_file[i].begin(), by_file[i].end(),
                     [](const ReadPiece& a, const ReadPiece& b) { return a.begin < b.begin; });
    if (!options.hash_files) continue;
    by_file[i] = CoverFile(by_file[i], static_cast<int>(i), files[i].bytes, options.piece_bytes);
  }
  ReadPlan plan;
  plan.pieces = TakeInTurn(std::move(by_file), options.files_at_once);
  for (const ReadPiece& piece : plan.pieces) plan.largest = std::max(plan.largest, piece.size());
  return plan;
}

}  // namespace rempart::worker
