#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/goldens/tokenizers/gguf_splits.json: a byte-level vocabulary that merges every pair of characters of a small
alphabet, so that ids tell where a text was split, and the ids that Hugging Face's tokenizers gives random texts with the
splits that GGUF names in tokenizer.ggml.pre. Not run by ./test:

    python3 -m venv /tmp/tokenizers
    /tmp/tokenizers/bin/pip install tokenizers==0.22.1
    /tmp/tokenizers/bin/python tests/goldens/make_gguf_splits.py
"""
import json
import pathlib
import random

import tokenizers
from gguf_vocabulary import vocabulary
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

OUT = pathlib.Path(__file__).resolve().parent / "tokenizers/gguf_splits.json"
SEED, TEXTS = 11, 100
# Of every class that the splits tell apart, some outside ASCII: letters of both cases, of title case, modifiers, letters without
# case, marks, numbers, spaces, ends of lines, marks of punctuation, a symbol and a joiner.
ALPHABET = list("asTLéÉ中क12²Ⅷ٣ \n\r\t'/!😀") + ["\u01c5", "\u02b0", "\u0301", "\u093f", "\u00a0", "\u200d"]
CONTRACTIONS = ["'s", "'T", "'LL", "'re", "'Ve", "'d", "'aT"]
# The patterns of the models' own tokenizer.json.
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|{ENDS}"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SHORT}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SHORT}|"
         rf"\p{{N}}{{1,3}}|{ENDS}")


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                       pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "llama-bpe": split(LLAMA3),  # Llama 3, Phi 4
    "qwen2": split(QWEN2),       # Qwen 2, 2.5 and 3
    "tekken": split(TEKKEN),     # Mistral Nemo and Small
    "gpt-4o": split(O200K),      # Phi 4 mini
}


def main() -> None:
    choice = random.Random(SEED)
    tokens, merges = vocabulary(choice, ALPHABET)
    texts = ["".join(choice.choice(ALPHABET + CONTRACTIONS) for _ in range(choice.randint(6, 24))) for _ in range(TEXTS)]
    golden = {"tokenizers": tokenizers.__version__, "tokens": tokens, "merges": merges, "texts": texts, "ids": {}}
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges])
    for name, pre_tokenizer in SPLITS.items():
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizer
        golden["ids"][name] = [tokenizer.encode(text).ids for text in texts]
    OUT.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
