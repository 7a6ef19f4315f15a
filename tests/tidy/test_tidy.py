#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Feeds each rule a bad file and sees it refused, and a good one and sees it pass."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tidy
from tree import Tree

SPDX = "// SPDX-License-Identifier: Apache-2.0\n"
FORMAT = pathlib.Path(__file__).parents[2] / ".clang-format"


class TidyTest(unittest.TestCase):
    def breaches(self, files: dict[str, str]) -> dict[str, list[str]]:
        """Rule -> messages, for a tree of these files."""
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            files = {".clang-format": FORMAT.read_text(), **files}
            for name, text in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            report = tidy.check(Tree(root, list(files)))
            return {rule: [f"{b.path}:{b.line} {b.message}" for b in found]
                    for rule, found in report.breaches.items() if found}

    def assert_refused(self, rule: str, files: dict[str, str], says: str):
        found = self.breaches(files)
        self.assertEqual([rule], list(found), found)
        self.assertIn(says, found[rule][0])

    def assert_clean(self, files: dict[str, str]):
        self.assertEqual({}, self.breaches(files))

    def include(self, user: str, line: str, other: str = "") -> dict[str, str]:
        files = {user: f"{SPDX}{'#pragma once' if user.endswith('.h') else ''}\n{line}\n"}
        if other:
            files[other] = SPDX + ("#pragma once\n" if other.endswith(".h") else "")
        return files


class IncludeTest(TidyTest):
    def test_services_never_include_each_other(self):
        for user, used in [("worker/api/a.cc", "router/policy/pick.h"),
                           ("router/http/a.cc", "worker/engine/engine.h"),
                           ("operator/reconcile/a.cc", "worker/config/worker_config.h"),
                           ("router/main.cc", "operator/plan/plan.h"),
                           ("common/log.cc", "worker/cache/block_pool.h"),
                           ("cli/serve.cc", "operator/reconcile/observe.h")]:
            with self.subTest(user=user, used=used):
                self.assert_refused("include", self.include(user, f'#include "{used}"', used), used)

    def test_the_command_line_may_make_plans(self):
        used = "operator/plan/plan.h"
        self.assert_clean(self.include("cli/serve.cc", f'#include "{used}"', used))

    def test_protobuf_stops_at_the_workers_border(self):
        line, schema = '#include "proto/worker/v1/worker.pb.h"', "proto/worker/v1/worker.proto"
        self.assert_clean(self.include("worker/api/a.cc", line, schema))
        for inside in ("engine", "model", "cache", "text", "device"):
            with self.subTest(inside=inside):
                self.assert_refused("include", self.include(f"worker/{inside}/a.cc", line, schema),
                                    "worker.pb.h")

    def test_kernels_use_the_standard_library_only(self):
        self.assert_clean(self.include("kernels/a.cc", "#include <vector>"))
        self.assert_clean(self.include("kernels/a.cc", "#include <immintrin.h>"))
        for line in ('#include "absl/types/span.h"', "#include <pthread.h>"):
            with self.subTest(line=line):
                self.assert_refused("include", self.include("kernels/a.cc", line), "kernels/a.cc:3")

    def test_decisions_are_pure(self):
        for user in ("router/policy/pick.cc", "operator/plan/plan.cc", "worker/engine/scheduler.cc"):
            for header in ("chrono", "fstream", "unistd.h"):
                with self.subTest(user=user, header=header):
                    self.assert_refused("include", self.include(user, f"#include <{header}>"),
                                        f"<{header}>")

    def test_includes_are_relative_to_the_root_and_exist(self):
        self.assert_refused("include", self.include("router/a.cc", '#include "pick.h"'), "root")
        self.assert_refused("include", self.include("router/a.cc", '#include "router/gone.h"'),
                            "does not exist")


class SizeTest(TidyTest):
    def function(self, lines: int) -> str:
        body = "".join(f"  x += {i};\n" for i in range(lines - 2))
        return f"{SPDX}namespace a {{\nclass B {{\n  int c = 1;\n}};\nvoid B::Long(int x) {{\n" \
               f"{body}}}\n}}  // namespace a\n"

    def test_a_function_has_at_most_70_lines(self):
        self.assert_clean({"common/a.cc": self.function(70)})
        self.assert_refused("function-size", {"common/a.cc": self.function(71)}, "B::Long has 71")

    def test_methods_in_classes_tests_and_other_languages_count_too(self):
        body = "\n".join(["  ;"] * 70)
        method = f"{SPDX}class A {{\n public:\n  void Run() const {{\n{body}\n  }}\n}};\n"
        test = f"{SPDX}TEST(Suite, Case) {{\n{body}\n}}\n"
        rust = f"{SPDX}impl A {{\n  fn run(&self) -> i32 {{\n{body}\n  }}\n}}\n"
        python = SPDX.replace("//", "#") + "def run():\n" + "    x = 1\n" * 70
        for name, text, function in [("common/a.cc", method, "Run"), ("tests/a.cc", test, "Suite.Case"),
                                     ("worker/a.rs", rust, "run"), ("dev/a.py", python, "run")]:
            with self.subTest(name=name):
                found = self.breaches({name: text}).get("function-size", [""])
                self.assertIn(f"{function} has 7", found[0])

    def test_braces_in_literals_and_long_tables_are_no_functions(self):
        rows = "\n".join('    "}{",' for _ in range(90))
        text = f"{SPDX}// {{ (\nconst char* const kRows[] = {{\n{rows}\n}};\n"
        self.assertNotIn("function-size", self.breaches({"common/a.cc": text}))

    def test_a_file_has_at_most_600_lines(self):
        self.assert_clean({"common/a.cc": SPDX + "int a;\n" * 599})
        self.assert_refused("file-size", {"common/a.cc": SPDX + "int a;\n" * 600}, "601 lines")


