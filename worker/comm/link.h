// SPDX-License-Identifier: Apache-2.0
// One peer of a rank, as its communicator sees it: at most one message each way at a time, moved
// without ever blocking. Start, Advance and Cancel are called by the thread that runs the
// collective; Close and loss by any.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "worker/comm/communicator.h"

namespace rempart::worker {

// `rows` pieces of `row_bytes`, `stride_bytes` apart. A region that is sent is only read.
struct Region {
  uint8_t* data = nullptr;
  int64_t rows = 0;
  int64_t row_bytes = 0;
  int64_t stride_bytes = 0;
  int64_t bytes() const { return rows * row_bytes; }
};

// Which part of which collective a message is: the two ends must agree.
struct MessageId {
  uint64_t collective = 0;
  uint32_t part = 0;
  Activity activity = Activity::kIdle;
  friend bool operator==(const MessageId&, const MessageId&) = default;
};

// Set in MessageId::collective by a part of a group, which counts its collectives by itself.
inline constexpr uint64_t kOfPart = uint64_t{1} << 63;
// "12", or "12 of a part".
std::string CollectiveText(const MessageId& id);

struct Message {
  MessageId id;
  Region region;
};

// Why a link carries nothing any more.
struct Loss {
  absl::Status status;
  int blamed_rank = -1;
};

enum class CloseKind : uint8_t {
  kAbort,    // the peer's communicator fails at once
  kGoodbye,  // the peer fails only when it wants more from this rank
};

class Link {
 public:
  enum class State { kPending, kDone, kLost };

  virtual ~Link() = default;
  // Either may be null. The regions stay valid until Advance has returned kDone or Cancel was
  // called.
  virtual void Start(const Message* send, const Message* receive) = 0;
  // Moves what can be moved now; sets `loss` when it returns kLost.
  virtual State Advance(Loss& loss) = 0;
  // Gives up what was started: the regions are not touched afterwards.
  virtual void Cancel() = 0;

  // To poll() while kPending, with poll_events(); -1: the peer wakes this rank's Waker instead.
  virtual int fd() const { return -1; }
  virtual short poll_events() const { return 0; }

  virtual void Close(CloseKind kind, int blamed_rank) = 0;
  // Set as soon as it is known that the peer is gone or has aborted, whether or not anything is in
  // flight.
  virtual std::optional<Loss> loss() const = 0;
};

// The error of two ends that are in different collectives, or in one of different sizes.
absl::Status Disagreement(int rank, const MessageId& ours, int64_t our_bytes, int peer,
                          const MessageId& theirs, int64_t their_bytes);
// The loss of a peer whose process or connection ended without a word.
Loss PeerGone(int peer, absl::string_view detail);
// The loss of a link because `peer` gave up.
Loss PeerAborted(int peer, int blamed_rank);

}  // namespace rempart::worker
