// SPDX-License-Identifier: Apache-2.0
// The order of reads as a specification.
#include "worker/model/read_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;

// What no test reads: only addresses count.
constexpr uint8_t first_file[1000] = {}, second_file[600] = {}, memory[100] = {};
const std::vector<FileExtent> files = {{first_file, 1000}, {second_file, 600}};

WeightCopy Whole(const uint8_t* from, int64_t bytes) {
  WeightCopy copy;
  copy.from = from;
  copy.row_bytes = copy.stride_bytes = bytes;
  return copy;
}
WeightCopy Columns(const uint8_t* from, int64_t rows, int64_t bytes, int64_t stride) {
  return {from, rows, bytes, stride};
}

// "0[100,200)" is of the first file; "+8": the copy's bytes begin there; "h150": hashed from there;
// "=1@64": of the copy 1, after 64 of its bytes.
std::string Words(const ReadPiece& piece) {
  std::string words = absl::StrCat(piece.file == kInMemory ? "m" : absl::StrCat(piece.file), "[",
                                   piece.begin, ",", piece.end, ")");
  if (piece.skip > 0) absl::StrAppend(&words, "+", piece.skip);
  if (piece.hash_from > 0) absl::StrAppend(&words, "h", piece.hash_from);
  if (piece.copy != kOnlyHashed) absl::StrAppend(&words, "=", piece.copy, "@", piece.at);
  return words;
}
std::vector<std::string> Plan(const std::vector<WeightCopy>& copies, const ReadOptions& options) {
  std::vector<std::string> words;
  for (const ReadPiece& piece : MakeReadPlan(copies, files, options).pieces) {
    words.push_back(Words(piece));
  }
  return words;
}

TEST(ReadPlan, AFileIsReadFromItsBeginningWhateverTheOrderOfTheCopies) {
  EXPECT_THAT(
      Plan({Whole(first_file + 500, 100), Whole(first_file + 8, 200)}, {.piece_bytes = 128}),
      ElementsAre("0[8,136)=1@0", "0[136,208)=1@128", "0[500,600)=0@0"));
}

TEST(ReadPlan, FilesAreReadInTurn) {
  const std::vector<WeightCopy> copies = {Whole(first_file, 300), Whole(second_file, 200),
                                          Whole(memory, 50)};
  EXPECT_THAT(Plan(copies, {.piece_bytes = 100, .files_at_once = 2}),
              ElementsAre("0[0,100)=0@0", "1[0,100)=1@0", "0[100,200)=0@100", "1[100,200)=1@100",
                          "0[200,300)=0@200", "m[0,50)=2@0"));
  EXPECT_THAT(Plan(copies, {.piece_bytes = 100, .files_at_once = 1}),
              ElementsAre("0[0,100)=0@0", "0[100,200)=0@100", "0[200,300)=0@200", "1[0,100)=1@0",
                          "1[100,200)=1@100", "m[0,50)=2@0"));
}

TEST(ReadPlan, RowsThatAreCutByColumnsAreReadWithWhatLiesBetweenThem) {
  // Rows of 40 bytes, of which the second 10 are wanted.
  const auto copies = {Columns(first_file + 10, 5, 10, 40)};
  EXPECT_THAT(Plan(copies, {.piece_bytes = 80}),
              ElementsAre("0[10,60)=0@0", "0[90,140)=0@20", "0[170,180)=0@40"));
}

TEST(ReadPlan, WhatTheDeviceMakesOfRowsComesInWholeRows) {
  WeightCopy copy = Columns(first_file, 5, 48, 48);
  copy.on_device = [](int64_t, int64_t) {};
  EXPECT_THAT(Plan({copy}, {.piece_bytes = 100}),
              ElementsAre("0[0,96)=0@0", "0[96,192)=0@96", "0[192,240)=0@192"));
  // One that is longer than a piece, too.
  const ReadPlan plan = MakeReadPlan({copy}, files, {.piece_bytes = 32});
  EXPECT_EQ(plan.pieces.size(), 5u);
  EXPECT_EQ(plan.largest, 48);
}

TEST(ReadPlan, ForADigestEveryByteIsReadOnceAndInOrder) {
  // A gap of 8, one that is longer than a piece, bytes that two copies want, and an end.
  EXPECT_THAT(
      Plan({Whole(first_file + 8, 92), Whole(first_file + 450, 100), Whole(first_file + 500, 50),
            Whole(second_file, 600)},
           {.piece_bytes = 200, .files_at_once = 1, .hash_files = true}),
      ElementsAre("0[0,100)+8=0@0", "0[100,300)h100", "0[300,450)h300", "0[450,550)h450=1@0",
                  "0[500,550)h550=2@0", "0[550,750)h550", "0[750,950)h750", "0[950,1000)h950",
                  "1[0,200)=3@0", "1[200,400)h200=3@200", "1[400,600)h400=3@400"));
}

TEST(ReadPlan, FilesThatNoCopyWantsAreReadForTheirDigest) {
  EXPECT_THAT(Plan({}, {.piece_bytes = 600, .files_at_once = 2, .hash_files = true}),
              ElementsAre("0[0,600)", "1[0,600)", "0[600,1000)h600"));
  EXPECT_THAT(Plan({}, {.piece_bytes = 600}), ElementsAre());
}

}  // namespace
}  // namespace rempart::worker
