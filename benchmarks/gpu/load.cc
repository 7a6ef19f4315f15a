// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/load.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/inputs.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "worker/config/step_defaults.h"
#include "worker/engine/engine.h"
#include "worker/engine/model_runner.h"

namespace rempart::benchmarks {
namespace {

// The model as the engine sees it, how long the engine was in it, and how long it had nothing to
// do.
class TimedModel : public worker::ModelRunner, private worker::StepPipeline {
 public:
  explicit TimedModel(worker::DeviceTransformer& model) : model_(model) {}
  int32_t vocabulary_size() const override {
    return static_cast<int32_t>(model_.config().vocabulary);
  }
  absl::Status Forward(const worker::StepBatch& batch, absl::Span<float> logits,
                       absl::Span<worker::DrawnToken> drawn) override {
    RETURN_IF_ERROR(Start(batch).status());
    return Finish(logits, drawn);
  }
  worker::StepPipeline* pipeline() override { return this; }

  double seconds() const { return seconds_; }
  double idle_seconds() const { return idle_seconds_; }
  int64_t steps() const { return steps_; }
  int64_t steps_ahead() const { return steps_ahead_; }
  const absl::Status& first_error() const { return first_error_; }

 private:
  absl::StatusOr<bool> Start(const worker::StepBatch& batch) override {
    const absl::Time start = SteadyNow();
    absl::StatusOr<bool> started = model_.Start(batch, /*draws=*/true);
    const absl::Time end = SteadyNow();
    seconds_ += absl::ToDoubleSeconds(end - start);
    if (first_error_.ok()) first_error_ = started.status();
    if (!started.ok()) return started;
    if (running_++ > 0) {
      ++steps_ahead_;
    } else if (steps_ > 0) {
      idle_seconds_ += absl::ToDoubleSeconds(end - idle_since_);
    }
    ++steps_;
    return started;
  }
  absl::Status Finish(absl::Span<float> logits, absl::Span<worker::DrawnToken> drawn) override {
    const absl::Time start = SteadyNow();
    const absl::Status status = model_.Finish(logits, drawn);
    seconds_ += SecondsSince(start);
    if (--running_ == 0) idle_since_ = SteadyNow();
    if (first_error_.ok()) first_error_ = status;
    return status;
  }

  worker::DeviceTransformer& model_;
  double seconds_ = 0;
  double idle_seconds_ = 0;  // from the end of a step to the start of the next, where none ran
  int64_t steps_ = 0;
  int64_t steps_ahead_ = 0;
  int running_ = 0;
  absl::Time idle_since_;
  absl::Status first_error_;
};

class NoText : public worker::Vocabulary {
 public:
  std::string TokenBytes(int32_t) const override { return ""; }
  bool EndsGeneration(int32_t) const override { return false; }
};

// What has been counted up to a moment.
struct Count {
  double seconds = 0;  // of the model
  double idle_seconds = 0;
  int64_t steps = 0;
  int64_t steps_ahead = 0;
  int64_t tokens = 0;
  absl::Time at;
};

class Load {
 public:
  Load(worker::DeviceTransformer& model, const worker::DeviceModelOptions& options,
       const LoadCase& load)
      : load_(load),
        at_once_(SequencesAtOnce(load, options.max_sequences, model.plan().kv_blocks)),
        model_(model),
        engine_(EngineOptions(model, options), &model_, &vocabulary_, &clock_,
                [this](const worker::StepResult& result) { Take(result); }) {}

  int64_t at_once() const { return at_once_; }

  // Steps until the load is steady, at most for `ramp`; then for `window`.
  absl::StatusOr<std::pair<Count, Count>> Run(absl::Duration ramp, absl::Duration window) {
    for (int64_t i = 0; i < at_once_; ++i) {
      const int64_t left = std::max<int64_t>(1, load_.new_tokens * (i + 1) / at_once_);
      Submit(load_.prompt_tokens + load_.new_tokens - left, left);
    }
    for (int64_t i = 0; i < at_once_; ++i) Submit(load_.prompt_tokens, load_.new_tokens);
    absl::Time end = SteadyNow() + ramp;
    while (begun_ < at_once_ && SteadyNow() < end) RETURN_IF_ERROR(Step());
    const Count opened = Now();
    end = opened.at + window;
    while (SteadyNow() < end) RETURN_IF_ERROR(Step());
    return std::make_pair(opened, Now());
  }

