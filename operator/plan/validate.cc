// SPDX-License-Identifier: Apache-2.0
#include "operator/plan/validate.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/nccl_variables.h"
#include "common/split_files.h"
#include "operator/plan/group_objects.h"
#include "operator/plan/quantity.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::ModelSpec;

// StatefulSets put "-<hash>" behind their name in a label of 63 characters; we add "-<index>".
constexpr size_t kMaxNameLength = 46;
constexpr size_t kMaxMountedParts = 64;
constexpr int32_t kMaxRanksPerPod = 16;
constexpr int32_t kMaxSequences = 32;  // where the Model does not say
constexpr int32_t kMaxRanks = 64;      // of a group, as communicators have it

std::optional<Refusal> NotSupported(absl::string_view field, absl::string_view advice) {
  return Refusal{"NotSupported",
                 absl::StrCat("spec.", field, " is not supported by this version: ", advice)};
}

bool HasParentStep(absl::string_view path) {
  for (absl::string_view part : absl::StrSplit(path, '/')) {
    if (part == "..") return true;
  }
  return false;
}

std::optional<Refusal> ParsePvc(absl::string_view rest, ParsedSource& source) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(rest, absl::MaxSplits('/', 1));
  if (parts.first.empty() || parts.second.empty() || HasParentStep(parts.second)) {
    return Refusal{"InvalidSource", absl::StrCat("spec.source.uri: \"pvc://", rest,
                                                 "\" must be pvc://claim/path, without \"..\"")};
  }
  source.claim = parts.first;
  source.path = parts.second;
  return std::nullopt;
}

// What the two devices do not share.
std::optional<Refusal> NotOfDevice(const ModelSpec& spec) {
  const std::string& cache = spec.engine().kv_cache_type();
  if (spec.device() != "gpu") {
    if (!spec.parallelism().nccl().empty()) {
      return NotSupported("parallelism.nccl",
                          "NCCL links the ranks of device: gpu; on CPU leave it out");
    }
    if (cache != "fp8") return std::nullopt;
    return NotSupported("engine.kvCacheType", "fp8 is of device: gpu; on CPU use q8 or auto");
  }
  if (cache == "f16" || cache == "f32" || cache == "q8") {
    return NotSupported("engine.kvCacheType",
                        absl::StrCat(cache, " is of device: cpu; on a GPU use auto, bf16 or fp8"));
  }
  if (spec.engine().arithmetic() == "exact") {
    return NotSupported("engine.arithmetic", "exact is of device: cpu; on a GPU use fast");
  }
  return std::nullopt;
}

// A GPU for each rank: no more, which would stand idle, and no fewer.
std::optional<Refusal> WrongGpus(const ModelSpec& spec) {
  const bool has_claims = !spec.resources().claims().empty();
  const std::set<std::string> named = GpuResources(spec);
  if (spec.device() != "gpu") {
    if (has_claims) {
      return NotSupported("resources.claims", "claims give GPUs; on CPU leave them out");
    }
    if (named.empty()) return std::nullopt;
    return Refusal{"InvalidResources",
                   absl::StrCat("spec.resources asks for ", *named.begin(),
                                ", and spec.device is cpu, so it would stand idle: set device to "
                                "gpu, or leave it out")};
  }
  if (named.size() > 1) {
    return Refusal{"InvalidResources",
                   absl::StrCat("spec.resources asks for ", absl::StrJoin(named, " and "),
                                ", but all ranks have GPUs of one kind: leave one of them out")};
  }
  if (has_claims && !named.empty()) {
    return Refusal{"InvalidResources",
                   absl::StrCat("spec.resources asks for ", *named.begin(),
                                " and for claims, which take its place: leave one of them out")};
  }
  const int32_t ranks = RanksPerPod(spec);
  const auto wrong = [&](absl::string_view list, const auto& quantities) {
    const auto asked = quantities.find(GpuResource(spec));
    if (asked == quantities.end() || asked->second == absl::StrCat(ranks)) return std::string();
    return absl::StrCat("spec.resources.", list, " asks for ", asked->second, " ", asked->first,
                        ", but a pod of this Model has ", ranks, ranks == 1 ? " rank" : " ranks",
                        " with a GPU each: set it to ", ranks, ", or leave it out");
  };
  std::string words = wrong("requests", spec.resources().requests());
  if (words.empty()) words = wrong("limits", spec.resources().limits());
  if (words.empty()) return std::nullopt;
  return Refusal{"InvalidResources", words};
}

