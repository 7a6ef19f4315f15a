# SPDX-License-Identifier: Apache-2.0
"""Who may ask for the time on the wall. It jumps: NTP, an administrator or a machine that resumes sets it, and a wait or an interval that
goes by it ends early or never. SteadyNow() and Clock::Now() never jump (common/clock.h); the wall is for what people and other
programs read, and each file that asks for it says why in exceptions.txt."""

import re

from tree import CPP, Breach, Tree

ROOMS = ("cli/", "common/", "operator/", "router/", "worker/")
WALL = re.compile(r"\babsl::Now\(\)|\bsystem_clock::now\(\)|\bCLOCK_REALTIME\b|\bgettimeofday\(|(?<![\w:.>])time\((?:nullptr|NULL|0)\)")


def check(tree: Tree) -> list[Breach]:
    breaches = []
    for name in tree.files:
        if not name.endswith(CPP) or not name.startswith(ROOMS):
            continue
        for number, line in enumerate(tree.lines(name), 1):
            if match := WALL.search(line.split("//")[0]):
                breaches.append(Breach(name, number, f"{match.group()} jumps: wait and measure by common/clock.h, or say why here"))
    return breaches
