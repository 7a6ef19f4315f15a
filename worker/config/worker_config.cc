// SPDX-License-Identifier: Apache-2.0
#include "worker/config/worker_config.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/nccl_variables.h"
#include "common/status_macros.h"
#include "proto/worker/v1/config.pb.h"

namespace rempart::worker {
namespace {

using Problems = std::vector<std::string>;

void CheckRange(absl::string_view field, int64_t value, int64_t low, int64_t high,
                Problems& problems) {
  if (value >= low && value <= high) return;
  problems.push_back(absl::StrCat(field, " is ", value, ": it must be from ", low, " to ", high));
}

void CheckOneOf(absl::string_view field, const std::string& value,
                const std::vector<std::string>& allowed, Problems& problems) {
  for (const std::string& candidate : allowed) {
    if (value == candidate) return;
  }
  problems.push_back(
      absl::StrCat(field, " is \"", value, "\": it must be one of ", absl::StrJoin(allowed, ", ")));
}

void CheckRequired(absl::string_view field, const std::string& value, Problems& problems) {
  if (value.empty()) problems.push_back(absl::StrCat(field, " is missing"));
}

EngineSettings EngineFrom(const v1::EngineConfig& config, Problems& problems) {
  EngineSettings engine;
  engine.context_length = config.context_length();
  if (config.max_sequences() != 0) engine.max_sequences = config.max_sequences();
  engine.kv_cache_bytes = int64_t{config.kv_cache_mib()} << 20;
  if (!config.kv_cache_type().empty()) engine.kv_cache_type = config.kv_cache_type();
  if (config.has_prefix_cache()) engine.prefix_cache = config.prefix_cache();
  if (config.has_max_step_milliseconds()) {
    engine.max_step_milliseconds = config.max_step_milliseconds();
  }
  engine.threads = config.threads();
  engine.exact_arithmetic = config.arithmetic() == "exact";
  engine.kernel_tier = config.kernel_tier();
  CheckRange("engine.contextLength", engine.context_length, 0, 1 << 24, problems);
  CheckRange("engine.maxSequences", engine.max_sequences, 1, kMostSequences, problems);
  CheckRange("engine.kvCacheMib", config.kv_cache_mib(), 0, 1 << 24, problems);
  CheckRange("engine.maxStepMilliseconds", engine.max_step_milliseconds, 0, 60'000, problems);
  CheckRange("engine.threads", engine.threads, 0, 1024, problems);
  CheckOneOf("engine.arithmetic", config.arithmetic(), {"", "fast", "exact"}, problems);
  return engine;
}

// As config.proto says, of the device that is known by now.
void CheckStepTokens(const v1::EngineConfig& config, WorkerSettings& settings, Problems& problems) {
  constexpr int32_t kMost = 65'535;  // a GPU's kernels count tokens in a dimension of its grid
  EngineSettings& engine = settings.engine;
  engine.max_step_tokens = config.max_step_tokens() != 0
                               ? config.max_step_tokens()
                               : DefaultStepTokens(settings.device, engine.max_sequences);
  if (engine.max_step_tokens >= engine.max_sequences && engine.max_step_tokens <= kMost) return;
  problems.push_back(absl::StrCat("engine.maxStepTokens is ", engine.max_step_tokens,
                                  ": it must be from ", engine.max_sequences,
                                  ", engine.maxSequences, to ", kMost));
}

// What computes, and what it can do.
void CheckDevice(const v1::WorkerConfig& config, WorkerSettings& settings, Problems& problems) {
  CheckOneOf("device", config.device(), {"", "cpu", "gpu"}, problems);
  CheckRange("first_gpu", config.first_gpu(), 0, 1024, problems);
  settings.first_gpu = config.first_gpu();
  settings.nccl = {config.nccl().begin(), config.nccl().end()};
  for (const auto& [name, value] : settings.nccl) {
    const std::string problem = WhyNotSetNccl(name, value);
    if (!problem.empty()) problems.push_back(absl::StrCat("nccl: ", problem));
  }
  const EngineSettings& engine = settings.engine;
  if (config.device() != "gpu") {
    if (!settings.nccl.empty()) {
      problems.push_back("nccl is set and device is not gpu: leave it out");
    }
    CheckOneOf("engine.kvCacheType", engine.kv_cache_type, {"auto", "f16", "f32", "bf16", "q8"},
               problems);
    return;
  }
  settings.device = DeviceKind::kGpu;
  CheckOneOf("engine.kvCacheType (on a GPU)", engine.kv_cache_type, {"auto", "bf16", "fp8"},
             problems);
  CheckOneOf("engine.arithmetic (on a GPU)", config.engine().arithmetic(), {"", "fast"}, problems);
  if (!engine.kernel_tier.empty()) {
    problems.push_back(absl::StrCat("engine.kernelTier is \"", engine.kernel_tier,
                                    "\": a GPU has one set of kernels; leave it out"));
  }
}

void CheckDigest(const std::string& digest, Problems& problems) {
  absl::string_view digits = digest;
  const bool has_prefix = absl::ConsumePrefix(&digits, "sha256:");
  const bool is_hex = std::all_of(digits.begin(), digits.end(), [](char c) {
    return absl::ascii_isdigit(static_cast<unsigned char>(c)) || (c >= 'a' && c <= 'f');
  });
  if (digest.empty() || (has_prefix && is_hex && digits.size() == 64)) return;
  problems.push_back(absl::StrCat("model_digest is \"", digest,
                                  "\": it must be sha256: and 64 hexadecimal digits"));
}

// The shape of the group, and what a group of several pods cannot do without.
void CheckGroup(const v1::WorkerConfig& config, WorkerSettings& settings, Problems& problems) {
  constexpr int32_t kMaxRanks = 64;
  const int32_t tensor = settings.tensor_parallel = std::max(1, config.tensor_parallel());
  const int32_t pipeline = settings.pipeline_parallel = std::max(1, config.pipeline_parallel());
  settings.ranks_per_pod = std::max(1, config.ranks_per_pod());
  settings.data_address = config.data_address();
  settings.config_hash = config.config_hash();
  CheckRange("tensor_parallel", config.tensor_parallel(), 0, kMaxRanks, problems);
  CheckRange("pipeline_parallel", config.pipeline_parallel(), 0, kMaxRanks, problems);
  CheckRange("ranks_per_pod", config.ranks_per_pod(), 0, kMaxRanks, problems);
  const int64_t ranks = int64_t{tensor} * pipeline;
  if (ranks > kMaxRanks) {
    problems.push_back(absl::StrCat("tensor_parallel is ", tensor, " and pipeline_parallel ",
                                    pipeline, ": a group has at most ", kMaxRanks, " ranks"));
    return;
  }
  if (tensor % settings.ranks_per_pod != 0) {
    problems.push_back(absl::StrCat("ranks_per_pod is ", settings.ranks_per_pod,
                                    ": it must divide tensor_parallel, ", tensor));
    return;
  }
  settings.pod_count = static_cast<int32_t>(ranks) / settings.ranks_per_pod;
  if (settings.pod_count == 1) return;
  CheckRequired("group_name (of a group of several pods)", settings.group_name, problems);
  CheckRequired("data_address (of a group of several pods)", settings.data_address, problems);
  CheckRequired("control_address (of a group of several pods)", settings.control_address, problems);
}

void CheckAddresses(const WorkerSettings& settings, Problems& problems) {
  const bool tls = TlsIsConfigured(settings.tls);
  const auto check = [&](absl::string_view field, const std::string& address) {
    if (address.empty() || tls || IsLocalAddress(address)) return;
    problems.push_back(absl::StrCat(field, " is ", address,
                                    ", which leaves this machine: configure tls, or use unix: or "
                                    "127.0.0.1"));
  };
  check("listen_address", settings.listen_address);
  check("control_address", settings.control_address);
  if (!settings.health_address.empty() && (!IsLocalAddress(settings.health_address) ||
                                           absl::StartsWith(settings.health_address, "unix:"))) {
    problems.push_back(absl::StrCat("health_address is ", settings.health_address,
                                    ": it must be a port of 127.0.0.1, such as 127.0.0.1:9090"));
  }
  if (tls && (settings.tls.ca_file.empty() || settings.tls.certificate_file.empty() ||
              settings.tls.key_file.empty())) {
    problems.push_back("tls needs all of ca_file, certificate_file and key_file");
  }
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat("--config ", path, ": ", std::strerror(errno)));
  }
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

absl::StatusOr<WorkerSettings> ParseWorkerSettings(absl::string_view json) {
  v1::WorkerConfig config;
  const auto parsed = google::protobuf::util::JsonStringToMessage(
      google::protobuf::StringPiece(json.data(), json.size()), &config);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("worker configuration: ", std::string(parsed.message())));
  }
  WorkerSettings settings;
  Problems problems;
  settings.model_name = config.model_name();
  settings.model_path = config.model_path();
  settings.model_digest = config.model_digest();
  settings.repack_cache_folder = config.repack_cache_folder();
  settings.served_names.assign(config.served_names().begin(), config.served_names().end());
  settings.group_name = config.group_name();
  settings.engine = EngineFrom(config.engine(), problems);
  settings.listen_address = config.listen_address();
  settings.health_address = config.health_address();
  settings.control_address = config.control_address();
  settings.tls = {config.tls().ca_file(), config.tls().certificate_file(), config.tls().key_file(),
                  config.tls().peer_name()};
  if (settings.served_names.empty() && !settings.model_name.empty()) {
    settings.served_names.push_back(settings.model_name);
  }
  settings.advertised_address = settings.listen_address;
  CheckRequired("model_name", settings.model_name, problems);
  CheckRequired("model_path", settings.model_path, problems);
  CheckRequired("listen_address", settings.listen_address, problems);
  CheckDigest(settings.model_digest, problems);
  CheckAddresses(settings, problems);
  CheckGroup(config, settings, problems);
  CheckDevice(config, settings, problems);
  CheckStepTokens(config.engine(), settings, problems);
  if (!problems.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("worker configuration: ", absl::StrJoin(problems, "; ")));
  }
  return settings;
}

