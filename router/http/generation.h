// SPDX-License-Identifier: Apache-2.0
// One request for text: its prompts become tickets, their deltas one answer, streamed or whole.
// Lives on its shard's thread; destroying it cancels what still runs.
#pragma once

#include <vector>

#include "router/api/openai/answer.h"
#include "router/http/access.h"

namespace rempart::router {

class Generation : public Exchange {
 public:
  Generation(const ShardContext& shard, Connection& connection, AccessRecord record,
             openai::Route route, ApiRequest request);
  ~Generation() override;

  // May answer within the call.
  void Submit();
  void OnEnd(bool client_left, uint64_t bytes_sent) override;

 private:
  void HandleDelta(int32_t prompt_index, TicketDelta delta);
  void HandleError(const ApiError& error);
  void BeginStream();
  void Complete();
  void CancelAll();

  const ShardContext& shard_;
  Connection& connection_;
  AccessRecord record_;
  const openai::Route route_;
  const ApiRequest request_;
  AnswerHead head_;
  std::vector<uint64_t> ticket_ids_;
  std::vector<openai::WholeChoice> choices_;  // text only when not streamed
  size_t choices_finished_ = 0;
  bool has_first_token_ = false;
  bool streaming_ = false;
  bool ended_ = false;
};

}  // namespace rempart::router
