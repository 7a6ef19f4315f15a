# SPDX-License-Identifier: Apache-2.0
"""What make_gguf_splits.py and make_gguf_default.py share: a byte-level vocabulary that merges every pair of characters of an
alphabet, so that ids tell where a text was split."""

import random


def spellings() -> list[str]:
    """Of each byte, as GPT-2 spells it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]


def vocabulary(choice: random.Random, alphabet: list[str]) -> tuple[list[str], list[str]]:
    """Tokens and merges: bytes, the characters of the alphabet, then their pairs in any order."""
    tokens = spellings()
    spelled = {char: "".join(tokens[byte] for byte in char.encode()) for char in alphabet}
    pairs = [(a, b) for a in spelled.values() for b in spelled.values()]
    choice.shuffle(pairs)
    parts = [(char[:i], char[i]) for char in spelled.values() for i in range(1, len(char))]
    merges = []
    for left, right in parts + pairs:
        if left + right not in tokens:
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    return tokens, merges