// What the API server would say of the pods, which nobody sees who looks at the Model.
std::optional<Refusal> WrongQuantities(const ModelSpec& spec) {
  const std::map<std::string, std::string> requests(spec.resources().requests().begin(),
                                                    spec.resources().requests().end());
  const std::map<std::string, std::string> limits(spec.resources().limits().begin(),
                                                  spec.resources().limits().end());
  for (const auto& [list, quantities] :
       {std::pair("requests", &requests), std::pair("limits", &limits)}) {
    for (const auto& [resource, text] : *quantities) {
      const std::string where =
          absl::StrCat("spec.resources.", list, ": ", resource, ": \"", text, "\" ");
      const std::optional<int64_t> milli = ParseMilli(text);
      if (!milli.has_value()) {
        return Refusal{"InvalidResources",
                       absl::StrCat(where, "is no quantity of Kubernetes: write it like ",
                                    resource == "cpu" ? "2 or 500m" : "2 or 4Gi")};
      }
      if (!IsExtendedResource(resource) || *milli % 1000 == 0) continue;
      return Refusal{"InvalidResources",
                     absl::StrCat(where,
                                  "must be a whole number: a device plugin hands out no "
                                  "parts")};
    }
  }
  for (const auto& [resource, text] : requests) {
    const auto limit = limits.find(resource);
    if (limit == limits.end()) continue;
    const int64_t request_milli = *ParseMilli(text), limit_milli = *ParseMilli(limit->second);
    const bool is_extended = IsExtendedResource(resource);
    if (is_extended ? request_milli == limit_milli : request_milli <= limit_milli) continue;
    return Refusal{"InvalidResources",
                   absl::StrCat("spec.resources asks for ", text, " ", resource,
                                " in requests and ", limit->second, " in limits, which must be ",
                                is_extended ? "the same: leave one of them out"
                                            : "as much at least: raise the limit, or lower the "
                                              "request")};
  }
  return std::nullopt;
}

// The claim is mounted for writing, and the kubelet gives what lies in it to the worker's group: so
// it must say that it is meant for this.
std::optional<Refusal> WrongCacheClaim(const Observed& observed) {
  const ModelSpec& spec = observed.model.spec();
  if (!spec.engine().has_repack_cache_claim()) return std::nullopt;
  if (observed.settings.local) {
    return NotSupported("engine.repackCacheClaim",
                        "there are no claims outside Kubernetes; leave it out: --cache "
                        "names the folder for repacked weights");
  }
  if (spec.device() == "gpu") {
    return NotSupported("engine.repackCacheClaim",
                        "a GPU reads weights as they are in the file; leave it out");
  }
  if (spec.engine().arithmetic() == "exact") {
    return NotSupported("engine.repackCacheClaim",
                        "exact arithmetic repacks nothing; leave it out, or use arithmetic: fast");
  }
  const std::string& claim = spec.engine().repack_cache_claim();
  const std::string where = absl::StrCat("spec.engine.repackCacheClaim: ", claim, ": ");
  if (claim == ClaimOf(observed.model)) {
    return Refusal{"InvalidCacheClaim",
                   absl::StrCat(where,
                                "the weights are in that claim, which is mounted read-only; "
                                "make another one for repacked weights")};
  }
  const std::string& space = observed.model.metadata().namespace_();
  if (observed.cache_claim == ClaimState::kMissing) {
    return Refusal{"CacheClaimNotFound",
                   absl::StrCat(where, "there is no such PersistentVolumeClaim in namespace ",
                                space, "; create it, or leave the field out")};
  }
  if (observed.cache_claim == ClaimState::kUnmarked) {
    return Refusal{
        "CacheClaimNotMarked",
        absl::StrCat(where, "workers would write to it, and it does not carry the label ",
                     kRepackCacheLabel,
                     "=true. If it is for repacked weights alone, "
                     "run: kubectl -n ",
                     space, " label pvc ", claim, " ", kRepackCacheLabel, "=true")};
  }
  return std::nullopt;
}

