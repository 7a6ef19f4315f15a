// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/link.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

std::string Describe(int rank, const MessageId& id, int64_t bytes) {
  return absl::StrCat("rank ", rank, " is in ", ActivityName(id.activity), " ", CollectiveText(id),
                      " part ", id.part, " with ", bytes, " bytes");
}

}  // namespace

const char* ActivityName(Activity activity) {
  switch (activity) {
    case Activity::kIdle:
      return "idle";
    case Activity::kAllReduce:
      return "all_reduce";
    case Activity::kAllGather:
      return "all_gather";
    case Activity::kGather:
      return "gather";
    case Activity::kBroadcast:
      return "broadcast";
    case Activity::kBarrier:
      return "barrier";
    case Activity::kSend:
      return "send";
    case Activity::kReceive:
      return "receive";
  }
  return "unknown";
}

std::string CollectiveText(const MessageId& id) {
  return absl::StrCat(id.collective & ~kOfPart, id.collective & kOfPart ? " of a part" : "");
}

absl::Status Disagreement(int rank, const MessageId& ours, int64_t our_bytes, int peer,
                          const MessageId& theirs, int64_t their_bytes) {
  return absl::InternalError(
      absl::StrCat("the ranks have diverged: ", Describe(rank, ours, our_bytes), ", ",
                   Describe(peer, theirs, their_bytes)));
}

Loss PeerGone(int peer, absl::string_view detail) {
  return {absl::UnavailableError(absl::StrCat("rank ", peer, " is gone: ", detail)), peer};
}

Loss PeerAborted(int peer, int blamed_rank) {
  const std::string blame = blamed_rank < 0 ? "" : absl::StrCat(" and blames rank ", blamed_rank);
  return {absl::AbortedError(absl::StrCat("rank ", peer, " ended the epoch", blame)), blamed_rank};
}

}  // namespace rempart::worker
