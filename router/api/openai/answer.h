// SPDX-License-Identifier: Apache-2.0
// Neutral answers written as OpenAI's bodies and stream events. Pure functions; any thread.
// A stream is: StreamStart, StreamDelta..., StreamEnd; after a failure: ErrorEvent alone. Events
// are complete ("data: ...\n\n").
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "router/api/request.h"

namespace rempart::router::openai {

enum class Route { kChat, kCompletions };

// One whole choice: all its deltas put together.
using WholeChoice = ChoiceDelta;

std::string ErrorBody(const ApiError& error);
std::string ErrorEvent(const ApiError& error);

// `choice_count` choices begin: chat's role events; nothing for completions.
std::string StreamStart(Route route, const AnswerHead& head, int32_t choice_count);
// Text first, then, in an event of its own for chat, the reason for the end.
std::string StreamDelta(Route route, const AnswerHead& head, const ChoiceDelta& delta);
// The usage, if asked for, and the end marker.
std::string StreamEnd(Route route, const AnswerHead& head, const Usage& usage);

// The body of an answer that is not streamed. Choices are in the order of their index.
std::string WholeAnswer(Route route, const AnswerHead& head, absl::Span<const WholeChoice> choices,
                        const Usage& usage);

struct ModelCard {
  std::string served_name;
  int64_t created_unix_seconds = 0;
  int32_t context_length = 0;  // 0: not known
};
// GET /v1/models/{id} and /v1/models.
std::string ModelBody(const ModelCard& card);
std::string ModelListBody(absl::Span<const ModelCard> cards);

}  // namespace rempart::router::openai