std::optional<Refusal> UnsupportedFields(const ModelSpec& spec) {
  if (auto refusal = NotOfDevice(spec)) return refusal;
  if (spec.has_autoscaling()) {
    return NotSupported("autoscaling", "set replicas instead of autoscaling");
  }
  if (spec.source().has_public_key_secret()) {
    return NotSupported("source.publicKeySecret", "signatures are not checked yet; leave it out");
  }
  return std::nullopt;
}

// What the schema cannot say of the shape of a group. Whether the number of ranks divides the
// model, and whether it has a layer for each stage, only the model file tells: the worker refuses
// it with the numbers that do.
std::optional<Refusal> WrongShape(const ModelSpec& spec) {
  const int32_t tensor = std::max(spec.parallelism().tensor(), 1);
  const int32_t pipeline = std::max(spec.parallelism().pipeline(), 1);
  const int32_t per_pod = spec.parallelism().ranks_per_pod();
  if (tensor * pipeline > kMaxRanks) {
    return Refusal{"InvalidParallelism",
                   absl::StrCat("spec.parallelism: tensor: ", tensor, " times pipeline: ", pipeline,
                                " are ", tensor * pipeline, " ranks; a group has at most ",
                                kMaxRanks, ": lower one of them")};
  }
  if (per_pod == 0 && tensor > kMaxRanksPerPod) {
    return Refusal{"InvalidParallelism",
                   absl::StrCat("spec.parallelism.ranksPerPod is missing: ", tensor,
                                " ranks are too many for one pod, which holds up to ",
                                kMaxRanksPerPod, "; set it to a divisor of ", tensor)};
  }
  if (per_pod > 0 && tensor % per_pod != 0) {
    std::vector<int32_t> divisors;
    for (int32_t i = 1; i <= std::min(tensor, kMaxRanksPerPod); ++i) {
      if (tensor % i == 0) divisors.push_back(i);
    }
    return Refusal{
        "InvalidParallelism",
        absl::StrCat("spec.parallelism.ranksPerPod: ", per_pod, " does not divide tensor: ", tensor,
                     "; choose one of ", absl::StrJoin(divisors, ", "))};
  }
  return std::nullopt;
}

std::optional<Refusal> WrongEngine(const ModelSpec& spec) {
  const auto& engine = spec.engine();
  const int32_t sequences = engine.has_max_sequences() ? engine.max_sequences() : kMaxSequences;
  if (!engine.has_max_step_tokens() || engine.max_step_tokens() >= sequences) return std::nullopt;
  return Refusal{"InvalidEngine",
                 absl::StrCat("spec.engine.maxStepTokens: ", engine.max_step_tokens(),
                              " is less than maxSequences, ", sequences,
                              ": each may need one in a step; raise it, or leave it out")};
}

std::optional<Refusal> WrongSharedMemory(const ModelSpec& spec) {
  if (!spec.parallelism().has_shared_memory_mib()) return std::nullopt;
  if (!LinksGpus(spec)) {
    return NotSupported("parallelism.sharedMemoryMib",
                        "it is for several ranks with device: gpu; leave it out");
  }
  const Amounts limits = ParseAmountsOf(spec.resources().limits());
  const auto memory = limits.find("memory");
  const int32_t mib = spec.parallelism().shared_memory_mib();
  if (memory == limits.end() || int64_t{mib} << 20 < memory->second) return std::nullopt;
  return Refusal{"InvalidResources",
                 absl::StrCat("spec.parallelism.sharedMemoryMib: ", mib,
                              " MiB count as memory of the pod, and spec.resources.limits.memory "
                              "is ",
                              memory->second >> 20, " MiB: raise it, or lower sharedMemoryMib")};
}

// NCCL reads variables that load code or name files: those on a list pass.
std::optional<Refusal> WrongNccl(const ModelSpec& spec) {
  // A map of protobuf has no order; the first name by the alphabet is told each time.
  const std::map<std::string, std::string> variables(spec.parallelism().nccl().begin(),
                                                     spec.parallelism().nccl().end());
  for (const auto& [name, value] : variables) {
    const std::string problem = WhyNotSetNccl(name, value);
    if (problem.empty()) continue;
    return Refusal{"InvalidParallelism", absl::StrCat("spec.parallelism.nccl: ", problem)};
  }
  return std::nullopt;
}

