# SPDX-License-Identifier: Apache-2.0
"""Every path named in the docs, or in a comment of a source, exists.

In Markdown: link targets, and words in backticks or code blocks that start with a top-level name of
the repository or with ./ . `<name>`, `*` and `{a,b}` stand for whatever matches. build/ is where
results go, so it may name what is built."""

import glob
import itertools
import pathlib
import re

from include_rule import proto_of
from tree import CPP, Breach, Tree

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|(?:src|href)=\"([^\"#]+)\"")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?<![\w/.@:$}-])(\./)?([A-Za-z0-9_.<>{}*,-]+(?:/[A-Za-z0-9_.<>{}*,-]*)*)")
COMMENT = re.compile(r"(?://|#).*?(?<![\w./])((?:common|kernels|worker|router|operator|cli|tests|docs|dev|proto)/"
                     r"[\w/.-]+\.(?:h|cc|cu|py|md|proto|rs|sh|txt|json|yaml))\b")


def patterns(path: str) -> list[str]:
    """Glob patterns of one written path: `a/{b,c}/<name>.h` -> a/b/*.h and a/c/*.h."""
    path = re.sub(r"<[^<>]*>", "*", path)
    parts = re.split(r"\{([^{}]*)\}", path)
    choices = [[part] if i % 2 == 0 else part.split(",") for i, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def exists(tree: Tree, path: str) -> bool:
    for pattern in patterns(path.rstrip(".,:")):
        found = glob.glob(str(tree.root / pattern.rstrip("/")), recursive=True)
        if not found and not tree.exists(pattern):
            return False
    return True


def code_words(text: str) -> list[tuple[int, str]]:
    """(line, code) of the code spans and of the lines of fenced or indented code blocks."""
    words, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            words.append((number, line))
        else:
            words += [(number, span) for span in CODE.findall(line)]
    return words


def named_paths(tree: Tree, text: str) -> list[tuple[int, str]]:
    tops = {name.split("/")[0] for name in tree.files if "/" in name}
    named = []
    for number, code in code_words(text):
        for dot, path in PATH.findall(code):
            if dot or ("/" in path and path.split("/")[0] in tops):
                if not path.startswith("build/"):
                    named.append((number, path))
    return named


def check(tree: Tree) -> list[Breach]:
    breaches = []
    for name in (n for n in tree.files if n.endswith(".md")):
        text = tree.text(name)
        for number, path in named_paths(tree, text):
            if not exists(tree, path):
                breaches.append(Breach(name, number, f"names {path}, which does not exist"))
        folder = pathlib.PurePath(name).parent
        for number, line in enumerate(text.splitlines(), 1):
            for target in filter(None, itertools.chain(*LINK.findall(line))):
                if ":" not in target and not (tree.root / folder / target).exists():
                    breaches.append(Breach(name, number, f"links to {target}, which does not exist"))
    for name in tree.sources(CPP + (".proto", ".py", ".cmake")):
        for number, line in enumerate(tree.lines(name), 1):
            if match := COMMENT.search(line):
                if "#include" not in line and not exists(tree, proto_of(match[1])):
                    breaches.append(Breach(name, number, f"names {match[1]}, which does not exist"))
    return breaches
