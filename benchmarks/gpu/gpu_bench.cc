// SPDX-License-Identifier: Apache-2.0
// gpu_bench: everything that benchmarks/gpu/run shows, on the first GPU that CUDA shows. Needs no
// files: a seed makes its models.
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmarks/gpu/course.h"
#include "benchmarks/gpu/parity.h"
#include "benchmarks/gpu/parts.h"
#include "benchmarks/gpu/seeded_model.h"
#include "common/status_macros.h"
#include "worker/device/gpu.h"

namespace rempart::benchmarks {
namespace {

enum ExitCode { kGood = 0, kBad = 1, kUsage = 2, kOutOfTime = 3, kNoGpu = 6 };

constexpr char kUsageText[] =
    "usage: gpu_bench [--out FOLDER] [--minutes M] [--label TEXT] [--fresh]\n"
    "Runs on the first GPU that CUDA shows, and writes FOLDER/report.md (./gpu_bench.out). Parts "
    "that\n"
    "FOLDER has from the same GPU and label are not run again, unless --fresh. Begins no part "
    "that\n"
    "would end after M (9) minutes.\n"
    "Exit status: 0 all parts are there and good, 1 something is wrong, 2 wrong flags, 3 out of "
    "time:\n"
    "run the same again to go on, 6 no GPU to run on.\n";

struct Flags {
  std::string out = "gpu_bench.out";
  std::string label;
  double minutes = 9;
  bool fresh = false;
};

absl::StatusOr<Flags> ParseFlags(const std::vector<std::string>& words) {
  Flags flags;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--fresh") {
      flags.fresh = true;
      continue;
    }
    if (word != "--out" && word != "--minutes" && word != "--label") {
      return absl::InvalidArgumentError(absl::StrCat("unknown flag ", word));
    }
    if (i + 1 == words.size()) return absl::InvalidArgumentError(word + " needs a value");
    const std::string& value = words[++i];
    if (word == "--out") flags.out = value;
    if (word == "--label") flags.label = value;
    if (word == "--minutes" &&
        (!absl::SimpleAtod(value, &flags.minutes) || !(flags.minutes > 0 && flags.minutes <= 60))) {
      return absl::InvalidArgumentError(
          absl::StrCat("--minutes ", value, " must be more than 0 and at most 60"));
    }
  }
  return flags;
}

worker::DeviceModelOptions SpeedOptions() {
  worker::DeviceModelOptions options;
  options.context_length = 2048;
  options.max_step_tokens = 2048;
  options.max_sequences = 256;
  return options;
}

// The GPU is opened for each part anew: what one leaves behind is not another's.
std::vector<Part> MakeParts(const Peaks& peaks) {
  const auto open = [] { return worker::OpenGpu(0); };
  const auto check = [open](std::function<absl::StatusOr<PartResult>(worker::Device&)> run) {
    return [open, run]() -> absl::StatusOr<PartResult> {
      ASSIGN_OR_RETURN(const std::unique_ptr<worker::Device> device, open());
      return run(*device);
    };
  };
  const auto speed = [open, peaks](bool to_fp8) {
    return [=]() -> absl::StatusOr<PartResult> {
      worker::DeviceModelOptions options = SpeedOptions();
      options.weights_to_fp8 = to_fp8;
      ASSIGN_OR_RETURN(const Ready ready, GetReady(open, Llama8B(), options));
      ASSIGN_OR_RETURN(PartResult result, MeasureSpeed(*ready.model, peaks, SpeedSizes()));
      result.figures.insert(result.figures.begin(), ready.times.figures.begin(),
                            ready.times.figures.end());
      result.wrong.insert(result.wrong.end(), ready.times.wrong.begin(), ready.times.wrong.end());
      return result;
    };
  };
  const std::string shape =
      "Seeded random weights of Llama-3.1-8B's shape. Decode: 128 tokens after 128 of each "
      "sequence; prefill: 2048 tokens "
      "of one. host_gap: how much longer a step at batch 1 takes when the host fetches each token "
      "before it starts the next "
      "step. ready: from opening the GPU to the first token, with weights in host memory.";
  return {
      {"conformance",
       "Every op, dtype and odd shape against its definition (benchmarks/gpu/conformance); 100 % "
       "is the limit.",
       absl::Seconds(90), check(CheckConformance)},
      {"parity", "Greedy tokens of seeded random decoders against the CPU with F32 activations.",
       absl::Seconds(60), check([](worker::Device& device) {
         std::vector<NamedConfig> decoders = SmallDecoders();
         decoders.push_back(SmolLm2());
         decoders.push_back(Gemma3());
         return CheckParity(device, decoders);
       })},
      {"speed_bf16", shape, absl::Seconds(120), speed(false)},
      {"speed_fp8", shape + " Weights in FP8 with a scale for each row.", absl::Seconds(120),
       speed(true)}};
}

int Run(const Flags& flags) {
  const auto cards = worker::FindGpus();
  if (!cards.ok() || cards->empty()) {
    std::cerr
        << "gpu_bench: there is no GPU to run on: "
        << (cards.ok() ? "CUDA shows none" : std::string(cards.status().message()))
        << ". Run it on a machine with an NVIDIA GPU and driver, with a binary that was built "
           "with the cmake preset cuda\n";
    return kNoGpu;
  }
  const worker::CudaDeviceInfo& card = cards->front();
  Peaks peaks;
  peaks.bytes_per_second = static_cast<double>(card.memory_bytes_per_second);
  peaks.bf16_flops =
      PeakBf16Flops(card.compute_major, card.compute_minor, card.multiprocessors, card.clock_hz);
  const std::string key = absl::StrCat(card.name, " ", card.pci_bus_id, " ", flags.label);
  const OutcomeStore store(flags.out, key);
  const std::vector<Part> parts = MakeParts(peaks);
  if (flags.fresh) {
    for (const Part& part : parts) store.Forget(part.name);
  }
  const auto ending = RunCourse(
      parts, store, absl::Minutes(flags.minutes), [] { return absl::Now(); },
      [](const std::string& line) { std::cout << line << std::endl; });
  if (!ending.ok()) {
    std::cerr << "gpu_bench: " << ending.status().message() << "\n";
    return kUsage;
  }
  const std::string title =
      absl::StrCat(card.name, ", ", absl::FormatTime("%Y-%m-%d", absl::Now(), absl::UTCTimeZone()),
                   flags.label.empty() ? "" : ", " + flags.label);
  std::ofstream(flags.out + "/report.md") << Report(parts, store, title);
  std::cout << flags.out << "/report.md" << std::endl;
  switch (*ending) {
    case Ending::kComplete:
      return kGood;
    case Ending::kBad:
      return kBad;
    case Ending::kOutOfTime:
      return kOutOfTime;
  }
  return kBad;
}

int Main(const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    if (word != "--help" && word != "-h") continue;
    std::cout << kUsageText;
    return kGood;
  }
  const absl::StatusOr<Flags> flags = ParseFlags(words);
  if (flags.ok()) return Run(*flags);
  std::cerr << "gpu_bench: " << flags.status().message() << "\n" << kUsageText;
  return kUsage;
}

}  // namespace
}  // namespace rempart::benchmarks

int main(int argc, char** argv) {
  return rempart::benchmarks::Main(std::vector<std::string>(argv + 1, argv + argc));
}