// Of two Models with one name, the older keeps it; of two of the same second, the first by name.
std::optional<Refusal> NameClash(const Observed& observed) {
  const Model& model = observed.model;
  const auto own = std::make_tuple(model.metadata().creation_timestamp(), FullName(model));
  for (const std::string& name : ServedNames(model)) {
    for (const NameClaim& other : observed.others) {
      const auto& names = other.served_names;
      if (std::find(names.begin(), names.end(), name) == names.end()) continue;
      if (std::make_tuple(other.creation_timestamp, other.model) > own) continue;
      return Refusal{"ServedNameTaken",
                     absl::StrCat("spec.servedNames: \"", name, "\" is already served by Model ",
                                  other.model, "; choose another name or delete that Model")};
    }
  }
  return std::nullopt;
}

// Each file is mounted by itself: a folder would show more of the node than the Model names.
std::optional<Refusal> FindParts(ParsedSource& source) {
  const auto parts = SplitFilesOf(source.path);
  if (!parts.ok()) {
    return Refusal{"InvalidSource", absl::StrCat("spec.source.uri: ", parts.status().message())};
  }
  if (parts->size() > kMaxMountedParts) {
    return Refusal{"InvalidSource",
                   absl::StrCat("spec.source.uri: ", source.path, " names ", parts->size(),
                                " parts; of a path of the node at most ", kMaxMountedParts,
                                " are mounted: join them, or use pvc://claim/path")};
  }
  source.parts = *parts;
  return std::nullopt;
}

}  // namespace

std::optional<Refusal> ParseSource(const Settings& settings,
                                   const serving::v1alpha1::ModelSpec& spec, ParsedSource& source) {
  absl::string_view uri = spec.source().uri();
  if (absl::ConsumePrefix(&uri, "pvc://")) {
    if (settings.local) {
      return Refusal{"NotSupported",
                     "spec.source.uri: there are no claims outside Kubernetes; use file:///path"};
    }
    return ParsePvc(uri, source);
  }
  if (absl::ConsumePrefix(&uri, "file://")) {
    if (!settings.local && !settings.allow_node_paths) {
      return Refusal{"NodePathsDisabled",
                     "spec.source.uri: file:// is switched off; use pvc://claim/path, or install "
                     "the chart with models.allowNodePaths=true"};
    }
    if (!absl::StartsWith(uri, "/") || HasParentStep(uri) || uri == "/") {
      return Refusal{"InvalidSource",
                     "spec.source.uri: file:// needs an absolute path without \"..\""};
    }
    source.path = std::string(uri);
    return FindParts(source);
  }
  const std::string scheme(uri.substr(0, uri.find(':')));
  return NotSupported("source.uri",
                      absl::StrCat(scheme,
                                   ":// cannot be fetched yet; copy the model to a volume "
                                   "and use pvc://claim/path"));
}

std::optional<Refusal> Validate(const Observed& observed, ParsedSource& source) {
  const Model& model = observed.model;
  if (model.metadata().name().size() > kMaxNameLength) {
    return Refusal{"NameTooLong", absl::StrCat("metadata.name has ", model.metadata().name().size(),
                                               " characters; the limit is ", kMaxNameLength)};
  }
  if (auto refusal = UnsupportedFields(model.spec())) return refusal;
  if (auto refusal = WrongShape(model.spec())) return refusal;
  if (auto refusal = WrongGpus(model.spec())) return refusal;
  if (auto refusal = WrongQuantities(model.spec())) return refusal;
  if (auto refusal = WrongNccl(model.spec())) return refusal;
  if (auto refusal = WrongEngine(model.spec())) return refusal;
  if (auto refusal = WrongSharedMemory(model.spec())) return refusal;
  if (auto refusal = ParseSource(observed.settings, model.spec(), source)) return refusal;
  if (auto refusal = WrongCacheClaim(observed)) return refusal;
  return NameClash(observed);
}

}  // namespace rempart::op
