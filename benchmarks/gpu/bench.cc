// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/bench.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmarks/gpu/child.h"
#include "benchmarks/gpu/course.h"
#include "benchmarks/gpu/load.h"
#include "benchmarks/gpu/parity.h"
#include "benchmarks/gpu/ranks.h"
#include "benchmarks/gpu/sanitize.h"
#include "benchmarks/gpu/vllm.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace rempart::benchmarks {
namespace {

enum ExitCode { kGood = 0, kBad = 1, kUsage = 2, kOutOfTime = 3, kNoGpu = 6 };

// A part in a process of its own is ended after so many times what it takes as a rule, or when the
// run's time is over by so much.
constexpr int kPatience = 3;
constexpr absl::Duration kGrace = absl::Seconds(20);

constexpr char kUsageText[] =
    R"(usage: gpu_bench [--out FOLDER] [--minutes M] [--label TEXT] [--fresh] [--only PART,...]
                 [--model FILE]... [--nccl LIBRARY] [--vllm PYTHON]
Runs on the first GPU that CUDA shows, and writes FOLDER/report.md (./gpu_bench.out). Parts that
FOLDER has from the same GPU, label, program and files are not run again, unless --fresh. Begins no
part that would end after M (9) minutes. --only: these parts and no others. --model: a GGUF file
whose tokens are compared with the CPU's, which computes them too: a small one. --nccl:
libnccl.so.2, where the loader does not find it. --vllm: a Python that has vLLM, to put under the
same load.
Exit status: 0 all parts are there and good, 1 something is wrong or could not run, 2 wrong flags,
3 out of time: run the same again to go on, 6 no GPU to run on.
)";

struct Flags {
  std::string out = "gpu_bench.out";
  std::string label;
  double minutes = 9;
  bool fresh = false;
  std::vector<std::string> only;
  std::vector<std::string> models;
  std::string nccl;
  std::string vllm;
};

absl::Status TakeFlag(const std::string& word, const std::string& value, Flags& flags) {
  if (word == "--out") {
    flags.out = value;
  } else if (word == "--label") {
    flags.label = value;
  } else if (word == "--only") {
    flags.only = absl::StrSplit(value, ',');
  } else if (word == "--model") {
    flags.models.push_back(value);
  } else if (word == "--nccl") {
    flags.nccl = value;
  } else if (word == "--vllm") {
    flags.vllm = value;
  } else if (!absl::SimpleAtod(value, &flags.minutes) ||
             !(flags.minutes > 0 && flags.minutes <= 60)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--minutes ", value, " must be more than 0 and at most 60"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Flags> ParseFlags(const std::vector<std::string>& words) {
  static const auto* const with_value = new std::vector<std::string>{
      "--out", "--minutes", "--label", "--only", "--model", "--nccl", "--vllm"};
  Flags flags;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--fresh") {
      flags.fresh = true;
      continue;
    }
    if (std::find(with_value->begin(), with_value->end(), word) == with_value->end()) {
      return absl::InvalidArgumentError(absl::StrCat("unknown flag ", word));
    }
    if (i + 1 == words.size()) return absl::InvalidArgumentError(word + " needs a value");
    RETURN_IF_ERROR(TakeFlag(word, words[++i], flags));
  }
  return flags;
}

bool Reaches(const worker::CudaDeviceInfo& card, const worker::CudaDeviceInfo& other) {
  return std::count(card.reaches.begin(), card.reaches.end(), other.ordinal) > 0;
}

// What the parts are made of.
struct Bench {
  const BenchMachine& machine;
  const BenchWork& work;
  const Flags& flags;
  std::vector<worker::CudaDeviceInfo> cards;
  absl::Time end;  // of the run

  // The GPU is opened for each part anew: what one leaves behind is not another's.
  absl::StatusOr<std::unique_ptr<worker::Device>> Open() const { return machine.open(0); }

  RankOptions ranks(absl::Time deadline) const {
    RankOptions options = work.ranks;
    options.program = OwnPath();
    options.nccl = flags.nccl;
    options.gpus = static_cast<int>(cards.size());
    options.gpus_reach_each_other =
        cards.size() > 1 && Reaches(cards[0], cards[1]) && Reaches(cards[1], cards[0]);
    options.deadline = deadline;
    return options;
  }
};

