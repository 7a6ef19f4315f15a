// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/vllm.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmarks/gpu/child.h"
#include "benchmarks/gpu/course.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace rempart::benchmarks {
namespace {

// vLLM fetches its kernels, captures graphs and compiles before the first token.
constexpr absl::Duration kStart = absl::Minutes(4);

// As load.cc has it: the first sequences are in the middle of their answers, each that ends is
// followed by a whole one, and the window opens when all have their first token. vLLM's engine runs
// as its LLM class has it by default, in a process of its own: there step() waits for tokens, so it
// is not called when none are to come.
constexpr char kScript[] = R"py(
import json, random, sys, tempfile, time
shape, fp8, at_once, context, ramp, window = sys.argv[1], sys.argv[2] == "fp8", *(float(x) for x in sys.argv[3:7])
try:
    import vllm
except ImportError as error:
    sys.exit(print(f"missing\t{sys.executable} has no vLLM: {error}"))
folder = tempfile.mkdtemp()
with open(folder + "/config.json", "w") as file:
    file.write(shape)
vocabulary = json.loads(shape)["vocab_size"]
llm = vllm.LLM(model=folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", quantization="fp8" if fp8 else None,
               kv_cache_dtype="fp8" if fp8 else "auto", max_model_len=int(context), max_num_seqs=int(at_once), seed=1)
engine = llm.llm_engine
print(f"figure\tvllm_version_{vllm.__version__}\t1\t", flush=True)
for case in sys.argv[7:]:
    prompt, new = (int(x) for x in case.split(","))
    state = {"last": 0, "begun": set(), "tokens": {}, "total": 0}
    def submit(length, count):
        state["last"] += 1
        ids = [random.randrange(vocabulary) for _ in range(length)]
        params = vllm.SamplingParams(temperature=0, ignore_eos=True, max_tokens=count, detokenize=False)
        engine.add_request(f"{case}/{state['last']}", {"prompt_token_ids": ids}, params)
    def step():
        for output in engine.step():
            known = len(output.outputs[0].token_ids)
            state["total"] += known - state["tokens"].get(output.request_id, 0)
            state["tokens"][output.request_id] = known
            state["begun"].add(output.request_id)
            if output.finished:
                submit(prompt, new)
    for i in range(int(at_once)):
        left = max(1, new * (i + 1) // int(at_once))
        submit(prompt + new - left, left)
    for i in range(int(at_once)):
        submit(prompt, new)
    end = time.monotonic() + ramp
    while len(state["begun"]) < at_once and time.monotonic() < end:
        step()
    opened, before = time.monotonic(), state["total"]
    while time.monotonic() < opened + window:
        step()
    rate = (state["total"] - before) / (time.monotonic() - opened)
    print(f"figure\tload_{prompt}_{new}_tokens_per_s\t{rate}\ttok/s", flush=True)
    engine.abort_request([f"{case}/{i}" for i in range(1, state["last"] + 1)])
)py";

// config.json of a Llama.
std::string ShapeJson(const worker::ModelConfig& config) {
  return absl::StrFormat(
      R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": %d, )"
      R"("intermediate_size": %d, "num_hidden_layers": %d, "num_attention_heads": %d, )"
      R"("num_key_value_heads": %d, "head_dim": %d, "vocab_size": %d, "rms_norm_eps": 1e-5, )"
      R"("max_position_embeddings": %d, "rope_theta": 500000.0, "hidden_act": "silu", )"
      R"("tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 0, )"
      R"("eos_token_id": 1})",
      config.hidden, config.ffn, static_cast<int64_t>(config.layers.size()), config.heads,
      config.kv_heads, config.head_dim, config.vocabulary, config.context_length);
}

}  // namespace

absl::StatusOr<PartResult> MeasureVllm(const std::string& python, const worker::ModelConfig& config,
                                       const worker::DeviceModelOptions& options,
                                       const LoadSizes& sizes, absl::Time deadline) {
  std::vector<std::string> words = {python,
                                    "-c",
                                    kScript,
                                    ShapeJson(config),
                                    options.weights_to_fp8 ? "fp8" : "bf16",
                                    absl::StrCat(options.max_sequences),
                                    absl::StrCat(options.context_length),
                                    absl::StrCat(absl::ToDoubleSeconds(sizes.ramp)),
                                    absl::StrCat(absl::ToDoubleSeconds(sizes.window))};
  absl::Time longest = SteadyNow() + kStart;
  for (const LoadCase& load : sizes.cases) {
    words.push_back(absl::StrCat(load.prompt_tokens, ",", load.new_tokens));
    longest += sizes.ramp + sizes.window;
  }
  const Orphans orphans;
  absl::StatusOr<std::unique_ptr<Child>> child = Child::Start(words, {});
  if (!child.ok()) return NotRun(absl::StrCat("--vllm: ", std::string(child.status().message())));
  PartResult result;
  std::string missing;
  TakeResult(**child, "vllm", std::min(longest, deadline), result, &missing);
  if (!missing.empty()) return NotRun(missing);
  return result;
}

}  // namespace rempart::benchmarks
