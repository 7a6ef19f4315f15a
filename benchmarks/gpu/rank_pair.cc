// SPDX-License-Identifier: Apache-2.0
#include "benchmarks/gpu/rank_pair.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stop_token>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "benchmarks/gpu/inputs.h"
#include "benchmarks/gpu/parity.h"
#include "benchmarks/gpu/seeded_model.h"
#include "common/status_macros.h"
#include "worker/comm/nccl_abi.h"
#include "worker/group/device_links.h"
#include "worker/group/rank_model.h"
#include "worker/model/device_transformer.h"

namespace rempart::benchmarks {
namespace {

using worker::DecodeSequence;
using worker::DeviceTransformer;
using worker::RankPosition;

constexpr int kRanks = 2;
// All-reduces of one graph, and graphs that are timed.
constexpr int kReducesOfGraph = 50;
constexpr int kGraphs = 21;
// How often the host communicator is asked whether the other rank is still there.
constexpr std::chrono::milliseconds kLook{2};

// One rank's share of a decoder on its device, or all of it. As a worker's, to who links it.
class Share : public worker::RankModel {
 public:
  static absl::StatusOr<std::unique_ptr<Share>> Make(const RankPlace& place,
                                                     const SeededModel& model,
                                                     const RankPosition& of) {
    std::unique_ptr<Share> share(new Share(*place.device));
    ASSIGN_OR_RETURN(share->weights_, model.Weights(of));
    const worker::ModelConfig& config = model.config();
    worker::DeviceModelOptions options;
    options.context_length = 256;
    options.max_step_tokens = 64;
    options.max_sequences = 1;
    options.reserve_bytes = 0;
    share->table_ = BlockTable(0, BlocksOf(options.context_length));
    options.kv_bytes = BlocksOf(options.context_length) *
                       static_cast<int64_t>(config.layers.size()) *
                       kernels::DeviceKvBlockBytes(
                           false, share->weights_.partition.kv_heads.count(), config.head_dim);
    ASSIGN_OR_RETURN(share->transformer_,
                     DeviceTransformer::Create(*place.device, config, share->weights_, options, {},
                                               place.library));
    return share;
  }

  worker::Device* device() override { return &device_; }
  const worker::CollectiveBuffer* exchange() override { return &transformer_->exchange(); }
  void SetDeviceCommunicator(worker::DeviceCommunicator* communicator) override {
    transformer_->SetCommunicator(communicator);
  }
  // There is one epoch, and a cache for it from the beginning.
  absl::Status Begin(worker::Communicator*, int32_t) override { return absl::OkStatus(); }
  int32_t vocabulary_size() const override {
    return static_cast<int32_t>(transformer_->config().vocabulary);
  }
  absl::Status Forward(const worker::StepBatch& batch, absl::Span<float> logits,
                       absl::Span<worker::DrawnToken> drawn) override {
    return transformer_->Forward(batch, logits, drawn);
  }

  absl::Status Forward(absl::Span<const int32_t> ids, size_t position, std::vector<float>& logits) {
    worker::StepBatch batch;
    batch.slices = {{ids, static_cast<int32_t>(position), table_, true}};
    logits.resize(static_cast<size_t>(vocabulary_size()));
    return Forward(batch, absl::MakeSpan(logits), {});
  }
  absl::Status Decode(int32_t id, size_t position, int64_t steps, std::vector<int32_t>& tokens) {
    const std::vector<DecodeSequence> sequences = {
        {id, static_cast<int32_t>(position), table_, {}}};
    return transformer_->DecodeMany(sequences, steps, &tokens);
  }
  // The same in steps that are each begun while the one before runs. Rank 0 alone draws; elsewhere
  // `tokens` stays empty.
  absl::Status DecodeAhead(int32_t id, size_t position, int64_t steps, bool draws,
                           std::vector<int32_t>& tokens) {
    const worker::SamplingParams greedy{.temperature = 0};
    tokens.clear();
    const auto finish = [&]() -> absl::Status {
      worker::DrawnToken drawn;
      const size_t room = draws ? 1 : 0;
      RETURN_IF_ERROR(transformer_->Finish({}, absl::MakeSpan(&drawn, room)));
      if (draws) tokens.push_back(drawn.token_id);
      return absl::OkStatus();
    };
    for (int64_t step = 0; step < steps; ++step) {
      const worker::SliceSampling sampling = {&greedy, {}, step};
      const int64_t at = static_cast<int64_t>(position) + step;
      worker::StepBatch batch;
      batch.slices = {{{&id, 1},
                       static_cast<int32_t>(at),
                       table_,
                       true,
                       draws ? &sampling : nullptr,
                       step > 0 ? 0 : -1}};
      RETURN_IF_ERROR(transformer_->Start(batch, draws).status());
      if (step > 0) RETURN_IF_ERROR(finish());
    }
    return finish();
  }