// What is done by the deadline, which is that of the part or of the run, whichever comes first: the
// part takes `usual` as a rule. What the end of the run has cut short is nobody's fault.
using BoundedRun = std::function<absl::StatusOr<PartResult>(absl::Time deadline)>;
absl::StatusOr<PartResult> WithinTheRun(const Bench& bench, absl::Duration usual,
                                        const BoundedRun& run) {
  const absl::Time longest = SteadyNow() + kPatience * usual;
  const absl::Time deadline = std::min(longest, bench.end + bench.work.pace * kGrace);
  absl::StatusOr<PartResult> result = run(deadline);
  const bool is_good = result.ok() && result->wrong.empty();
  if (is_good || deadline == longest || SteadyNow() < deadline) return result;
  return CutShort("was ended with the time of --minutes; run the same again to go on");
}

// A part of this process, whose work is in processes that it starts.
Part StartsItsOwn(const Bench& bench, std::string name, std::string about, absl::Duration usual,
                  BoundedRun run, std::string input = {}) {
  return {std::move(name),
          std::move(about),
          usual,
          [&bench, usual = bench.work.pace * usual, run = std::move(run)] {
            return WithinTheRun(bench, usual, run);
          },
          PartProcess::kThis,
          std::move(input)};
}

absl::StatusOr<PartResult> RunLoad(const Bench& bench, const worker::DeviceModelOptions& options) {
  ASSIGN_OR_RETURN(const Ready ready,
                   GetReady([&] { return bench.Open(); }, bench.work.large, options));
  return MeasureLoad(*ready.model, options, bench.work.load);
}

absl::StatusOr<PartResult> RunSpeed(const Bench& bench, worker::DeviceModelOptions options) {
  const ProductType type = options.weights_to_fp8 ? ProductType::kFP8 : ProductType::kBF16;
  ASSIGN_OR_RETURN(const Ready ready,
                   GetReady([&] { return bench.Open(); }, bench.work.large, options));
  ASSIGN_OR_RETURN(
      const PartResult speed,
      MeasureSpeed(*ready.model, PeaksOf(bench.cards.front(), type), bench.work.speed));
  PartResult result = ready.times;
  result.figures.push_back(
      {"max_step_tokens", static_cast<double>(options.max_step_tokens), "tokens of a step"});
  Append(speed, result);
  return result;
}

// Of a file: another of its name has another.
std::string IdentityOf(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  const auto written = std::filesystem::last_write_time(path, error).time_since_epoch().count();
  return absl::StrCat(std::filesystem::absolute(path, error).string(), " ", size, " ", written);
}

void AddChecks(const Bench& bench, std::vector<Part>& parts) {
  const auto check = [&bench](std::function<absl::StatusOr<PartResult>(worker::Device&)> run) {
    return [&bench, run = std::move(run)]() -> absl::StatusOr<PartResult> {
      ASSIGN_OR_RETURN(const std::unique_ptr<worker::Device> device, bench.Open());
      return run(*device);
    };
  };
  parts.push_back(
      {"conformance",
       "Every op, dtype and odd shape against its definition (benchmarks/gpu/conformance); 100 % "
       "is the limit.",
       absl::Seconds(60), check(CheckConformance), PartProcess::kItsOwn});
  parts.push_back({"parity",
                   "Greedy tokens of small seeded random decoders of the kinds of Llama, Mistral "
                   "and Qwen against the CPU with F32 activations; and of one with FP8 weights, "
                   "which the CPU has too, and one with an FP8 KV cache, with five times as much "
                   "allowed.",
                   absl::Seconds(60), check([&bench](worker::Device& device) {
                     std::vector<NamedConfig> decoders = bench.work.small;
                     decoders.insert(decoders.end(), bench.work.fp8.begin(), bench.work.fp8.end());
                     return CheckParity(device, decoders);
                   }),
                   PartProcess::kItsOwn});
  parts.push_back({"parity_exact",
                   "The same with seeded random weights of the exact shapes of SmolLM2-135M and "
                   "Gemma 3 270M.",
                   absl::Seconds(90), check([&bench](worker::Device& device) {
                     return CheckParity(device, bench.work.exact);
                   }),
                   PartProcess::kItsOwn});
  for (const std::string& path : bench.flags.models) {
    parts.push_back(
        {"parity_" + std::filesystem::path(path).stem().string(),
         absl::StrCat("The same with the weights of ", path, "."), absl::Seconds(90),
         check([path](worker::Device& device) { return CheckFileParity(device, path); }),
         PartProcess::kItsOwn, IdentityOf(path)});
  }
}

