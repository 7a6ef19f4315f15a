// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/wire_message.h"

#include <algorithm>
#include <cstring>

namespace rempart::worker {

// kind u8, activity u8, blamed rank i16, part u32, collective u64, bytes u64; little-endian.
WireMessage::WireMessage(const WireHeader& header, const Region& region) : region_(region) {
  header_[0] = static_cast<uint8_t>(header.kind);
  header_[1] = static_cast<uint8_t>(header.id.activity);
  const auto blamed_rank = static_cast<int16_t>(header.blamed_rank);
  std::memcpy(&header_[2], &blamed_rank, 2);
  std::memcpy(&header_[4], &header.id.part, 4);
  std::memcpy(&header_[8], &header.id.collective, 8);
  std::memcpy(&header_[16], &header.bytes, 8);
}

WireHeader WireMessage::header() const {
  WireHeader header;
  header.kind = static_cast<WireKind>(header_[0]);
  header.id.activity = static_cast<Activity>(header_[1]);
  int16_t blamed_rank;
  std::memcpy(&blamed_rank, &header_[2], 2);
  header.blamed_rank = blamed_rank >= 0 && blamed_rank < kMaxRanks ? blamed_rank : -1;
  std::memcpy(&header.id.part, &header_[4], 4);
  std::memcpy(&header.id.collective, &header_[8], 8);
  std::memcpy(&header.bytes, &header_[16], 8);
  return header;
}

void WireMessage::PiecesOf(int64_t offset, int64_t bytes, size_t most, std::vector<Piece>& pieces) {
  pieces.clear();
  if (offset < kHeaderBytes && bytes > 0) {
    const int64_t piece = std::min(bytes, kHeaderBytes - offset);
    pieces.push_back({header_.data() + offset, piece});
    offset += piece;
    bytes -= piece;
  }
  offset -= kHeaderBytes;
  const bool whole = region_.rows == 1 || region_.stride_bytes == region_.row_bytes;
  const int64_t row_bytes = whole ? region_.bytes() : region_.row_bytes;
  while (bytes > 0 && pieces.size() < most) {
    const int64_t row = offset / row_bytes;
    const int64_t in_row = offset % row_bytes;
    const int64_t piece = std::min(bytes, row_bytes - in_row);
    pieces.push_back({region_.data + row * region_.stride_bytes + in_row, piece});
    offset += piece;
    bytes -= piece;
  }
}

}  // namespace rempart::worker
