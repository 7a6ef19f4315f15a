// SPDX-License-Identifier: Apache-2.0
#include "worker/model/decode_graphs.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace rempart::worker {

absl::Status DecodeGraphs::Start(const DecodeShape& shape,
                                 absl::FunctionRef<absl::Status()> queue) {
  const auto [found, is_new] = decodes_.try_emplace(shape);
  Decode& decode = found->second;
  decode.started = ++starts_;
  if (is_new) return queue();
  if (decode.graph == nullptr && records_) RETURN_IF_ERROR(Record(decode, queue));
  return decode.graph == nullptr ? queue() : device_.Start(*decode.graph);
}

void DecodeGraphs::Clear() {
  decodes_.clear();
  graphs_ = 0;
  records_ = true;
}

absl::Status DecodeGraphs::Record(Decode& decode, absl::FunctionRef<absl::Status()> queue) {
  if (graphs_ == kMost) MakeRoom();
  absl::StatusOr<std::unique_ptr<DeviceGraph>> graph = device_.Record(queue);
  if (graph.ok()) {
    decode.graph = *std::move(graph);
    ++graphs_;
    return absl::OkStatus();
  }
  if (!IsNotRecorded(graph.status())) return graph.status();
  if (has_peers_) {
    return DeviceUnavailable(absl::StrCat(
        "a decode step was not recorded as a graph, as every rank has to: ",
        std::string(graph.status().message()), ": leave the GPU more room, by engine.kvCacheMib"));
  }
  records_ = false;
  LogWarning("worker",
             "a decode step was not recorded as a graph: batches of sizes that have none are "
             "queued kernel by kernel from now on, which is slower; leave the GPU more room, by "
             "engine.kvCacheMib",
             {{"error", graph.status().message()}, {"graphs", graphs_}});
  return absl::OkStatus();
}

// Its shape is as one that was never met.
void DecodeGraphs::MakeRoom() {
  auto oldest = decodes_.end();
  for (auto it = decodes_.begin(); it != decodes_.end(); ++it) {
    if (it->second.graph == nullptr) continue;
    if (oldest == decodes_.end() || it->second.started < oldest->second.started) oldest = it;
  }
  decodes_.erase(oldest);
  --graphs_;
}

}  // namespace rempart::worker
