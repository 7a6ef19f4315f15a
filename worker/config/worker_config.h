// SPDX-License-Identifier: Apache-2.0
// The configuration of a worker process: proto/worker/v1/config.proto as protobuf JSON in a file,
// read into a plain struct that is valid afterwards. An unknown field is an error that names it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/tls/tls.h"
#include "worker/config/step_defaults.h"

namespace rempart::worker {

struct EngineSettings {
  int32_t context_length = 0;  // 0: what the model declares, at most 8192
  int32_t max_sequences = 32;
  int32_t max_step_tokens = kStepTokensOnCpu;
  int64_t kv_cache_bytes = 0;  // 0: by the memory that is free
  std::string kv_cache_type = "auto";
  bool prefix_cache = true;
  int32_t max_step_milliseconds = kMaxStepMilliseconds;  // 0: no bound
  int32_t threads = 0;                                   // 0: the CPU quota
  bool exact_arithmetic = false;
  std::string kernel_tier;  // empty: the best this CPU has
};

struct WorkerSettings {
  std::string model_name;
  std::string model_path;
  std::string model_digest;         // "sha256:" and 64 hexadecimal digits; empty: any
  std::string repack_cache_folder;  // empty: none
  std::vector<std::string> served_names;
  std::string group_name;
  EngineSettings engine;
  std::string listen_address;
  std::string health_address;
  std::string control_address;
  // Where the ranks of other pods link to those of this one; empty in a group of one pod.
  std::string data_address;
  std::string config_hash;
  int32_t tensor_parallel = 1;    // ranks of each stage
  int32_t pipeline_parallel = 1;  // stages
  int32_t pod_count = 1;          // of the group
  int32_t ranks_per_pod = 1;      // rank r lives in pod r / ranks_per_pod; all in one stage
  DeviceKind device = DeviceKind::kCpu;
  std::string system_root;                  // where /sys tells of NUMA nodes; "", but in tests
  int32_t first_gpu = 0;                    // of the pod's ranks, as the driver counts
  std::map<std::string, std::string> nccl;  // variables for NCCL's environment
  TlsConfig tls;
  // From the environment: REMPART_POD_INDEX, REMPART_POD_NAME, REMPART_POD_UID, REMPART_NODE_NAME,
  // REMPART_POD_IP.
  // Where others reach listen_address: the pod's own address in place of "all interfaces".
  std::string advertised_address;
  int32_t pod_index = 0;
  std::string pod_ip;
  std::string pod_name;
  std::string pod_uid;
  std::string node_name;
};

// InvalidArgument with all problems at once, each naming its field and what to do.
absl::StatusOr<WorkerSettings> ParseWorkerSettings(absl::string_view json);
// `listen_address` with `pod_ip` for its host, where that is 0.0.0.0 or [::] and a pod IP is known.
std::string AdvertisedAddress(absl::string_view listen_address, absl::string_view pod_ip);
// The same for a file, plus what the environment says.
absl::StatusOr<WorkerSettings> ReadWorkerSettings(const std::string& path);

}  // namespace rempart::worker
