// SPDX-License-Identifier: Apache-2.0
#include "worker/model/families/families.h"

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "worker/model/gather_quantized.h"
#include "worker/model/quantization_config.h"

namespace rempart::worker {
namespace {

constexpr const Family* kFamilies[] = {&kLlama, &kMistral, &kQwen2, &kQwen3, &kGemma3, &kPhi3};

constexpr TensorName kCommonNames[] = {
    {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
    {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
    {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"}};

// Whole names up to their last part.
constexpr TensorName kOutsideLayers[] = {{"model.embed_tokens.", "token_embd."},
                                         {"model.norm.", "output_norm."},
                                         {"lm_head.", "output."}};

// Limits of the kernels, whatever the family.
absl::StatusOr<ModelConfig> CheckShape(ModelConfig config) {
  if (config.heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the number of heads (", config.heads,
        ") is not a multiple of the number of key-value heads (", config.kv_heads, ")"));
  }
  if (config.head_dim % 8 != 0 || config.head_dim > 256) {
    return absl::UnimplementedError(
        absl::StrCat("heads of ", config.head_dim,
                     " dimensions are not served: it must be a multiple of 8, at most 256"));
  }
  return config;
}

// The text model of a folder that also holds another one (vision).
absl::StatusOr<ConfigJson> TextConfig(const ConfigJson& config) {
  if (!config.Has("text_config")) return config;
  ASSIGN_OR_RETURN(const std::string type, config.String("model_type", std::nullopt));
  if (type != "gemma3" && type != "mistral3") return config;
  return config.Object("text_config");
}

absl::StatusOr<const Family*> FindFamily(const ConfigJson& config) {
  ASSIGN_OR_RETURN(const std::string type, config.String("model_type", std::nullopt));
  std::vector<absl::string_view> served;
  for (const Family* family : kFamilies) {
    if (family->model_type == type) return family;
    served.push_back(family->model_type);
  }
  return absl::UnimplementedError(absl::StrCat(
      config.Where("model_type"), " \"", type, "\" is not served",
      absl::StrContains(type, "moe") || type == "mixtral" ? " (mixture of experts)" : "",
      "; this version serves ", absl::StrJoin(served, ", ")));
}

// Other heads than the one that predicts the next token give other outputs.
absl::Status CheckTask(const ConfigJson& config) {
  if (!config.Has("architectures")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<std::string> classes, config.Strings("architectures"));
  for (const std::string& name : classes) {
    if (absl::EndsWith(name, "ForCausalLM") || absl::EndsWith(name, "ForConditionalGeneration")) {
      return absl::OkStatus();
    }
  }
  return absl::UnimplementedError(absl::StrCat(config.Where("architectures"), " is ",
                                               absl::StrJoin(classes, ", "),
                                               "; served are models that generate text "
                                               "(…ForCausalLM)"));
}

// "model.layers.3.mlp.up_proj.weight" as "blk.3.ffn_up.weight"; the last part, such as "weight" or
// "qweight", stays. So does a name of no known meaning, and whoever binds the tensors refuses it by
// that name.
std::string GgufName(absl::string_view name, absl::Span<const TensorName> own) {
  for (const TensorName& known : kOutsideLayers) {
    absl::string_view rest = name;
    if (absl::ConsumePrefix(&rest, known.folder)) return absl::StrCat(known.gguf, rest);
  }
  absl::string_view rest = name;
  if (!absl::ConsumePrefix(&rest, "model.layers.")) return std::string(name);
  const size_t dot = rest.find('.');
  const size_t suffix = rest.rfind('.');
  if (dot == absl::string_view::npos || suffix <= dot) return std::string(name);
  const absl::string_view part = rest.substr(dot + 1, suffix - dot - 1);
  for (const absl::Span<const TensorName> names : {own, absl::MakeConstSpan(kCommonNames)}) {
    for (const TensorName& known : names) {
      if (known.folder != part) continue;
      return absl::StrCat("blk.", rest.substr(0, dot), ".", known.gguf, rest.substr(suffix));
    }
  }
  return std::string(name);
}

// The name inside the text model, or nothing for a tensor that is not part of it.
std::optional<std::string> TextName(absl::string_view name, bool multimodal) {
  if (absl::EndsWith(name, "rotary_emb.inv_freq")) return std::nullopt;  // computed instead
  if (!multimodal) return std::string(name);
  if (absl::StrContains(name, "vision_tower.") || absl::StrContains(name, "multi_modal_proj")) {
    return std::nullopt;
  }
  // "language_model.model.layers..." and, in newer files, "model.language_model.layers...".
  if (absl::ConsumePrefix(&name, "model.language_model.")) return absl::StrCat("model.", name);
  absl::ConsumePrefix(&name, "language_model.");
  return std::string(name);
}

absl::StatusOr<TensorMap> Renamed(TensorMap tensors, const Family& family, bool multimodal) {
  TensorMap renamed;
  for (auto& [key, tensor] : tensors) {
    const std::optional<std::string> name = TextName(key, multimodal);
    if (!name.has_value()) continue;
    if (!renamed.try_emplace(GgufName(*name, family.names), std::move(tensor)).second) {
      return absl::InvalidArgumentError(absl::StrCat("two tensors are called ", *name));
    }
  }
  return renamed;
}

// Makes quantised matrices of the tensors of a folder, where it has any.
absl::Status ReadQuantized(const ConfigJson& config, const ModelConfig& model, TensorMap& tensors) {
  constexpr char kKey[] = "quantization_config";
  if (!config.Has(kKey)) return CheckAllPlain(tensors);
  ASSIGN_OR_RETURN(const ConfigJson object, config.Object(kKey));
  ASSIGN_OR_RETURN(const QuantizationConfig quantization, ReadQuantizationConfig(object));
  RETURN_IF_ERROR(GatherQuantized(quantization, tensors));
  if (quantization.int4 == INT4Layout::kGptq) DropZeroBiases(model, tensors);
  const auto embedding = tensors.find("token_embd.weight");
  if (embedding == tensors.end() || embedding->second.quantized == nullptr) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("the tensor ", embedding->second.name,
                   " is quantised, and embeddings are served in F32, F16 and BF16 alone: use "
                   "another version of the model, or a GGUF file of it"));
}

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const GgufFile& file) {
  ASSIGN_OR_RETURN(const absl::string_view architecture,
                   file.metadata.String("general.architecture"));
  std::vector<absl::string_view> served;
  for (const Family* family : kFamilies) {
    if (family->from_gguf == nullptr) continue;
    if (family->name == architecture) {
      ASSIGN_OR_RETURN(ModelConfig config, family->from_gguf(file));
      return CheckShape(std::move(config));
    }
    served.push_back(family->name);
  }
  return absl::UnimplementedError(absl::StrCat("the architecture \"", architecture,
                                               "\" is not served; this version serves ",
                                               absl::StrJoin(served, ", ")));
}

absl::StatusOr<ModelConfig> ReadModelConfig(const ConfigJson& config, TensorMap& tensors) {
  ASSIGN_OR_RETURN(const ConfigJson text, TextConfig(config));
  ASSIGN_OR_RETURN(const Family* family, FindFamily(text));
  RETURN_IF_ERROR(CheckTask(config));
  ASSIGN_OR_RETURN(ModelConfig model, family->from_json(text));
  const bool multimodal = config.Has("text_config");
  ASSIGN_OR_RETURN(tensors, Renamed(std::move(tensors), *family, multimodal));
  RETURN_IF_ERROR(ReadQuantized(config.Has("quantization_config") ? config : text, model, tensors));
  // Without a word the files decide; a copy of the embedding beside tied weights is not read.
  const ConfigJson& ties = config.Has("tie_word_embeddings") ? config : text;
  ASSIGN_OR_RETURN(const bool tied,
                   ties.Bool("tie_word_embeddings", !tensors.contains("output.weight")));
  if (tied) {
    tensors.erase("output.weight");
  } else if (!tensors.contains("output.weight")) {
    return absl::InvalidArgumentError(absl::StrCat(
        ties.Where("tie_word_embeddings"), " is false, but the tensor lm_head.weight is missing"));
  }
  return CheckShape(std::move(model));
}

}  // namespace rempart::worker
