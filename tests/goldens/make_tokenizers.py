#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/goldens/tokenizers: a small tekken.json and a small SentencePiece tokenizer.model, trained on the text of
tests/goldens/perplexity, and the ids that mistral-common and sentencepiece give hostile strings with them. Not run by ./test:

    python3 -m venv /tmp/tokenizers
    /tmp/tokenizers/bin/pip install mistral-common==1.13.1 sentencepiece==0.2.3
    /tmp/tokenizers/bin/python tests/goldens/make_tokenizers.py
"""
import base64
import collections
import io
import json
import pathlib

import mistral_common
import regex
import sentencepiece
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

GOLDENS = pathlib.Path(__file__).resolve().parent
OUT = GOLDENS / "tokenizers"
TEXT = (GOLDENS / "perplexity/text.txt").read_text()
# Of tekken version 3.
PATTERN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
           r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
           r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIALS, MERGES, CUT = 24, 240, 10
NAMED = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]"]


def trained_ranks(text: str, merges: int) -> list[bytes]:
    """Byte-level BPE, the most frequent pair first."""
    words = collections.Counter(tuple(bytes([b]) for b in word.encode()) for word in regex.findall(PATTERN, text))
    ranks = [bytes([i]) for i in range(256)]
    while len(ranks) < 256 + merges:
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if best[0] + best[1] in ranks:
            raise SystemExit("a merge gave a token that is there")
        ranks.append(best[0] + best[1])
        after = collections.Counter()
        for word, times in words.items():
            merged, i = [], 0
            while i < len(word):
                if word[i:i + 2] == best:
                    merged.append(word[i] + word[i + 1])
                    i += 2
                else:
                    merged.append(word[i])
                    i += 1
            after[tuple(merged)] += times
        words = after
    return ranks


def write_tekken(path: pathlib.Path, version: str) -> None:
    ranks = trained_ranks(TEXT, MERGES)
    vocab = [{"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None} for i, token in enumerate(ranks)]
    config = {"pattern": PATTERN, "num_vocab_tokens": len(ranks), "default_vocab_size": SPECIALS + len(ranks) - CUT,
              "default_num_special_tokens": SPECIALS, "version": version}
    file = {"config": config, "vocab": vocab}
    if int(version[1:]) > 7:
        file["special_tokens"] = [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(NAMED)]
    path.write_text(json.dumps(file, separators=(",", ":")) + "\n")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    texts = [case["text"] for case in json.loads((GOLDENS / "text/smollm2-135m-instruct-q4_1.json").read_text())["tokenize"]]
    texts += [TEXT[:3000], "[INST] hi [/INST]</s>", " leading", "trailing ", "ALLCAPS camelCase", "1234567", "a\r\n\r\nb"]
    golden = {"mistral_common": mistral_common.__version__, "sentencepiece": sentencepiece.__version__, "texts": texts}
    for version in ("v3", "v11"):
        path = OUT / f"{version}.tekken.json"
        write_tekken(path, version)
        tekken = Tekkenizer.from_file(path)
        golden[f"tekken_{version}"] = {"ids": [tekken.encode(text, bos=False, eos=False) for text in texts],
                                       "size": tekken.n_words, "spellings": [tekken.id_to_piece(i) for i in range(SPECIALS)]}
    for name, prefix in (("prefix", True), ("plain", False)):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT.split("\n")), model_writer=model, model_type="bpe", vocab_size=500, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix,
            allow_whitespace_only_pieces=True, split_digits=True, character_coverage=0.9995, minloglevel=2)
        (OUT / f"{name}.tokenizer.model").write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        golden[f"sentencepiece_{name}"] = {"ids": [processor.encode(text) for text in texts], "size": processor.get_piece_size()}
    unigram = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.split("\n")), model_writer=unigram, vocab_size=300,
                                             model_type="unigram", hard_vocab_limit=False,
                                             normalization_rule_name="identity", minloglevel=2)
    (OUT / "unigram.tokenizer.model").write_bytes(unigram.getvalue())
    (OUT / "golden.json").write_text(json.dumps(golden) + "\n")


main()
