# SPDX-License-Identifier: Apache-2.0
"""Kernels reach memory as another type by Wide<T> alone (kernels/cuda/platform.h). A GPU ends a kernel for an address that is no
multiple of what is read or written at once, the CPU does not mind: only through Wide the emulator notices."""

import re

from tree import Breach, Tree

DEVICE_CODE = ("kernels/cuda/",)
CAST = re.compile(r"\breinterpret_cast<(?!(?:const )?void\b)[^<>]*\*>")


def check(tree: Tree) -> list[Breach]:
    breaches = []
    for name in tree.files:
        # The emulator's own memory and whatever the host does are no matter of a GPU.
        if not name.startswith(DEVICE_CODE) or not name.endswith((".cu", ".h")) or name.endswith("/emulator.h"):
            continue
        for number, line in enumerate(tree.lines(name), 1):
            if match := CAST.search(line.split("//")[0]):
                breaches.append(Breach(name, number, f"{match.group()}: use Wide<T>, which the emulator looks at"))
    return breaches