void AddRanks(const Bench& bench, std::vector<Part>& parts) {
  parts.push_back(StartsItsOwn(
      bench, "ranks",
      "Two NCCL ranks on one GPU, as threads of one process and as two processes, and on two GPUs "
      "where there are two: the tokens of one rank, step by step, from logits and sampled on the "
      "device. killed: one of the two processes is killed while both decode; stopped: one stops "
      "answering; the other has to notice within its deadline and to end with status 0. Linked as "
      "a worker links its GPUs, once with NCCL alone and once with every sum in one shot "
      "(one_shot), which has to be possible where the ranks share a GPU or read each other's.",
      absl::Seconds(120),
      [&bench](absl::Time deadline) { return CheckRanks(bench.ranks(deadline)); },
      bench.flags.nccl));
  parts.push_back(StartsItsOwn(
      bench, "allreduce",
      "One all-reduce of BF16 between two ranks by NCCL, in a recorded graph of fifty. norm: "
      "followed by residual and norm, by NCCL and a kernel and in one shot, as a worker measures "
      "them when it links its GPUs; one_shot_max: up to which size it would send them in one "
      "shot. In memory of NCCL's that is registered, as a worker's. On one GPU (gpus 1) the "
      "kernels share the multiprocessors and no link is crossed.",
      absl::Seconds(60),
      [&bench](absl::Time deadline) {
        return MeasureAllReduce(bench.ranks(deadline), bench.work.all_reduce_bytes);
      },
      bench.flags.nccl));
}

void AddProducts(const Bench& bench, std::vector<Part>& parts) {
  parts.push_back({"products",
                   "Dense products alone, of the shapes of Llama-3.1-8B, as the GPU chooses to "
                   "compute them: NAME_TOKENS_FORMAT. Activations are quantised anew each time "
                   "where the product is one of FP8 or int8.",
                   absl::Seconds(30),
                   [&bench]() -> absl::StatusOr<PartResult> {
                     ASSIGN_OR_RETURN(const std::unique_ptr<worker::Device> device, bench.Open());
                     return MeasureProducts(*device, bench.work.products);
                   },
                   PartProcess::kItsOwn});
}

void AddSpeeds(const Bench& bench, std::vector<Part>& parts) {
  const std::string shape =
      "Seeded random weights of Llama-3.1-8B's shape. Decode: 128 tokens after 128 of each "
      "sequence; prefill: 2048 tokens of one, in one step, as large as a worker's where a Model "
      "does not say otherwise. host_gap: how much longer a step at batch 1 takes when the host "
      "fetches each token before it starts the next step. ready: from opening the GPU to the first "
      "token, with weights in host memory.";
  worker::DeviceModelOptions options = bench.work.speed_options;
  parts.push_back({"speed_bf16", shape, absl::Seconds(60),
                   [&bench, options] { return RunSpeed(bench, options); }, PartProcess::kItsOwn});
  options.weights_to_fp8 = true;
  parts.push_back({"speed_fp8", shape + " Weights in FP8 with a scale for each row.",
                   absl::Seconds(60), [&bench, options] { return RunSpeed(bench, options); },
                   PartProcess::kItsOwn});
}

void AddLoads(const Bench& bench, std::vector<Part>& parts) {
  const std::string load =
      "Tokens per second of the engine and its scheduler over a model of Llama-3.1-8B's shape with "
      "seeded random weights, as many sequences at once as have room, more waiting. Steps have as "
      "many tokens, and take as long at most, as a worker's by default for so many sequences. "
      "load_P_N: prompts of P tokens, N new ones. Beside it what TensorRT-LLM 1.0 publishes for "
      "FP8 on an H200. in_model: of the time, what the engine spends starting steps and waiting "
      "for them. "
      "begun_ahead: steps that were begun while the one before ran. host_gap: how long the GPU had "
      "nothing to do between two steps, on the average: of those begun ahead that is 0.";
  worker::DeviceModelOptions options = bench.work.load_options;
  parts.push_back({"load_bf16", load, absl::Seconds(150),
                   [&bench, options] { return RunLoad(bench, options); }, PartProcess::kItsOwn});
  options.weights_to_fp8 = options.kv_is_fp8 = true;
  parts.push_back({"load_fp8", load + " Weights and KV cache in FP8.", absl::Seconds(150),
                   [&bench, options] { return RunLoad(bench, options); }, PartProcess::kItsOwn});
  if (bench.flags.vllm.empty()) return;
  parts.push_back(StartsItsOwn(
      bench, "load_fp8_vllm", "vLLM under the same load, with random weights of its own.",
      absl::Seconds(300),
      [&bench, options](absl::Time deadline) {
        return MeasureVllm(bench.flags.vllm, bench.work.large, options, bench.work.load, deadline);
      },
      bench.flags.vllm));
}