 private:
  explicit Share(worker::Device& device) : device_(device) {}

  worker::Device& device_;
  worker::Weights weights_;
  std::vector<int32_t> table_;
  std::unique_ptr<DeviceTransformer> transformer_;
};

// A share that was linked. The communicator is taken away before it ends, and with it the graphs
// that hold its collectives.
class Linked {
 public:
  static absl::StatusOr<std::unique_ptr<Linked>> Make(const RankPlace& place, Share& share) {
    const worker::LocalRank rank = {place.host->rank(), &share, place.host};
    std::unique_ptr<Linked> linked(new Linked(share));
    ASSIGN_OR_RETURN(linked->links_,
                     worker::LinkDevices(*place.library, kRanks, {rank}, place.link, {}));
    return linked;
  }
  ~Linked() { share_.SetDeviceCommunicator(nullptr); }

  worker::DeviceCommunicator& communicator() const { return *links_.front().communicator; }
  bool has_symmetric_memory() const { return links_.front().has_symmetric_memory; }

 private:
  explicit Linked(Share& share) : share_(share) {}

  Share& share_;
  std::vector<worker::DeviceLink> links_;
};

// What one device makes of a seeded prompt: a greedy continuation, and the logits of every step.
struct Expected {
  std::vector<int32_t> ids;                // prompt and continuation
  std::vector<std::vector<float>> logits;  // of each token after the prompt
};

absl::StatusOr<Expected> ComputeAlone(const RankPlace& place, const SeededModel& model) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Share> whole, Share::Make(place, model, {}));
  Expected expected;
  expected.ids = SeededIds(kParityPrompt, model.config().vocabulary, 11);
  size_t done = 0;
  for (int step = 0; step < kParityTokens; ++step) {
    std::vector<float>& logits = expected.logits.emplace_back();
    RETURN_IF_ERROR(whole->Forward(absl::MakeConstSpan(expected.ids).subspan(done), done, logits));
    done = expected.ids.size();
    expected.ids.push_back(static_cast<int32_t>(Best(logits)));
  }
  return expected;
}

// How the devices add up: as far as that is known before they do.
PartResult LinkFacts(const Linked& linked) {
  PartResult result;
  result.figures.push_back({"symmetric_memory", linked.has_symmetric_memory() ? 1.0 : 0.0,
                            "1: NCCL adds up in registered windows"});
  const std::string absence = linked.communicator().one_shot().absence;
  if (!absence.empty()) result.notes.push_back(kNoOneShot + absence);
  return result;
}

// The same tokens by both ranks.
absl::Status ComputeTogether(const RankPlace& place, Share& share, const std::string& name,
                             const Expected& expected, size_t layers, PartResult& result) {
  const bool judges = place.host->rank() == 0;
  Agreement by_host(name, layers), by_device(name + "_sampled", layers);
  const absl::Span<const int32_t> ids(expected.ids);
  size_t done = 0;
  std::vector<float> logits;
  for (int step = 0; step < kParityTokens; ++step) {
    const size_t known = kParityPrompt + static_cast<size_t>(step);
    RETURN_IF_ERROR(share.Forward(ids.subspan(done, known - done), done, logits));
    if (judges) by_host.Take(logits, expected.logits[static_cast<size_t>(step)]);
    done = known;
  }
  // The last token of the prompt and what follows it once more, sampled where they are computed.
  std::vector<int32_t> tokens;
  for (size_t step = 0; step < kParityTokens; ++step) {
    const size_t position = kParityPrompt - 1 + step;
    RETURN_IF_ERROR(share.Decode(ids[position], position, 1, tokens));
    if (judges) by_device.TakeToken(tokens[0], expected.logits[step]);
  }
  RETURN_IF_ERROR(share.Decode(ids.back(), ids.size() - 1, kParityTokens, tokens));
  std::vector<int32_t> of_all(kRanks * tokens.size());
  const auto own_bytes = static_cast<int64_t>(tokens.size() * sizeof(int32_t));
  std::memcpy(of_all.data() + static_cast<size_t>(place.host->rank()) * tokens.size(),
              tokens.data(), static_cast<size_t>(own_bytes));
  const std::vector<int64_t> offsets = {0, own_bytes, kRanks * own_bytes};
  RETURN_IF_ERROR(place.host->AllGather({of_all.data(), 1, kRanks * own_bytes, offsets}));
  std::vector<int32_t> ahead;
  RETURN_IF_ERROR(share.DecodeAhead(ids.back(), ids.size() - 1, kParityTokens, judges, ahead));
  if (!judges) return absl::OkStatus();
  if (ahead != tokens) {
    result.wrong.push_back(name + ": steps that are begun ahead draw other tokens");
  }
  by_host.Report(result);
  by_device.Report(result);
  if (!std::equal(tokens.begin(), tokens.end(),
                  of_all.begin() + static_cast<int64_t>(tokens.size()))) {
    result.wrong.push_back(name + ": the two ranks sample different tokens");
  }
  return absl::OkStatus();
}

