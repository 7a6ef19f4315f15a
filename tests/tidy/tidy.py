#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rules of the repository that no compiler checks: who may include whom, sizes, first lines, words,
formatting, and that every path named in the docs exists.

    tests/tidy/tidy.py [FOLDER]     prints every breach, then one line per rule; exit 1 on a breach

A breach that must stay is named in tests/tidy/exceptions.txt with its reason; an exception that
excuses nothing is a breach itself. test_tidy.py feeds bad files to each rule and sees them refused.
"""

import dataclasses
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import cast_rule
import clock_rule
import format_rule
import include_rule
import path_rule
import size_rules
import text_rules
from tree import Breach, Tree

RULES = {
    "include": include_rule.check,
    "file-size": size_rules.check_files,
    "function-size": size_rules.check_functions,
    "first-line": text_rules.check_first_line,
    "words": text_rules.check_words,
    "path": path_rule.check,
    "clock": clock_rule.check,
    "cast": cast_rule.check,
    "format": format_rule.check,
}
EXCEPTIONS = "tests/tidy/exceptions.txt"


@dataclasses.dataclass
class Report:
    breaches: dict[str, list[Breach]]

    def failed(self) -> int:
        return sum(1 for found in self.breaches.values() if found)


def read_exceptions(tree: Tree) -> tuple[dict[tuple[str, str], int], list[Breach]]:
    """`RULE PATH[:FUNCTION] reason ...` a line -> ({(rule, subject): line number}, malformed lines)."""
    exceptions, malformed = {}, []
    for number, line in enumerate(tree.lines(EXCEPTIONS), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split(maxsplit=2)
        if len(words) < 3 or words[0] not in RULES:
            malformed.append(Breach(EXCEPTIONS, number, f"want 'RULE PATH reason', got '{line}'"))
        else:
            exceptions[words[0], words[1]] = number
    return exceptions, malformed


def check(tree: Tree) -> Report:
    exceptions, malformed = read_exceptions(tree)
    used = set()
    report = Report({rule: [] for rule in RULES})
    for rule, run in RULES.items():
        for breach in run(tree):
            if (rule, breach.subject()) in exceptions:
                used.add((rule, breach.subject()))
            else:
                report.breaches[rule].append(breach)
    report.breaches["exceptions"] = malformed + [
        Breach(EXCEPTIONS, number, f"excuses nothing any more: {rule} {subject}")
        for (rule, subject), number in exceptions.items()
        if (rule, subject) not in used
    ]
    return report


def files_of(root: pathlib.Path) -> list[str]:
    """What git tracks, and what it would track after `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    report = check(Tree(root, files_of(root)))
    for rule, found in report.breaches.items():
        for breach in found:
            print(f"{breach.path}:{breach.line}: [{rule}] {breach.message}")
    failed = report.failed()
    print(f"tidy: {len(report.breaches) - failed} rules hold, {failed} broken")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