void AddProfiles(const Bench& bench, std::vector<Part>& parts) {
  const std::string profile =
      "Where one decode step's time goes, by kind of op: how much longer the recorded step is with "
      "an op than without it and all that follow (benchmarks/gpu/profile.h). Products are named by "
      "rows and columns.";
  const auto run = [&bench](const worker::DeviceModelOptions& options) {
    return MeasureProfile([&] { return bench.Open(); }, bench.work.large, options,
                          bench.work.profile);
  };
  worker::DeviceModelOptions options = bench.work.speed_options;
  parts.push_back({"profile_bf16", profile, absl::Seconds(60),
                   [run, options] { return run(options); }, PartProcess::kItsOwn});
  options.weights_to_fp8 = true;
  parts.push_back({"profile_fp8", profile + " Weights in FP8.", absl::Seconds(60),
                   [run, options] { return run(options); }, PartProcess::kItsOwn});
}

void AddSanitizer(const Bench& bench, std::vector<Part>& parts) {
  parts.push_back(StartsItsOwn(
      bench, "sanitize",
      "Every op at its odd shapes and a small decoder with its recorded graphs under NVIDIA's "
      "compute-sanitizer.",
      absl::Seconds(200), [](absl::Time deadline) {
        SanitizeOptions options;
        options.program = OwnPath();
        options.deadline = deadline;
        return CheckSanitized(options);
      }));
}

absl::StatusOr<std::vector<Part>> MakeParts(const Bench& bench) {
  std::vector<Part> parts;
  AddChecks(bench, parts);
  AddRanks(bench, parts);
  AddProducts(bench, parts);
  AddSpeeds(bench, parts);
  AddLoads(bench, parts);
  AddProfiles(bench, parts);
  AddSanitizer(bench, parts);
  std::vector<std::string> names;
  for (Part& part : parts) {
    part.usual *= bench.work.pace;
    if (std::find(names.begin(), names.end(), part.name) != names.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model: two parts would be ", part.name, ": give the file another name"));
    }
    names.push_back(part.name);
  }
  for (const std::string& name : bench.flags.only) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--only ", name, " is no part; there are ", absl::StrJoin(names, ", ")));
  }
  return parts;
}

// Starts the part in another process and takes what it says. What breaks there, and how it ends, is
// wrong with this part alone.
absl::StatusOr<PartResult> RunInItsOwn(const Bench& bench, const std::string& name,
                                       absl::Duration usual) {
  std::vector<std::string> words = {OwnPath(), "--part", name};
  for (const std::string& model : bench.flags.models) {
    words.insert(words.end(), {"--model", model});
  }
  return WithinTheRun(bench, usual, [&](absl::Time deadline) -> absl::StatusOr<PartResult> {
    ASSIGN_OR_RETURN(const std::unique_ptr<Child> child, Child::Start(words, {}));
    PartResult result;
    std::string missing;
    TakeResult(*child, "its process", deadline, result, &missing);
    if (!missing.empty()) return NotRun(missing);
    return result;
  });
}

// For that process: the result of one part to standard output.
int RunPart(const Bench& bench, const std::string& name) {
  EndWithParent();
  absl::StatusOr<std::vector<Part>> parts = MakeParts(bench);
  const auto is_meant = [&](const Part& part) { return part.name == name; };
  if (!parts.ok() || std::none_of(parts->begin(), parts->end(), is_meant)) return kUsage;
  const absl::StatusOr<PartResult> result =
      std::find_if(parts->begin(), parts->end(), is_meant)->run();
  if (result.ok()) {
    std::cout << ResultLines(*result) << std::flush;
  } else {
    const char* const word = IsNotRun(result.status()) ? "missing\t" : "wrong\t";
    std::cout << word << OneField(std::string(result.status().message())) << std::endl;
  }
  return kGood;
}

