// SPDX-License-Identifier: Apache-2.0
// The fields that chat and completions share.
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "router/api/openai/fields.h"

namespace rempart::router::openai {
namespace {

namespace dom = simdjson::dom;
constexpr size_t kMaxSaltBytes = 1024;
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

Verdict ReadModel(absl::string_view name, dom::element value, Draft& draft) {
  return ReadText(name, value, draft.request.served_name);
}

template <std::optional<float> Sampling::*kTarget, int kLow, int kHigh>
Verdict ReadFloat(absl::string_view name, dom::element value, Draft& draft) {
  return ReadNumber(name, value, kLow, kHigh, draft.request.sampling.*kTarget);
}

Verdict ReadTopK(absl::string_view name, dom::element value, Draft& draft) {
  int64_t number = 0;
  if (Verdict bad = ReadInt(name, value, -1, kMaxInt32, number)) return bad;
  draft.request.sampling.top_k = number < 0 ? 0 : static_cast<int32_t>(number);
  return std::nullopt;
}

Verdict ReadRepetitionPenalty(absl::string_view name, dom::element value, Draft& draft) {
  return ReadNumber(name, value, 0.01, 100, draft.request.sampling.repetition_penalty);
}

Verdict ReadSeed(absl::string_view name, dom::element value, Draft& draft) {
  int64_t number = 0;
  if (Verdict bad = ReadInt(name, value, std::numeric_limits<int64_t>::min(),
                            std::numeric_limits<int64_t>::max(), number)) {
    return bad;
  }
  draft.request.sampling.seed = number;
  return std::nullopt;
}

Verdict ReadIgnoreEos(absl::string_view name, dom::element value, Draft& draft) {
  return ReadBool(name, value, draft.request.sampling.ignore_eos);
}

Verdict ReadLogitBias(absl::string_view name, dom::element value, Draft& draft) {
  dom::object biases;
  if (value.get(biases) != simdjson::SUCCESS) {
    return Invalid(name, "Invalid type for 'logit_bias': expected an object of token ids.");
  }
  for (const dom::key_value_pair entry : biases) {
    int32_t token_id = 0;
    const std::string param = absl::StrCat(name, ".", View(entry.key));
    if (!absl::SimpleAtoi(View(entry.key), &token_id) || token_id < 0) {
      return Invalid(name, absl::StrCat("Invalid key in 'logit_bias': '", View(entry.key),
                                        "' is not a token id."));
    }
    std::optional<float> bias;
    if (Verdict bad = ReadNumber(param, entry.value, -100, 100, bias)) return bad;
    draft.request.sampling.logit_bias.emplace_back(token_id, *bias);
  }
  return std::nullopt;
}

Verdict ReadMaxTokens(absl::string_view name, dom::element value, Draft& draft) {
  int64_t number = 0;
  if (Verdict bad = ReadInt(name, value, 1, kMaxInt32, number)) return bad;
  draft.max_tokens = static_cast<int32_t>(number);
  return std::nullopt;
}

Verdict ReadContinuations(absl::string_view name, dom::element value, Draft& draft) {
  int64_t number = 0;
  if (Verdict bad = ReadInt(name, value, 1, kMaxContinuations, number)) return bad;
  draft.request.n = static_cast<int32_t>(number);
  return std::nullopt;
}

Verdict ReadStop(absl::string_view name, dom::element value, Draft& draft) {
  std::vector<std::string>& stop = draft.request.stop;
  dom::array list;
  if (value.get(list) == simdjson::SUCCESS) {
    if (list.size() > kMaxStops) {
      return Invalid(name, absl::StrCat("Invalid 'stop': at most ", kMaxStops, " strings, but got ",
                                        list.size(), "."));
    }
    size_t index = 0;
    for (const dom::element entry : list) {
      std::string text;
      if (Verdict bad = ReadText(absl::StrCat(name, "[", index++, "]"), entry, text)) return bad;
      stop.push_back(std::move(text));
    }
  } else {
    std::string text;
    if (Verdict bad = ReadText(name, value, text)) return bad;
    stop.push_back(std::move(text));
  }
  for (const std::string& text : stop) {
    if (text.empty()) return Invalid(name, "Invalid 'stop': a stop string must not be empty.");
  }
  return std::nullopt;
}

Verdict ReadStream(absl::string_view name, dom::element value, Draft& draft) {
  return ReadBool(name, value, draft.request.stream);
}

Verdict ReadStreamOptions(absl::string_view name, dom::element value, Draft& draft) {
  dom::object options;
  if (value.get(options) != simdjson::SUCCESS) {
    return Invalid(name, "Invalid type for 'stream_options': expected an object.");
  }
  draft.has_stream_options = true;
  for (const dom::key_value_pair option : options) {
    const std::string param = absl::StrCat(name, ".", View(option.key));
    bool ignored = false;
    bool& target = option.key == "include_usage" ? draft.request.include_usage : ignored;
    if (option.key != "include_usage" && option.key != "include_obfuscation") {
      return Invalid(param, absl::StrCat("Unknown parameter: '", param, "'."));
    }
    if (option.value.is_null()) continue;
    if (Verdict bad = ReadBool(param, option.value, target)) return bad;
  }
  return std::nullopt;
}

Verdict WantsNotStored(absl::string_view name, dom::element value, Draft&) {
  bool store = true;
  if (value.get(store) == simdjson::SUCCESS && !store) return std::nullopt;
  return Unsupported(name, "");
}

Verdict WantsOrdinaryTier(absl::string_view name, dom::element value, Draft&) {
  std::string_view tier;
  if (value.get(tier) == simdjson::SUCCESS && (tier == "auto" || tier == "default")) {
    return std::nullopt;
  }
  return Unsupported(name, "");
}

Verdict ReadCacheSalt(absl::string_view name, dom::element value, Draft& draft) {
  if (Verdict bad = ReadText(name, value, draft.request.cache_salt)) return bad;
  if (draft.request.cache_salt.size() <= kMaxSaltBytes) return std::nullopt;
  return Invalid(name, absl::StrCat("'", name, "' is longer than ", kMaxSaltBytes, " bytes."));
}

constexpr Field kShared[] = {
    {"model", FieldRule::kApplied, ReadModel, ""},
    {"temperature", FieldRule::kApplied, ReadFloat<&Sampling::temperature, 0, 2>, ""},
    {"top_p", FieldRule::kApplied, ReadFloat<&Sampling::top_p, 0, 1>, ""},
    {"top_k", FieldRule::kApplied, ReadTopK, ""},
    {"min_p", FieldRule::kApplied, ReadFloat<&Sampling::min_p, 0, 1>, ""},
    {"frequency_penalty", FieldRule::kApplied, ReadFloat<&Sampling::frequency_penalty, -2, 2>, ""},
    {"presence_penalty", FieldRule::kApplied, ReadFloat<&Sampling::presence_penalty, -2, 2>, ""},
    {"repetition_penalty", FieldRule::kApplied, ReadRepetitionPenalty, ""},
    {"seed", FieldRule::kApplied, ReadSeed, ""},
    {"ignore_eos", FieldRule::kApplied, ReadIgnoreEos, ""},
    {"logit_bias", FieldRule::kApplied, ReadLogitBias, ""},
    {"max_tokens", FieldRule::kApplied, ReadMaxTokens, ""},
    {"n", FieldRule::kApplied, ReadContinuations, ""},
    {"stop", FieldRule::kApplied, ReadStop, ""},
    {"stream", FieldRule::kApplied, ReadStream, ""},
    {"stream_options", FieldRule::kApplied, ReadStreamOptions, ""},
    {"cache_salt", FieldRule::kApplied, ReadCacheSalt, ""},
    {"user", FieldRule::kInert, nullptr, "the API key says who calls"},
    {"metadata", FieldRule::kInert, nullptr, "nothing is stored that it could describe"},
    {"safety_identifier", FieldRule::kInert, nullptr, "the API key says who calls"},
    {"prompt_cache_key", FieldRule::kInert, nullptr, "prefixes are cached by content"},
    {"prompt_cache_retention", FieldRule::kInert, nullptr, "prefixes are cached while room lasts"},
    {"store", FieldRule::kRefused, WantsNotStored, "answers are not stored; use false"},
    {"service_tier", FieldRule::kRefused, WantsOrdinaryTier,
     "there is one tier; use 'auto' or 'default'"},
};

}  // namespace

absl::Span<const Field> SharedFields() { return kShared; }

}  // namespace rempart::router::openai
