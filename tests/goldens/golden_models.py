# SPDX-License-Identifier: Apache-2.0
"""What make_families.py and make_quantized.py share: the shape of their models, the weights and the
tokens that a seed makes, and the record of what transformers computes with them."""

import json
import pathlib

import numpy
import torch
import transformers

VOCABULARY, TOKENS, PROMPT, GREEDY = 320, 80, 24, 40
ROWS = [0, 1, 15, 16, 17, 40, 79]
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=96, intermediate_size=224, num_hidden_layers=3,
             num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512,
             initializer_range=0.08, bos_token_id=1, eos_token_id=2, pad_token_id=0,
             attn_implementation="eager")


def randomise(model, generator):
    """Weights, biases and norms alike, so that nothing hides behind a zero or a one."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.08
        is_norm = "norm" in name
        parameter.data = (noise + 1 if is_norm else noise).to(torch.bfloat16).float()


def seeded(config_class, differences, seed):
    """The model of SHAPE but for `differences`, and the tokens that it is asked about."""
    config = getattr(transformers, config_class)(**{**SHAPE, **differences})
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    randomise(model, generator)
    model.tie_weights()
    return model, torch.randint(3, VOCABULARY, (1, TOKENS), generator=generator)


def logits_of(model, ids):
    """The logits after each token, and the tokens that follow the first PROMPT greedily."""
    with torch.no_grad():
        logits = model(ids).logits[0].float()
        greedy, context = [], ids[:, :PROMPT]
        for _ in range(GREEDY):
            best = model(context).logits[0, -1].argmax().view(1, 1)
            greedy.append(int(best))
            context = torch.cat([context, best], dim=1)
    return logits, greedy


def write_golden(out, model, ids, computed, seed, dtype):
    """logits_f32.npy and golden.json in the folder `out`, of what logits_of computed."""
    logits, greedy = computed
    top = logits.topk(2, dim=-1).values
    gap = float((top[:, 0] - top[:, 1]).min())
    next_log = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).double().sum()
    numpy.save(out / "logits_f32.npy", logits[ROWS].numpy())
    (out / "golden.json").write_text(json.dumps({
        "family": out.name, "model_type": model.config.model_type, "seed": seed,
        "transformers": transformers.__version__, "torch": torch.__version__,
        "dtype": dtype, "input_ids": ids[0].tolist(),
        "logits_rows": ROWS, "sum_logprob_next": float(next_log),
        "argmax": logits.argmax(-1).tolist(),
        "min_top2_gap": gap, "greedy_from_24": greedy}))
    print(out.name, "smallest gap", gap)


def new_folder(folder, name):
    out = pathlib.Path(folder) / name
    out.mkdir(parents=True, exist_ok=True)
    return out