std::string AdvertisedAddress(absl::string_view listen_address, absl::string_view pod_ip) {
  absl::string_view port = listen_address;
  const bool everywhere =
      absl::ConsumePrefix(&port, "0.0.0.0:") || absl::ConsumePrefix(&port, "[::]:");
  if (!everywhere || pod_ip.empty()) return std::string(listen_address);
  if (absl::StrContains(pod_ip, ':')) return absl::StrCat("[", pod_ip, "]:", port);
  return absl::StrCat(pod_ip, ":", port);
}

absl::StatusOr<WorkerSettings> ReadWorkerSettings(const std::string& path) {
  ASSIGN_OR_RETURN(std::string json, ReadFile(path));
  ASSIGN_OR_RETURN(WorkerSettings settings, ParseWorkerSettings(json));
  const std::string pod_index = Environment("REMPART_POD_INDEX");
  if (!pod_index.empty() && !absl::SimpleAtoi(pod_index, &settings.pod_index)) {
    return absl::InvalidArgumentError(
        absl::StrCat("REMPART_POD_INDEX is \"", pod_index, "\": it must be a number"));
  }
  if (settings.pod_index < 0 || settings.pod_index >= settings.pod_count) {
    return absl::InvalidArgumentError(absl::StrCat("REMPART_POD_INDEX is ", settings.pod_index,
                                                   ": the group has pods 0 to ",
                                                   settings.pod_count - 1));
  }
  settings.pod_ip = Environment("REMPART_POD_IP");
  settings.advertised_address = AdvertisedAddress(settings.listen_address, settings.pod_ip);
  settings.pod_name = Environment("REMPART_POD_NAME");
  settings.pod_uid = Environment("REMPART_POD_UID");
  settings.node_name = Environment("REMPART_NODE_NAME");
  return settings;
}

}  // namespace rempart::worker