// Those that the flags ask for, each where it runs.
std::vector<Part> Chosen(const Bench& bench, const std::vector<Part>& parts) {
  std::vector<Part> chosen;
  const std::vector<std::string>& only = bench.flags.only;
  for (const Part& part : parts) {
    if (!only.empty() && std::find(only.begin(), only.end(), part.name) == only.end()) continue;
    chosen.push_back(part);
    if (part.process == PartProcess::kThis) continue;
    chosen.back().run = [&bench, name = part.name, usual = part.usual] {
      return RunInItsOwn(bench, name, usual);
    };
  }
  return chosen;
}

// FNV-1a of this program's file: what another build has shown, this one has not.
std::string OwnDigest() {
  std::ifstream file(OwnPath(), std::ios::binary);
  uint64_t hash = 14695981039346656037u;
  for (std::vector<char> piece(size_t{1} << 20); file.good();) {
    file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    for (std::streamsize i = 0; i < file.gcount(); ++i) {
      hash = (hash ^ static_cast<uint8_t>(piece[static_cast<size_t>(i)])) * 1099511628211u;
    }
  }
  return absl::StrCat(absl::Hex(hash, absl::kZeroPad16));
}

int ToExitCode(Ending ending) {
  switch (ending) {
    case Ending::kComplete:
      return kGood;
    case Ending::kBad:
      return kBad;
    case Ending::kOutOfTime:
      return kOutOfTime;
  }
  return kBad;
}

int RunParts(const Bench& bench) {
  const Flags& flags = bench.flags;
  const worker::CudaDeviceInfo& card = bench.cards.front();
  const absl::StatusOr<std::vector<Part>> parts = MakeParts(bench);
  if (!parts.ok()) {
    std::cerr << "gpu_bench: " << parts.status().message() << "\n";
    return kUsage;
  }
  const OutcomeStore store(
      flags.out, absl::StrCat(card.name, " ", card.pci_bus_id, " ", flags.label, " ", OwnDigest()));
  const std::vector<Part> chosen = Chosen(bench, *parts);
  if (flags.fresh) {
    for (const Part& part : chosen) store.Forget(part);
  }
  const absl::StatusOr<Ending> ending =
      RunCourse(chosen, store, absl::Minutes(flags.minutes), SteadyNow,
                [](const std::string& line) { std::cout << line << std::endl; });
  if (!ending.ok()) {
    std::cerr << "gpu_bench: " << ending.status().message() << "\n";
    return kUsage;
  }
  const std::string title =
      absl::StrCat(card.name, ", ", absl::FormatTime("%Y-%m-%d", absl::Now(), absl::UTCTimeZone()),
                   flags.label.empty() ? "" : ", " + flags.label);
  std::error_code error;  // RunCourse says where it cannot write
  std::filesystem::create_directories(flags.out, error);
  std::ofstream(flags.out + "/report.md") << Report(*parts, store, title);
  std::cout << flags.out << "/report.md" << std::endl;
  return ToExitCode(*ending);
}

}  // namespace

int RunBench(const BenchMachine& machine, const BenchWork& work,
             const std::vector<std::string>& words) {
  if (!words.empty() && words[0] == "--sanitized") return RunSanitized(machine.open);
  if (!words.empty() && words[0] == "--rank-child") {
    return RunRankChild(machine.open, work.small, {words.begin() + 1, words.end()});
  }
  const bool is_part = words.size() > 1 && words[0] == "--part";
  for (const std::string& word : words) {
    if (word != "--help" && word != "-h") continue;
    std::cout << kUsageText;
    return kGood;
  }
  const absl::StatusOr<Flags> flags = ParseFlags({words.begin() + (is_part ? 2 : 0), words.end()});
  if (!flags.ok()) {
    std::cerr << "gpu_bench: " << flags.status().message() << "\n" << kUsageText;
    return kUsage;
  }
  absl::StatusOr<std::vector<worker::CudaDeviceInfo>> cards = machine.find_gpus();
  if (cards.ok() && !cards->empty()) {
    const Bench bench = {machine, work, *flags, *std::move(cards),
                         SteadyNow() + absl::Minutes(flags->minutes)};
    return is_part ? RunPart(bench, words[1]) : RunParts(bench);
  }
  std::cerr << "gpu_bench: there is no GPU to run on: "
            << (cards.ok() ? "CUDA shows none" : std::string(cards.status().message()))
            << ". Run it on a machine with an NVIDIA GPU and driver, with a binary that was built "
               "with the cmake preset cuda\n";
  return kNoGpu;
}

}  // namespace rempart::benchmarks
