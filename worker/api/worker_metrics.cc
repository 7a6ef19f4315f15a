// SPDX-License-Identifier: Apache-2.0
#include "worker/api/worker_metrics.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <functional>
#include <utility>
#include <vector>

#include "kernels/chosen_kernels.h"

namespace rempart::worker {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

using Labels = std::vector<std::pair<std::string, std::string>>;

// One value of a metric that a GPU may have several of.
struct Sample {
  Labels labels;
  double value = 0;
};

class Families {
 public:
  explicit Families(const std::string& model_name) : model_name_(model_name) {}

  void Gauge(const char* name, const char* help, double value) {
    Add(name, help, MetricType::Gauge).gauge.value = value;
  }
  void Counter(const char* name, const char* help, uint64_t value) {
    Add(name, help, MetricType::Counter).counter.value = static_cast<double>(value);
  }
  void Info(const WorkerFacts& facts) {
    ClientMetric& metric =
        Add("rempart_worker_info", "Facts of this process; always 1.", MetricType::Gauge);
    metric.label.push_back({"group", facts.group_name});
    metric.label.push_back({"version", facts.version});
    metric.label.push_back({"kernels", facts.kernel_tier});
    metric.gauge.value = 1;
    Kernels(facts.kernel_tier);
    if (facts.threads > 0) {
      Gauge("rempart_worker_threads", "Threads that compute, of all ranks of this process.",
            facts.threads);
    }
  }
  // One gauge per part of the start.
  void StartSeconds(const std::vector<StartPart>& parts) {
    if (parts.empty()) return;
    ClientMetric& first =
        Add("rempart_worker_start_seconds",
            "Time of each part of the start; parts overlap, total counts from exec.",
            MetricType::Gauge);
    const ClientMetric plain = first;
    MetricFamily& family = families_.back();
    family.metric.clear();
    for (const StartPart& part : parts) {
      family.metric.push_back(plain);
      family.metric.back().label.push_back({"part", part.name});
      family.metric.back().gauge.value = absl::ToDoubleSeconds(part.time);
    }
  }
  std::string Text() const { return prometheus::TextSerializer().Serialize(families_); }

  // Of the epoch that this process is in, and of the ranks that it knows.
  void Group(const StatusSnapshot& status, const std::vector<RankStatus>& ranks) {
    Gauge("rempart_worker_epoch", "Epoch of the group; 0: in none.", status.epoch);
    Counter("rempart_worker_epochs_ended_total", "Epochs that ended for this process.",
            static_cast<uint64_t>(status.epochs_ended));
    Counter("rempart_worker_weight_bytes_read_total", "Bytes of weights read.",
            static_cast<uint64_t>(status.weight_bytes_read));
    if (status.fabric.all_reduce_microseconds > 0) {
      Gauge("rempart_worker_all_reduce_seconds", "An all-reduce of 4 KiB, when the group formed.",
            status.fabric.all_reduce_microseconds / 1e6);
      Gauge("rempart_worker_fabric_bytes_per_second", "An all-reduce of 1 MiB, then.",
            status.fabric.mib_per_second * 1048576.0);
    }
    OneShot(status.one_shot);
    PerRank("rempart_worker_rank_step_age_seconds", "Since the rank ended its last step.", ranks,
            [](const RankStatus& rank) { return rank.step_age_ms / 1e3; });
    PerRank("rempart_worker_rank_activity_age_seconds",
            "Since the rank began what it does: compute, or one collective.", ranks,
            [](const RankStatus& rank) { return rank.activity_age_ms / 1e3; });
    PerRank("rempart_worker_rank_heard_age_seconds", "Since the rank's pod was heard.", ranks,
            [](const RankStatus& rank) { return rank.heard_age_ms / 1e3; });
  }

