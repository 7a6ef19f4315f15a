// SPDX-License-Identifier: Apache-2.0
// The part that puts vLLM under load, with a Python package "vllm" made for it, which generates a
// token for every request in each step.
#include "benchmarks/gpu/vllm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/shapes.h"
#include "common/clock.h"

namespace rempart::benchmarks {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Its clock goes with its steps, so that a rate is a number of tokens for a step, on any machine.
constexpr char kPackage[] = R"py(
import json, os, time
# It runs as it is served.
assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ
__version__ = "0.0.made_up"
clock = [0.0]
time.monotonic = lambda: clock[0]
class SamplingParams:
    def __init__(self, temperature, ignore_eos, max_tokens, detokenize):
        self.max_tokens = max_tokens
class Output: pass
class Engine:
    def __init__(self, most, context):
        self.most, self.context, self.waiting, self.running = most, context, [], []
    def add_request(self, name, prompt, params):
        assert isinstance(name, str) and 0 < params.max_tokens
        assert len(prompt["prompt_token_ids"]) + params.max_tokens <= self.context
        one = Output()
        one.token_ids, one.most = [], params.max_tokens
        output = Output()
        output.request_id, output.outputs, output.finished = name, [one], False
        self.waiting.append(output)
    def step(self):
        # An engine in a process of its own would be waited for for ever.
        assert self.waiting or self.running
        clock[0] += 0.002
        while self.waiting and len(self.running) < self.most:
            self.running.append(self.waiting.pop(0))
        seen = list(self.running)
        for output in seen:
            output.outputs[0].token_ids.append(7)
            output.finished = len(output.outputs[0].token_ids) == output.outputs[0].most
        self.running = [output for output in seen if not output.finished]
        return seen
    def abort_request(self, names):
        self.waiting = [o for o in self.waiting if o.request_id not in names]
        self.running = [o for o in self.running if o.request_id not in names]
    def has_unfinished_requests(self):
        return bool(self.waiting or self.running)
class LLM:
    def __init__(self, model, load_format, quantization, max_model_len, max_num_seqs, **others):
        shape = json.load(open(model + "/config.json"))
        assert shape["num_hidden_layers"] == 3 and shape["hidden_size"] == 256, shape
        assert load_format == "dummy" and quantization == "fp8"
        self.llm_engine = Engine(max_num_seqs, max_model_len)
)py";

class VllmTest : public testing::Test {
 protected:
  VllmTest() : folder_(absl::StrCat("/tmp/rempart_vllm_", getpid())) {
    options_.context_length = 64;
    options_.max_sequences = 4;
    options_.weights_to_fp8 = true;
    sizes_.cases = {{8, 8, 1}, {24, 4, 1}};
    sizes_.ramp = absl::Seconds(10);
    sizes_.window = absl::Milliseconds(300);
  }
  ~VllmTest() override {
    unsetenv("PYTHONPATH");
    std::filesystem::remove_all(folder_);
  }
  void Install(const std::string& package) {
    std::filesystem::create_directories(folder_);
    std::ofstream(folder_ + "/vllm.py") << package;
    setenv("PYTHONPATH", folder_.c_str(), 1);
  }
  absl::StatusOr<PartResult> Measure(const std::string& python = "python3") {
    return MeasureVllm(python, SmallDecoders()[0].config, options_, sizes_);
  }

  const std::string folder_;
  worker::DeviceModelOptions options_;
  LoadSizes sizes_;
};

TEST_F(VllmTest, GivesTheRateOfASteadyLoad) {
  Install(kPackage);
  const auto result = Measure();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, IsEmpty());
  ASSERT_EQ(result->figures.size(), 3u);
  EXPECT_EQ(result->figures[0].name, "vllm_version_0.0.made_up");
  EXPECT_EQ(result->figures[1].name, "load_8_8_tokens_per_s");
  EXPECT_EQ(result->figures[2].name, "load_24_4_tokens_per_s");
  // Four tokens in two milliseconds.
  for (size_t i = 1; i < 3; ++i) EXPECT_NEAR(result->figures[i].value, 2000, 1e-3);
}

TEST_F(VllmTest, WithoutItItHasNotRun) {
  EXPECT_THAT(std::string(Measure("/nowhere/python3").status().message()), HasSubstr("--vllm: "));
  Install("raise ImportError('no such thing')");
  EXPECT_THAT(std::string(Measure().status().message()), HasSubstr("has no vLLM: no such thing"));
}

// Its engine is a process of its own, which does not end with the one that was killed.
TEST_F(VllmTest, NothingOfItIsLeftAfterTheDeadline) {
  Install(
      absl::StrCat("import subprocess, time\n"
                   "class LLM:\n    def __init__(self, **all):\n"
                   "        engine = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
                   "        open('",
                   folder_,
                   "/engine', 'w').write(f'{engine.pid}\\n')\n"
                   "        time.sleep(1000)\n"));
  const absl::Time start = SteadyNow();
  const auto result =
      MeasureVllm("python3", SmallDecoders()[0].config, options_, sizes_, start + absl::Seconds(5));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, testing::ElementsAre(HasSubstr("it was ended at its deadline")));
  EXPECT_LT(SteadyNow() - start, absl::Seconds(30));
  pid_t engine = 0;
  std::ifstream(folder_ + "/engine") >> engine;
  ASSERT_GT(engine, 0);
  EXPECT_EQ(kill(engine, 0), -1) << "it is gone";
}

TEST_F(VllmTest, AnErrorOfItIsToldAsSuch) {
  Install("class LLM:\n    def __init__(self, **all):\n        raise RuntimeError('no GPU')\n");
  const auto result = Measure();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->wrong, testing::ElementsAre("vllm: ended with exit status 1"));
}

}  // namespace
}  // namespace rempart::benchmarks
