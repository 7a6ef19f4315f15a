// SPDX-License-Identifier: Apache-2.0
// A message as a stream of bytes: a header of fixed size, then the rows of its region.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "worker/comm/link.h"
#include "worker/comm/record_cipher.h"

namespace rempart::worker {

inline constexpr int64_t kHeaderBytes = 24;

enum class WireKind : uint8_t { kMessage = 1, kAbort = 2, kGoodbye = 3 };

// What a header says.
struct WireHeader {
  WireKind kind = WireKind::kMessage;
  MessageId id;
  int64_t bytes = 0;     // that follow
  int blamed_rank = -1;  // of kAbort
};

class WireMessage {
 public:
  WireMessage() = default;
  // To send, or to receive into: the header's bytes are then those that arrive.
  WireMessage(const WireHeader& header, const Region& region);

  int64_t total() const { return kHeaderBytes + region_.bytes(); }
  // Where the bytes [offset, offset + bytes) lie, in order; at most `most` pieces, which may then
  // hold less. Replaces the content of `pieces`.
  void PiecesOf(int64_t offset, int64_t bytes, size_t most, std::vector<Piece>& pieces);
  // Of the header's bytes as they are now.
  WireHeader header() const;
  uint8_t* header_data() { return header_.data(); }

 private:
  std::array<uint8_t, kHeaderBytes> header_ = {};
  Region region_;
};

}  // namespace rempart::worker