std::string SizeText(int64_t bytes) {
  return bytes % (1 << 20) == 0 ? absl::StrCat(bytes >> 20, "_MiB")
                                : absl::StrCat(bytes >> 10, "_KiB");
}

uint16_t Bf16Bits(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

// Rank r's values are all r + 1, so their sum is 3 everywhere.
absl::Status CheckSum(worker::Device& device, void* values, int64_t count,
                      worker::DeviceCommunicator& link, const ReduceWay& way, PartResult& result) {
  std::vector<uint16_t> numbers(static_cast<size_t>(count),
                                Bf16Bits(static_cast<float>(link.rank() + 1)));
  device.CopyIn(values, numbers.data(), 2 * count);
  RETURN_IF_ERROR(way.queue(values, count));
  device.CopyOut(numbers.data(), values, 2 * count);
  RETURN_IF_ERROR(link.Finish());
  const uint16_t sum = Bf16Bits(3.0f);
  if (std::any_of(numbers.begin(), numbers.end(), [&](uint16_t bits) { return bits != sum; })) {
    result.wrong.push_back(absl::StrCat(way.name, ", ", 2 * count, " bytes: a sum is wrong"));
  }
  return absl::OkStatus();
}

absl::StatusOr<double> MicrosOfOne(const RankPlace& place, worker::DeviceCommunicator& link,
                                   const ReduceWay& way, void* values, int64_t count) {
  ASSIGN_OR_RETURN(const std::unique_ptr<worker::DeviceGraph> graph,
                   place.device->Record([&]() -> absl::Status {
                     for (int i = 0; i < kReducesOfGraph; ++i) {
                       RETURN_IF_ERROR(way.queue(values, count));
                     }
                     return absl::OkStatus();
                   }));
  std::vector<double> times;
  for (int i = 0; i < kGraphs + 1; ++i) {
    RETURN_IF_ERROR(place.host->Barrier());
    const absl::Time start = SteadyNow();
    RETURN_IF_ERROR(place.device->Start(*graph));
    RETURN_IF_ERROR(link.Finish());
    if (i > 0) times.push_back(SecondsSince(start));
  }
  std::nth_element(times.begin(), times.begin() + kGraphs / 2, times.end());
  return times[kGraphs / 2] / kReducesOfGraph * 1e6;
}

}  // namespace

absl::StatusOr<std::unique_ptr<worker::DeviceCommunicator>> LinkPair(const RankPlace& place) {
  std::string id(sizeof(NcclUniqueId), '\0');
  if (place.host->rank() == 0) {
    ASSIGN_OR_RETURN(id, place.library->NewId());
  }
  RETURN_IF_ERROR(place.host->Broadcast(id.data(), static_cast<int64_t>(id.size()), 0));
  ASSIGN_OR_RETURN(std::unique_ptr<worker::DeviceCommunicator> link,
                   place.library->Connect(*place.device, {id, place.host}, place.link, {}));
  RETURN_IF_ERROR(place.host->Barrier());
  return link;
}

