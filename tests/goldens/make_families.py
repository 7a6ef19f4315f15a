#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/goldens/families/NAME: small models with seeded random weights, and what transformers
computes with them in F32 arithmetic on BF16 weights. Not run by ./test; run it to add a family or a
shape, in an environment of its own:

    python3 -m venv /tmp/families
    /tmp/families/bin/pip install torch==2.13.0 transformers==5.19.0 numpy safetensors
    /tmp/families/bin/python tests/goldens/make_families.py tests/goldens/families [NAME ...]
"""

import json
import pathlib
import sys

import numpy
import torch
import transformers

VOCABULARY, TOKENS, PROMPT, GREEDY = 320, 80, 24, 40
ROWS = [0, 1, 15, 16, 17, 40, 79]
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=96, intermediate_size=224, num_hidden_layers=3,
             num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512,
             initializer_range=0.08, bos_token_id=1, eos_token_id=2, pad_token_id=0,
             attn_implementation="eager")
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


def randomise(model, generator):
    """Weights, biases and norms alike, so that nothing hides behind a zero or a one."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.08
        is_norm = "norm" in name
        parameter.data = (noise + 1 if is_norm else noise).to(torch.bfloat16).float()


def make(folder, name):
    config_class, differences, seed = FAMILIES[name]
    config = getattr(transformers, config_class)(**{**SHAPE, **differences})
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    randomise(model, generator)
    model.tie_weights()
    ids = torch.randint(3, VOCABULARY, (1, TOKENS), generator=generator)
    with torch.no_grad():
        logits = model(ids).logits[0].float()
        greedy, context = [], ids[:, :PROMPT]
        for _ in range(GREEDY):
            best = model(context).logits[0, -1].argmax().view(1, 1)
            greedy.append(int(best))
            context = torch.cat([context, best], dim=1)
    top = logits.topk(2, dim=-1).values
    next_log = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).double().sum()
    out = pathlib.Path(folder) / name
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    numpy.save(out / "logits_f32.npy", logits[ROWS].numpy())
    (out / "golden.json").write_text(json.dumps({
        "family": name, "model_type": config.model_type, "seed": seed,
        "transformers": transformers.__version__, "torch": torch.__version__,
        "dtype": "weights bf16, arithmetic f32", "input_ids": ids[0].tolist(),
        "logits_rows": ROWS, "sum_logprob_next": float(next_log),
        "argmax": logits.argmax(-1).tolist(),
        "min_top2_gap": float((top[:, 0] - top[:, 1]).min()), "greedy_from_24": greedy}))
    print(name, "smallest gap", float((top[:, 0] - top[:, 1]).min()))


if __name__ == "__main__":
    for wanted in sys.argv[2:] or FAMILIES:
        make(sys.argv[1], wanted)
