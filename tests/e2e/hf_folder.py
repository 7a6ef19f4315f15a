# SPDX-License-Identifier: Apache-2.0
"""Writes a GGUF file of a Llama model as a folder in Hugging Face layout with the very same weights, in F32 and in two shards."""
import json
import pathlib
import struct

import gguf
import numpy

LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}  # the head is tied to the embedding
CONTROL = 3  # tokenizer.ggml.token_type of tokens that are never spelled in text


def folder_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    return f"{OTHER_NAMES[parts[0]]}.weight"


def halves(weight: numpy.ndarray, heads: int) -> numpy.ndarray:
    """GGUF keeps queries and keys of Llama permuted for interleaved rotation; folders rotate by halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_safetensors(path: pathlib.Path, tensors: dict[str, numpy.ndarray]) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def tokenizer_json(value) -> dict:
    tokens, types = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    added = [{"id": i, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False} for i, (token, kind) in enumerate(zip(tokens, types)) if kind == CONTROL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": [merge.split(" ") for merge in value("tokenizer.ggml.merges")]},
    }


def write(source: pathlib.Path, folder: pathlib.Path) -> None:
    reader = gguf.GGUFReader(source)

    def value(key: str):
        return reader.fields[key].contents()

    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": True,
        "hidden_size": value("llama.embedding_length"), "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"), "rope_theta": value("llama.rope.freq_base"),
        "max_position_embeddings": value("llama.context_length"), "vocab_size": len(value("tokenizer.ggml.tokens")),
        "bos_token_id": value("tokenizer.ggml.bos_token_id"), "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }
    tokens = value("tokenizer.ggml.tokens")
    texts = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": config["eos_token_id"]},
        "tokenizer.json": tokenizer_json(value),
        "tokenizer_config.json": {"bos_token": tokens[config["bos_token_id"]], "eos_token": tokens[config["eos_token_id"]],
                                  "chat_template": value("tokenizer.chat_template")},
    }
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for shard in (0, 1):
        tensors = {}
        for tensor in reader.tensors[shard::2]:
            weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
            if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
                weight = halves(weight, heads if ".attn_q." in tensor.name else kv_heads)
            tensors[folder_name(tensor.name)] = weight
        file = f"model-{shard + 1:05}-of-00002.safetensors"
        write_safetensors(folder / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    texts["model.safetensors.index.json"] = {"metadata": {}, "weight_map": weight_map}
    for name, text in texts.items():
        (folder / name).write_text(json.dumps(text, ensure_ascii=False))