class TextTest(TidyTest):
    def test_the_first_line_names_the_licence(self):
        self.assert_refused("first-line", {"common/a.cc": "int a;\n"}, "SPDX")
        self.assert_refused("first-line", {"tool": "#!/bin/sh\necho\n"}, "SPDX")
        self.assert_clean({"tool": "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n"})
        self.assert_refused("first-line", {"common/CMakeLists.txt": "project(x)\n"}, "SPDX")

    def test_a_header_guards_itself(self):
        self.assert_refused("first-line", {"common/a.h": SPDX + "int a();\n"}, "#pragma once")

    def test_no_words_of_unfinished_work(self):
        for word in ("TO" "DO", "FIX" "ME", "place" "holder", "for " "now"):
            with self.subTest(word=word):
                self.assert_refused("words", {"common/a.cc": f"{SPDX}// {word}: x\n"}, word)


class ClockTest(TidyTest):
    def test_nothing_waits_by_the_wall(self):
        for call in ("absl::Now()", "std::chrono::system_clock::now()", "time(nullptr)", "clock_gettime(CLOCK_REALTIME, &t)"):
            with self.subTest(call=call):
                self.assert_refused("clock", {"worker/group/a.cc": f"{SPDX}auto until = {call};\n"}, "jumps")

    def test_the_steady_clock_and_words_about_others_are_fine(self):
        self.assert_clean({"worker/group/a.cc": SPDX + "auto a = SteadyNow();\nauto b = clock.time(0);\n// Not absl::Now().\n",
                           "tests/a_test.cc": SPDX + "auto a = absl::Now();\n"})


class CastTest(TidyTest):
    def test_kernels_reach_memory_as_another_type_by_wide(self):
        for cast in ("*reinterpret_cast<uint32_t*>(codes + at) = word", "auto a = *reinterpret_cast<const uint2*>(from)",
                     "auto* a = reinterpret_cast<Element*>(block) + row"):
            for name in ("kernels/cuda/a.cu", "kernels/cuda/a.h"):
                with self.subTest(cast=cast, name=name):
                    self.assert_refused("cast", {name: f"{SPDX}{'#pragma once' if name.endswith('.h') else ''}\n{cast};\n"}, "Wide<T>")

    def test_addresses_as_numbers_and_the_host_are_fine(self):
        self.assert_clean({"kernels/cuda/a.cu": SPDX + "auto a = reinterpret_cast<uintptr_t>(b);\nauto c = reinterpret_cast<const void*>(d);\n",
                           "kernels/cuda/a.cc": SPDX + "auto a = reinterpret_cast<float*>(b);\n"})


class PathTest(TidyTest):
    GOOD = {"common/log.h": SPDX + "#pragma once\n", "docs/OTHER.md": "words\n"}

    def test_paths_in_docs_exist(self):
        self.assert_clean({**self.GOOD, "docs/A.md":
                           "See `common/log.h`, [other](OTHER.md#part), `common/<name>.h`, "
                           "`build/dev/bin/rempart`, `common/{log}.h`.\n"})
        for text in ("See `common/gone.h`.", "See [x](GONE.md).", "    common/gone --flag",
                     "```\n./gone\n```", "`common/gone/*.h`", "`common/{log,gone}.h`",
                     '<img src="img/gone.svg">'):
            with self.subTest(text=text):
                self.assert_refused("path", {**self.GOOD, "docs/A.md": text + "\n"}, "docs/A.md")

    def test_paths_in_comments_exist(self):
        self.assert_refused("path", {**self.GOOD, "common/a.cc": SPDX + "// See docs/GONE.md.\n"},
                            "docs/GONE.md")
        self.assert_clean({**self.GOOD, "common/a.cc": SPDX + "// http://x.org/docs/gguf.md\n"})


class FormatTest(TidyTest):
    def test_sources_are_formatted(self):
        self.assert_refused("format", {"common/a.cc": SPDX + "int  a ;\n"}, "common/a.cc")


class ExceptionsTest(TidyTest):
    BAD = {"common/a.cc": "int a;\n"}

    def test_an_exception_with_a_reason_excuses(self):
        self.assert_clean({**self.BAD, tidy.EXCEPTIONS: "first-line common/a.cc copied from elsewhere\n"})

    def test_an_exception_without_a_reason_is_refused(self):
        found = self.breaches({**self.BAD, tidy.EXCEPTIONS: "first-line common/a.cc\n"})
        self.assertEqual({"first-line", "exceptions"}, set(found))

    def test_a_stale_exception_is_refused(self):
        self.assert_refused("exceptions", {tidy.EXCEPTIONS: "words common/gone.cc was needed once\n"},
                            "excuses nothing")


if __name__ == "__main__":
    unittest.main()