absl::StatusOr<PartResult> ComparePairWithOne(const RankPlace& place,
                                              const std::vector<NamedConfig>& decoders) {
  PartResult result, facts;
  for (const NamedConfig& named : decoders) {
    if (!worker::CheckTensorParallel(named.config, kRanks).ok()) continue;
    const SeededModel model(named.config, 7, LayerWeightsAre::kOwn, named.head);
    Expected expected;
    expected.ids.resize(kParityPrompt + kParityTokens);
    if (place.host->rank() == 0) {
      ASSIGN_OR_RETURN(expected, ComputeAlone(place, model));
    }
    RETURN_IF_ERROR(place.host->Broadcast(
        expected.ids.data(), static_cast<int64_t>(expected.ids.size() * sizeof(int32_t)), 0));
    ASSIGN_OR_RETURN(const std::unique_ptr<Share> share,
                     Share::Make(place, model, {.rank = place.host->rank(), .size = kRanks}));
    // While one allocates, the other's kernels must not wait for it.
    RETURN_IF_ERROR(place.host->Barrier());
    ASSIGN_OR_RETURN(const std::unique_ptr<Linked> linked, Linked::Make(place, *share));
    facts = LinkFacts(*linked);
    RETURN_IF_ERROR(ComputeTogether(place, *share, absl::StrCat(named.name, "_tp2"), expected,
                                    named.config.layers.size(), result));
    // Nobody takes away what the other's kernels may still read.
    RETURN_IF_ERROR(place.host->Barrier());
  }
  Append(facts, result);
  return result;
}

absl::Status DecodeUntilLost(const RankPlace& place, const NamedConfig& decoder,
                             const std::function<void(const std::string& absence)>& on_steps) {
  const SeededModel model(decoder.config, 7, LayerWeightsAre::kOwn, decoder.head);
  ASSIGN_OR_RETURN(const std::unique_ptr<Share> share,
                   Share::Make(place, model, {.rank = place.host->rank(), .size = kRanks}));
  RETURN_IF_ERROR(place.host->Barrier());
  ASSIGN_OR_RETURN(const std::unique_ptr<Linked> linked, Linked::Make(place, *share));
  worker::DeviceCommunicator& link = linked->communicator();
  const std::jthread watch([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      if (const absl::Status lost = place.host->status(); !lost.ok()) return link.Abort(lost);
      std::this_thread::sleep_for(kLook);
    }
  });
  std::vector<float> logits;
  std::vector<int32_t> tokens = {1};
  for (bool is_first = true;; is_first = false) {
    RETURN_IF_ERROR(share->Forward({&tokens[0], 1}, 0, logits));
    RETURN_IF_ERROR(share->Decode(tokens[0], 1, kParityTokens, tokens));
    if (is_first) on_steps(link.one_shot().absence);
  }
}

absl::StatusOr<PartResult> TimeAllReduces(const RankPlace& place, worker::DeviceCommunicator& link,
                                          const std::vector<ReduceWay>& ways,
                                          const std::vector<int64_t>& sizes_bytes, void* values) {
  PartResult result;
  for (const ReduceWay& way : ways) {
    for (const int64_t bytes : sizes_bytes) {
      RETURN_IF_ERROR(CheckSum(*place.device, values, bytes / 2, link, way, result));
      ASSIGN_OR_RETURN(const double micros, MicrosOfOne(place, link, way, values, bytes / 2));
      result.figures.push_back({absl::StrCat(way.name, "_", SizeText(bytes)), micros, "us"});
    }
  }
  return result;
}

PartResult OneShotResult(const worker::OneShotFacts& facts, int64_t largest_bytes) {
  PartResult result;
  if (!facts.absence.empty()) {
    result.notes.push_back(kNoOneShot + facts.absence);
    return result;
  }
  for (const worker::SumTime& time : facts.times) {
    const std::string size = SizeText(time.bytes);
    result.figures.push_back({"nccl_norm_" + size, time.library_microseconds, "us"});
    result.figures.push_back({"one_shot_norm_" + size, time.one_shot_microseconds, "us"});
  }
  result.figures.push_back({"one_shot_max", static_cast<double>(facts.max_bytes >> 10), "KiB"});
  const int64_t measured = facts.times.empty() ? 0 : facts.times.back().bytes;
  if (measured < largest_bytes) {
    result.wrong.push_back(absl::StrCat("sums in one shot: none of more than ", measured >> 10,
                                        " KiB was measured in the time that there is for it, of ",
                                        largest_bytes >> 10, " KiB"));
  }
  return result;
}

}  // namespace rempart::benchmarks