 private:
  worker::EngineOptions EngineOptions(const worker::DeviceTransformer& model,
                                      const worker::DeviceModelOptions& options) const {
    worker::EngineOptions engine;
    engine.limits.max_step_tokens = static_cast<int32_t>(options.max_step_tokens);
    engine.limits.max_sequences = static_cast<int32_t>(at_once_);
    engine.limits.block_size = static_cast<int32_t>(kBlock);
    engine.context_length = static_cast<int32_t>(options.context_length);
    engine.blocks_total = static_cast<int32_t>(model.plan().kv_blocks);
    engine.max_waiting = static_cast<int32_t>(4 * at_once_);
    engine.max_step_time = absl::Milliseconds(worker::kMaxStepMilliseconds);
    return engine;
  }

  void Submit(int64_t prompt_tokens, int64_t new_tokens) {
    worker::SequenceRequest request;
    request.request_id = ++last_id_;
    request.prompt_ids = SeededIds(prompt_tokens, model_.vocabulary_size(), last_id_);
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.max_tokens = static_cast<int32_t>(new_tokens);
    engine_.Submit(std::move(request));
  }

  absl::Status Step() {
    ended_ = 0;
    engine_.Step();
    for (; ended_ > 0; --ended_) Submit(load_.prompt_tokens, load_.new_tokens);
    RETURN_IF_ERROR(model_.first_error());
    return failure_;
  }

  void Take(const worker::StepResult& result) {
    for (const worker::SequenceDelta& delta : result.deltas) {
      tokens_ += static_cast<int64_t>(delta.token_ids.size());
      if (delta.prompt.has_value()) ++begun_;
      if (delta.finish.has_value()) ++ended_;
      if (delta.failure.has_value()) failure_ = absl::InternalError(delta.failure->message);
    }
  }

  Count Now() const {
    return {model_.seconds(), model_.idle_seconds(), model_.steps(), model_.steps_ahead(), tokens_,
            SteadyNow()};
  }

  const LoadCase load_;
  const int64_t at_once_;
  TimedModel model_;
  const NoText vocabulary_;
  const SystemClock clock_;
  uint64_t last_id_ = 0;
  int64_t begun_ = 0;   // have their first token
  int64_t ended_ = 0;   // in this step
  int64_t tokens_ = 0;  // generated
  absl::Status failure_;
  worker::Engine engine_;  // last: it calls Take
};

}  // namespace

int64_t SequencesAtOnce(const LoadCase& load, int64_t max_sequences, int64_t kv_blocks) {
  const int64_t blocks = BlocksOf(load.prompt_tokens + load.new_tokens);
  return std::max<int64_t>(1, std::min(max_sequences, kv_blocks / blocks));
}

absl::StatusOr<PartResult> MeasureLoad(worker::DeviceTransformer& model,
                                       const worker::DeviceModelOptions& options,
                                       const LoadSizes& sizes) {
  PartResult result;
  result.figures = {
      {"max_step_tokens", static_cast<double>(options.max_step_tokens), "tokens of a step"},
      {"max_step_time", static_cast<double>(worker::kMaxStepMilliseconds),
       "ms, of one with decodes"},
      {"max_sequences", static_cast<double>(options.max_sequences), "at once"},
      {"context_length", static_cast<double>(options.context_length), "tokens"}};
  for (const LoadCase& each : sizes.cases) {
    const std::string name = absl::StrCat("load_", each.prompt_tokens, "_", each.new_tokens);
    Load load(model, options, each);
    ASSIGN_OR_RETURN(const auto counts, load.Run(sizes.ramp, sizes.window));
    const auto& [opened, closed] = counts;
    const double seconds = absl::ToDoubleSeconds(closed.at - opened.at);
    const auto steps = static_cast<double>(std::max<int64_t>(1, closed.steps - opened.steps));
    const double rate = static_cast<double>(closed.tokens - opened.tokens) / seconds;
    const auto add = [&](const char* what, double value, const char* unit) {
      result.figures.push_back({absl::StrCat(name, "_", what), value, unit});
    };
    add("tokens_per_s", rate, "tok/s");
    add("of_tensorrt_llm", 100 * rate / each.published,
        "% of its FP8 on H200; target 80, then 100");
    add("sequences", static_cast<double>(load.at_once()), "");
    add("step", 1000 * seconds / steps, "ms");
    add("in_model", 100 * (closed.seconds - opened.seconds) / seconds, "% of the time");
    add("begun_ahead", 100 * static_cast<double>(closed.steps_ahead - opened.steps_ahead) / steps,
        "% of the steps");
    add("host_gap", (closed.idle_seconds - opened.idle_seconds) / steps * 1e6,
        "us a step; target: at most 20");
    if (closed.tokens == opened.tokens) result.wrong.push_back(name + ": no token was generated");
  }
  return result;
}

}  // namespace rempart::benchmarks
