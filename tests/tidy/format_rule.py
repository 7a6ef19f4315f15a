# SPDX-License-Identifier: Apache-2.0
"""Every C++ source is as clang-format writes it with the repository's .clang-format."""

import re
import subprocess

from tree import CPP, Breach, Tree

PROGRAM = "clang-format-14"
BATCH = 40


def check(tree: Tree) -> list[Breach]:
    names = tree.sources(CPP)
    batches = [names[at:at + BATCH] for at in range(0, len(names), BATCH)]
    running = [subprocess.Popen([PROGRAM, "--style=file", "--dry-run", "--ferror-limit=1", *batch],
                                cwd=tree.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True) for batch in batches]
    breaches = []
    for process in running:
        output, _ = process.communicate()
        found = re.findall(r"^(\S+?):(\d+):\d+: .*-Wclang-format-violations", output, re.MULTILINE)
        breaches += [Breach(name, int(line), f"run {PROGRAM} -i {name}") for name, line in found]
        if process.returncode != 0 and not found:
            breaches.append(Breach(".clang-format", 1, f"{PROGRAM} failed: {output.strip()}"))
    return breaches