  void Gpus(const GpuSnapshot& snapshot) {
    if (snapshot.gpus.empty()) return;
    GpuInfo(snapshot);
    GpuState(snapshot.gpus);
    std::vector<Sample> links, xids, broken;
    for (const GpuPair& pair : snapshot.pairs) {
      for (const auto& [from, to] :
           {std::pair(pair.first, pair.second), std::pair(pair.second, pair.first)}) {
        links.push_back(
            {{{"gpu", std::to_string(from)}, {"peer", std::to_string(to)}, {"path", pair.path}},
             static_cast<double>(pair.nvlinks)});
      }
    }
    for (const auto& [key, count] : snapshot.xids) {
      xids.push_back({{{"gpu", std::to_string(key.first)}, {"xid", std::to_string(key.second)}},
                      static_cast<double>(count)});
    }
    for (size_t i = 0; i < snapshot.gpus.size(); ++i) {
      const bool is_broken = snapshot.fault.has_value() && snapshot.fault->is_broken &&
                             snapshot.fault->gpu == static_cast<int32_t>(i);
      broken.push_back({{{"gpu", std::to_string(i)}}, is_broken ? 1.0 : 0.0});
    }
    Samples("rempart_worker_gpu_nvlinks", "NVLinks to another GPU of this pod.", links);
    Samples("rempart_worker_gpu_xids_total", "XID errors that the driver reported.", xids,
            MetricType::Counter);
    Samples("rempart_worker_gpu_broken", "1: the worker cannot go on with this GPU.", broken);
  }

 private:
  // Of a CPU tier; a GPU's kernels are not chosen from.
  void Kernels(const std::string& tier) {
    const kernels::Ops* const ops = kernels::FindOps(tier);
    if (ops == nullptr) return;
    std::vector<Sample> samples;
    for (const kernels::ChosenKernel& chosen : kernels::ChosenKernels(*ops)) {
      samples.push_back({{{"op", chosen.op}, {"when", chosen.when}, {"kernel", chosen.kernel}}, 1});
    }
    Samples("rempart_worker_kernel_info", "Which kernel computes which op and shape; always 1.",
            samples);
  }

  // Of ranks on GPUs.
  void OneShot(const OneShotFacts& facts) {
    if (facts.times.empty()) return;
    Gauge("rempart_worker_one_shot_max_bytes",
          "Sums of so many bytes and fewer pass between the GPUs in one shot; 0: none.",
          static_cast<double>(facts.max_bytes));
    std::vector<Sample> times;
    for (const SumTime& time : facts.times) {
      const std::string bytes = std::to_string(time.bytes);
      times.push_back({{{"bytes", bytes}, {"way", "one_shot"}}, time.one_shot_microseconds / 1e6});
      times.push_back({{{"bytes", bytes}, {"way", "library"}}, time.library_microseconds / 1e6});
    }
    Samples("rempart_worker_gpu_sum_seconds",
            "A sum between the GPUs with residual and norm, when they were linked.", times);
  }

  void GpuInfo(const GpuSnapshot& snapshot) {
    std::vector<Sample> samples;
    for (size_t i = 0; i < snapshot.gpus.size(); ++i) {
      const GpuFacts& gpu = snapshot.gpus[i];
      samples.push_back({{{"gpu", std::to_string(i)},
                          {"uuid", gpu.uuid},
                          {"name", gpu.name},
                          {"pci", gpu.pci_bus_id},
                          {"compute_capability", gpu.compute_capability},
                          {"mig", gpu.is_mig ? "1" : "0"},
                          {"driver", snapshot.driver_version},
                          {"cuda", snapshot.cuda_version}},
                         1});
    }
    Samples("rempart_worker_gpu_info", "Facts of the GPUs that ranks compute on; always 1.",
            samples);
  }

