#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/goldens/families/NAME: small models with seeded random weights, and what transformers
computes with them in F32 arithmetic on BF16 weights. Not run by ./test; run it to add a family or a
shape, in an environment of its own:

    python3 -m venv /tmp/families
    /tmp/families/bin/pip install torch==2.13.0 transformers==5.19.0 numpy safetensors
    /tmp/families/bin/python tests/goldens/make_families.py tests/goldens/families [NAME ...]
"""

import sys

import torch

from golden_models import logits_of, new_folder, seeded, write_golden

# name: (configuration class, what differs from SHAPE, seed)
FAMILIES = {
    "llama_linear": ("LlamaConfig", dict(rope_parameters={
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}), 11),
    "llama_bias": ("LlamaConfig", dict(attention_bias=True, mlp_bias=True, num_key_value_heads=5,
                                       hidden_size=80, num_attention_heads=10,
                                       rope_parameters={"rope_type": "default",
                                                        "rope_theta": 10000.0}), 12),
    "qwen2_yarn": ("Qwen2Config", dict(rope_parameters={
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0,
        "original_max_position_embeddings": 128}), 13),
    "phi4_mini": ("Phi3Config", dict(
        num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
        original_max_position_embeddings=128,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0,
                         "partial_rotary_factor": 0.75,
                         "original_max_position_embeddings": 128,
                         "short_factor": [1.0 + 0.05 * i for i in range(12)],
                         "long_factor": [1.0 + 0.7 * i for i in range(12)]}), 14),
}


def make(folder, name):
    config_class, differences, seed = FAMILIES[name]
    model, ids = seeded(config_class, differences, seed)
    computed = logits_of(model, ids)
    out = new_folder(folder, name)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    write_golden(out, model, ids, computed, seed, "weights bf16, arithmetic f32")


if __name__ == "__main__":
    for wanted in sys.argv[2:] or FAMILIES:
        make(sys.argv[1], wanted)
