# SPDX-License-Identifier: Apache-2.0
"""Line 1 names the licence, a header guards itself, and no file holds words of unfinished work."""

import re

from tree import DATA_FOLDERS, Breach, Tree

SPDX = "SPDX-License-Identifier: Apache-2.0"
# Split so that this file does not hold them.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b"
                        r"|\b(place" r"holder|for " r"now|not " r"implemented yet|lorem " r"ipsum)\b",
                        re.IGNORECASE)
TEXTS = (".h", ".cc", ".cu", ".proto", ".py", ".rs", ".sh", ".cmake", ".md", ".yaml", ".tpl", ".txt",
         ".json", ".toml")


def check_first_line(tree: Tree) -> list[Breach]:
    breaches = []
    for name in tree.sources() + tree.scripts() + tree.cmake_lists():
        lines = tree.lines(name) or [""]
        at = 1 if lines[0].startswith("#!") else 0
        if len(lines) <= at or SPDX not in lines[at]:
            breaches.append(Breach(name, at + 1, f"the first line must say {SPDX}"))
        if name.endswith(".h") and not name.endswith(".inl.h") and "#pragma once" not in lines:
            breaches.append(Breach(name, 1, "a header must say #pragma once"))
    return breaches


def check_words(tree: Tree) -> list[Breach]:
    breaches = []
    for name in sorted(set([n for n in tree.files if n.endswith(TEXTS)] + tree.scripts())):
        if name.startswith(DATA_FOLDERS):
            continue
        for number, line in enumerate(tree.lines(name), 1):
            if match := UNFINISHED.search(line):
                breaches.append(Breach(name, number, f"a word of unfinished work: {match.group()}"))
    return breaches