  void GpuState(const std::vector<GpuFacts>& gpus) {
    PerGpu("rempart_worker_gpu_memory_total_bytes", "Memory of the GPU.", gpus,
           [](const GpuFacts& gpu) { return static_cast<double>(gpu.total_bytes); });
    PerGpu("rempart_worker_gpu_memory_used_bytes", "Of it, in use by anybody.", gpus,
           [](const GpuFacts& gpu) { return static_cast<double>(gpu.used_bytes); });
    PerGpu("rempart_worker_gpu_temperature_celsius", "Of the GPU's die.", gpus,
           [](const GpuFacts& gpu) { return static_cast<double>(gpu.temperature_celsius); });
    PerGpu("rempart_worker_gpu_power_watts", "What the GPU draws.", gpus,
           [](const GpuFacts& gpu) { return static_cast<double>(gpu.power_milliwatts) / 1e3; });
    PerGpu("rempart_worker_gpu_ecc_uncorrected",
           "Memory errors that ECC could not correct, since the driver was loaded.", gpus,
           [](const GpuFacts& gpu) { return static_cast<double>(gpu.ecc_uncorrected); });
    PerGpu("rempart_worker_gpu_ecc_uncorrected_lifetime", "The same, of the GPU's life.", gpus,
           [](const GpuFacts& gpu) { return static_cast<double>(gpu.ecc_uncorrected_lifetime); });
    PerGpu("rempart_worker_gpu_remap_pending",
           "1: memory that broke waits for a reset to be replaced.", gpus,
           [](const GpuFacts& gpu) { return gpu.remap_pending ? 1.0 : 0.0; });
    PerGpu("rempart_worker_gpu_remap_failed", "1: memory that broke could not be replaced.", gpus,
           [](const GpuFacts& gpu) { return gpu.remap_failed ? 1.0 : 0.0; });
    std::vector<Sample> slowdowns;
    for (size_t i = 0; i < gpus.size(); ++i) {
      for (const std::string& reason : gpus[i].slowdowns) {
        slowdowns.push_back({{{"gpu", std::to_string(i)}, {"reason", reason}}, 1});
      }
    }
    Samples("rempart_worker_gpu_slowdown", "1: the GPU's clocks are held back for this reason.",
            slowdowns);
  }

  // A negative value is one that is not known.
  void PerGpu(const char* name, const char* help, const std::vector<GpuFacts>& gpus,
              const std::function<double(const GpuFacts&)>& value) {
    std::vector<Sample> samples;
    for (size_t i = 0; i < gpus.size(); ++i) {
      const double known = value(gpus[i]);
      if (known >= 0) samples.push_back({{{"gpu", std::to_string(i)}}, known});
    }
    Samples(name, help, samples);
  }

  void Samples(const char* name, const char* help, const std::vector<Sample>& samples,
               MetricType type = MetricType::Gauge) {
    if (samples.empty()) return;
    const ClientMetric plain = Add(name, help, type);
    std::vector<ClientMetric>& all = families_.back().metric;
    all.clear();
    for (const Sample& sample : samples) {
      ClientMetric& metric = all.emplace_back(plain);
      for (const auto& [label, text] : sample.labels) metric.label.push_back({label, text});
      type == MetricType::Counter ? metric.counter.value = sample.value
                                  : metric.gauge.value = sample.value;
    }
  }

  void PerRank(const char* name, const char* help, const std::vector<RankStatus>& ranks,
               double (*value)(const RankStatus&)) {
    if (ranks.empty()) return;
    ClientMetric& first = Add(name, help, MetricType::Gauge);
    const ClientMetric labelled = first;
    std::vector<ClientMetric>& all = families_.back().metric;
    all.clear();
    for (const RankStatus& rank : ranks) {
      all.push_back(labelled);
      all.back().label.push_back({"rank", std::to_string(rank.rank)});
      all.back().gauge.value = value(rank);
    }
  }
  ClientMetric& Add(const char* name, const char* help, MetricType type) {
    MetricFamily family;
    family.name = name;
    family.help = help;
    family.type = type;
    family.metric.resize(1);
    family.metric[0].label.push_back({"model", model_name_});
    families_.push_back(std::move(family));
    return families_.back().metric[0];
  }

