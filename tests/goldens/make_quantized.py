#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes those of tests/goldens/families that are quantised: models of golden_models.py in the
layouts of Hugging Face folders, and what transformers computes with the dequantised weights in F32.

Who writes and who reads a layout here is not Rempart: FP8 and compressed-tensors folders are read
by transformers itself, from the files; AWQ's and GPTQ's words are packed by vLLM's own functions.
Not run by ./test; needs an environment with torch 2.13.0, transformers 5.19.0, compressed-tensors
0.17.0 and vLLM 0.32.0 for CPUs:

    python tests/goldens/make_quantized.py tests/goldens/families [NAME ...]
"""

import json
import sys

import safetensors.torch
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from vllm.model_executor.layers.quantization.utils import quant_utils

from golden_models import logits_of, new_folder, seeded, write_golden

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
FP8_MAX = 448.0


def fp8_block(weight, _):
    rows, cols = (extent + 127 & -128 for extent in weight.shape)
    padded = torch.zeros(rows, cols)
    padded[:weight.shape[0], :weight.shape[1]] = weight
    blocks = padded.view(rows // 128, 128, cols // 128, 128)
    scales = blocks.abs().amax((1, 3)) / FP8_MAX
    codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).view(rows, cols)
    codes = codes[:weight.shape[0], :weight.shape[1]].contiguous()
    return {"weight": codes, "weight_scale_inv": scales}, None


def fp8_channel(weight, _):
    scales = (weight.abs().amax(1, keepdim=True) / FP8_MAX).bfloat16()
    codes = (weight / scales.float()).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales}, None


def fp8_static(weight, _):
    # transformers reads it as BF16.
    scale = (weight.abs().amax() / FP8_MAX).bfloat16().float().view(1)
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale,
            "input_scale": torch.tensor([0.0123])}, None


def int8_channel(weight, _):
    # Of few bits, so that F16 holds them.
    scales = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
    codes = (weight / scales).round().clamp(-128, 127)
    return {"weight": codes.to(torch.int8), "weight_scale": scales}, None


def groups_of(weight, group, symmetric):
    """Codes [rows, cols] of 0 to 15; scales (F16 values) and zeros [rows, groups]."""
    parts = weight.view(weight.shape[0], -1, group)
    if symmetric:
        scales = (parts.abs().amax(-1) / 7.5).half().float()
        zeros = torch.full_like(scales, 8)
    else:
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        scales = ((high - low) / 15).half().float()
        zeros = (-low / scales).round().clamp(0, 15)
    codes = ((parts / scales[..., None]).round() + zeros[..., None]).clamp(0, 15)
    weights = (codes - zeros[..., None]) * scales[..., None]
    return codes.view_as(weight).int(), scales, zeros.int(), weights.view_as(weight)


def awq(weight, options):
    codes, scales, zeros, weights = groups_of(weight, options["group"], False)
    rows, cols = weight.shape
    packed_zeros = quant_utils.awq_pack(zeros.t().contiguous(), 4, zeros.shape[1], rows)
    return {"qweight": quant_utils.awq_pack(codes.t().contiguous(), 4, cols, rows),
            "qzeros": packed_zeros, "scales": scales.t().contiguous().half()}, weights


def gptq(weight, options):
    rows, cols = weight.shape
    group = options["group"]
    order = torch.arange(cols)
    if options["act_order"]:
        order = torch.randperm(cols, generator=torch.Generator().manual_seed(cols))
    codes, scales, zeros, weights = groups_of(weight[:, order], group, options["symmetric"])
    back = torch.argsort(order)
    stored = zeros.t().contiguous() - (0 if options["v2"] else 1)
    tensors = {"qweight": quant_utils.gptq_pack(codes[:, back].t().contiguous(), 4, cols, rows),
               "qzeros": quant_utils.pack_cols(stored, 4, stored.shape[0], rows),
               "scales": scales.t().contiguous().half(),
               "g_idx": (back // group).int(),
               "bias": torch.zeros(rows, dtype=torch.float16)}  # AutoGPTQ's, of a model without
    weights = weights[:, back]
    # Groups that are spread over the columns are expanded to BF16.
    return tensors, weights.bfloat16() if options["act_order"] else weights


def packed(weight, options):
    codes, scales, zeros, _ = groups_of(weight, options["group"], False)
    return {"weight_packed": pack_to_int32((codes - 8).to(torch.int8), 4),
            "weight_scale": scales.bfloat16() if options.get("bf16") else scales.half(),
            "weight_zero_point": pack_to_int32((zeros - 8).to(torch.int8), 4, packed_dim=0),
            "weight_shape": torch.tensor(weight.shape)}, None


def compressed(layout, weights, activations):
    return {"quant_method": "compressed-tensors", "format": layout, "ignore": ["lm_head"],
            "quantization_status": "compressed", "kv_cache_scheme": None,
            "config_groups": {"group_0": {"targets": ["Linear"], "output_activations": None,
                                          "input_activations": activations, "weights": {
                                              "dynamic": False, **weights}}}}


DYNAMIC = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
# name: (configuration class, what differs from SHAPE, seed, quantiser, its options, the config)
MODELS = {
    "qwen3_fp8_block": (
        # Whole blocks: transformers divides others evenly, where vLLM and DeepSeek cut at 128.
        "Qwen3Config", dict(hidden_size=256, intermediate_size=384, head_dim=64,
                            num_attention_heads=4, num_hidden_layers=1,
                            tie_word_embeddings=True, **ROPE), 21,
        fp8_block, {},
        {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
         "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}),
    "llama_fp8_channel": (
        "LlamaConfig", ROPE, 22, fp8_channel, {},
        compressed("float-quantized", {"num_bits": 8, "type": "float", "symmetric": True,
                                       "strategy": "channel"}, DYNAMIC)),
    "mistral_fp8_static": (
        "MistralConfig", dict(head_dim=16, **ROPE), 23, fp8_static, {},
        compressed("float-quantized", {"num_bits": 8, "type": "float", "symmetric": True,
                                       "strategy": "tensor"},
                   {**DYNAMIC, "strategy": "tensor", "dynamic": False})),
    "phi3_int8": (
        "Phi3Config", ROPE, 24, int8_channel, {},
        compressed("int-quantized", {"num_bits": 8, "type": "int", "symmetric": True,
                                     "strategy": "channel"}, {**DYNAMIC, "type": "int"})),
    "qwen2_awq": (
        "Qwen2Config", ROPE, 25, awq, {"group": 32},
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True,
         "version": "gemm", "modules_to_not_convert": None}),
    "llama_gptq": (
        "LlamaConfig", ROPE, 26, gptq,
        {"group": 32, "symmetric": True, "act_order": False, "v2": False},
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}),
    "llama_gptq_act_order": (
        "LlamaConfig", ROPE, 27, gptq,
        {"group": 32, "symmetric": False, "act_order": True, "v2": True},
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True,
         "checkpoint_format": "gptq_v2"}),
    "qwen3_packed": (
        "Qwen3Config", dict(head_dim=16, **ROPE), 28, packed, {"group": 32},
        compressed("pack-quantized", {"num_bits": 4, "type": "int", "symmetric": False,
                                      "strategy": "group", "group_size": 32}, None)),
}


def quantise(model, quantiser, options):
    """Every tensor of the folder. Linear layers get the dequantised weights of `quantiser`."""
    tensors = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        parts, weights = quantiser(module.weight.data, options)
        tensors.update({f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()})
        if weights is not None:
            module.weight.data = weights.float()
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        is_quantised = f"{module}.qweight" in tensors or f"{module}.weight_packed" in tensors
        if name in tensors or (name.endswith(".weight") and is_quantised):
            continue
        tensors[name] = parameter.data.to(torch.bfloat16).contiguous()
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return tensors


def read_back(folder, config):
    """The model as transformers reads it from the files, its weights dequantised to BF16 or F32."""
    if config["quant_method"] == "fp8":
        quantisation = transformers.FineGrainedFP8Config(
            **{k: v for k, v in config.items() if k not in ("quant_method", "fmt")},
            dequantize=True)
        dtype = torch.bfloat16
    else:
        quantisation = transformers.CompressedTensorsConfig(dequantize=True)
        # F32 would keep what a CPU's BF16 rounds.
        dtype = torch.bfloat16 if "float" in config["format"] else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantisation, dtype=dtype, attn_implementation="eager")
    for module in model.modules():
        # The weights alone: activations stay as they are.
        if hasattr(module, "quantization_scheme"):
            module.quantization_enabled = False
    return model.float().eval()


def make(folder, name):
    config_class, differences, seed, quantiser, options, quantisation = MODELS[name]
    model, ids = seeded(config_class, differences, seed)
    tensors = quantise(model, quantiser, options)
    out = new_folder(folder, name)
    config = model.config
    config.dtype = torch.bfloat16
    config.architectures = [type(model).__name__]
    written = {**json.loads(config.to_json_string(use_diff=True)),
               "quantization_config": quantisation}
    written.pop("_attn_implementation", None)
    (out / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    safetensors.torch.save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    if quantisation["quant_method"] in ("fp8", "compressed-tensors"):
        model = read_back(out, quantisation)
    write_golden(out, model, ids, logits_of(model, ids), seed,
                 "dequantised weights, arithmetic f32")


if __name__ == "__main__":
    for wanted in sys.argv[2:] or MODELS:
        make(sys.argv[1], wanted)
