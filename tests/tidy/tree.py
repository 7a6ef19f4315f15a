# SPDX-License-Identifier: Apache-2.0
"""The files that the rules read: a root and the names below it."""

import dataclasses
import functools
import pathlib

# Data, not source: no rule about sources applies below these.
DATA_FOLDERS = ("tests/goldens/", "tests/fuzz/corpus/", "docs/img/")
CPP = (".h", ".cc", ".cu", ".cuh")
SOURCES = CPP + (".proto", ".py", ".rs", ".sh", ".cmake")


@dataclasses.dataclass(frozen=True)
class Breach:
    path: str
    line: int
    message: str
    function: str = ""

    def subject(self) -> str:
        """How tests/tidy/exceptions.txt names it."""
        return f"{self.path}:{self.function}" if self.function else self.path


class Tree:
    def __init__(self, root: pathlib.Path, files: list[str]):
        self.root = root
        self.files = sorted(files)
        self.folders = {str(parent) for name in files for parent in pathlib.PurePath(name).parents}

    @functools.cache
    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def lines(self, name: str) -> list[str]:
        return self.text(name).splitlines()

    def exists(self, name: str) -> bool:
        name = name.rstrip("/")
        return name in self.folders or (self.root / name).exists() or name in self.files

    def sources(self, suffixes: tuple[str, ...] = SOURCES) -> list[str]:
        return [n for n in self.files if n.endswith(suffixes) and not n.startswith(DATA_FOLDERS)]

    def scripts(self) -> list[str]:
        """Files without a suffix whose first line names an interpreter."""
        return [n for n in self.files
                if "." not in pathlib.PurePath(n).name and not n.startswith(DATA_FOLDERS)
                and self.text(n).startswith("#!")]

    def cmake_lists(self) -> list[str]:
        return [n for n in self.files if pathlib.PurePath(n).name == "CMakeLists.txt"]