  const std::string model_name_;
  std::vector<MetricFamily> families_;
};

}  // namespace

std::string MetricsText(const EngineLoad& load, const StatusSnapshot& status,
                        const WorkerFacts& facts, const std::vector<RankStatus>& ranks,
                        const GpuSnapshot& gpus) {
  Families families(facts.model_name);
  families.Info(facts);
  families.Gauge("rempart_worker_ready", "1 when a real token has passed the group.",
                 status.phase == Phase::kReady ? 1 : 0);
  families.StartSeconds(status.start_parts);
  families.Group(status, ranks);
  families.Gpus(gpus);
  if (status.node_disk_free_share >= 0) {
    families.Gauge("rempart_worker_node_disk_free_ratio",
                   "Free share of the fullest of the node's disks that the pod lives on.",
                   status.node_disk_free_share);
  }
  families.Gauge("rempart_worker_sequences_running", "Sequences that hold KV blocks.",
                 load.running);
  families.Gauge("rempart_worker_sequences_waiting", "Sequences that wait for a slot or blocks.",
                 load.waiting);
  families.Gauge("rempart_worker_queued_prefill_tokens", "Prompt tokens not yet computed.",
                 static_cast<double>(load.queued_prefill_tokens));
  families.Gauge("rempart_worker_kv_blocks_used", "KV blocks that sequences hold.",
                 load.blocks_used);
  families.Gauge("rempart_worker_kv_blocks_cached",
                 "KV blocks that nobody holds, kept for the prefix cache.", load.blocks_cached);
  families.Gauge("rempart_worker_kv_blocks_total", "KV blocks of the pool.", load.blocks_total);
  families.Gauge("rempart_worker_step_seconds", "Moving average of a step's time.",
                 load.step_ms / 1e3);
  families.Gauge("rempart_worker_prefill_tokens_per_second", "Moving average over prefill steps.",
                 load.prefill_tokens_per_second);
  families.Gauge("rempart_worker_prefill_budget_tokens",
                 "Prompt tokens that fit into a step beside decodes.", load.prefill_budget);
  families.Gauge("rempart_worker_memory_short",
                 "1 while memory is short and new requests are refused.",
                 load.memory_short ? 1 : 0);
  families.Counter("rempart_worker_steps_total", "Forward passes.", load.steps);
  families.Counter("rempart_worker_prompt_tokens_total",
                   "Prompt tokens computed, with those computed again after preemption.",
                   load.prompt_tokens);
  families.Counter("rempart_worker_generated_tokens_total", "Tokens sampled.",
                   load.generated_tokens);
  families.Counter("rempart_worker_preemptions_total", "Sequences that lost their blocks.",
                   load.preemptions);
  families.Counter("rempart_worker_prefix_cache_lookups_total",
                   "Prompts looked up in the prefix cache, each once.", load.prefix_lookups);
  families.Counter("rempart_worker_prefix_cache_queried_tokens_total", "Tokens of these prompts.",
                   load.prefix_queried_tokens);
  families.Counter("rempart_worker_prefix_cache_hit_tokens_total",
                   "Of these, tokens that were not computed.", load.prefix_hit_tokens);
  families.Counter("rempart_worker_prefix_cache_evictions_total",
                   "Cached blocks given up for new ones.", load.prefix_evictions);
  families.Counter("rempart_worker_forks_total",
                   "Continuations that went on from another's prompt.", load.forks);
  families.Counter("rempart_worker_kv_blocks_copied_total", "Blocks copied for forks.",
                   load.blocks_copied);
  families.Counter("rempart_worker_memory_refusals_total",
                   "Requests refused because memory was short.", load.memory_refusals);
  families.Counter("rempart_worker_sequences_finished_total", "Sequences that ended well.",
                   load.requests_finished);
  families.Counter("rempart_worker_sequences_failed_total", "Sequences refused or failed.",
                   load.requests_failed);
  return families.Text();
}

}  // namespace rempart::worker
