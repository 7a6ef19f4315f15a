#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes tests/goldens/tokenizers/gguf_default_split.json: the ids that llama.cpp gives random texts with a byte-level vocabulary
whose GGUF file has no tokenizer.ggml.pre, in the manner of make_gguf_splits.py. llama.cpp splits them as nothing else does, so it
is asked itself: its server loads a model without weights to speak of. Not run by ./test:

    python3 -m venv /tmp/tokenizers
    /tmp/tokenizers/bin/pip install gguf==0.19.0
    /tmp/tokenizers/bin/python tests/goldens/make_gguf_default.py PATH_OF_LLAMA_SERVER
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import urllib.request

import gguf
import numpy
from gguf_vocabulary import vocabulary

OUT = pathlib.Path(__file__).resolve().parent / "tokenizers/gguf_default_split.json"
SEED, TEXTS, PORT, WIDTH = 17, 120, 18431, 32
# Of every class that the four steps tell apart: letters, marks, numbers inside and outside ASCII, punctuation, the symbols
# that its first step names and those that it does not, spaces, ends of lines.
ALPHABET = list("asTé中123٣²Ⅷ \n\t'.-_«$+<=>^~|`€©😀") + ["\u0301", "\u00a0", "\u200d"]
STRINGS = ["'s", "'LL", "1234567", "٣٣٣٣", "12²", "  ", " a", "\n\n"]


def write_model(path: pathlib.Path, tokens: list[str], merges: list[str]) -> None:
    """Of one layer of zeros."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,), "blk.0.attn_norm": (WIDTH,),
              "blk.0.ffn_norm": (WIDTH,)}
    square = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes |= {f"blk.0.{name}": (WIDTH, WIDTH) for name in square}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numpy.zeros(shape, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask(path: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait(server: subprocess.Popen) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit(f"llama-server ended with status {server.returncode}")
        try:
            ask("/health")
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("llama-server is not ready after a minute")


def main() -> None:
    choice = random.Random(SEED)
    tokens, merges = vocabulary(choice, ALPHABET)
    pieces = ALPHABET + STRINGS
    texts = ["".join(choice.choice(pieces) for _ in range(choice.randint(6, 24))) for _ in range(TEXTS)]
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "model.gguf"
        write_model(model, tokens, merges)
        server = subprocess.Popen([sys.argv[1], "-m", str(model), "--port", str(PORT), "-c", "128", "-t", "1", "--no-warmup"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait(server)
            ids = [ask("/tokenize", {"content": text, "add_special": False})["tokens"] for text in texts]
        finally:
            server.terminate()
            server.wait()
    golden = {"llama_cpp": "of llama-cpp-python 0.3.36", "tokens": tokens, "merges": merges, "texts": texts, "ids": ids}
    OUT.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
