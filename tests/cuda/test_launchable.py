#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kernels that a GPU would not start, and one that it would, as nvcc compiles them.

    tests/cuda/test_launchable.py NVCC
"""

import contextlib
import io
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import launchable
from launchable import Kernel

NVCC = sys.argv.pop() if len(sys.argv) > 1 else "nvcc"


def kernel(registers=32, threads=256, local_bytes=0) -> Kernel:
    return Kernel("K", 90, registers, threads, local_bytes)


class FaultsTest(unittest.TestCase):
    def assert_fault(self, says: str, **figures):
        found = launchable.faults(kernel(**figures))
        self.assertEqual(1, len(found), found)
        self.assertIn(says, found[0])

    def test_a_block_that_fills_the_multiprocessor_starts(self):
        for registers, threads in [(128, 512), (64, 1024), (255, 256)]:
            self.assertEqual([], launchable.faults(kernel(registers=registers, threads=threads)))

    def test_a_register_too_many_is_eight_for_every_thread(self):
        self.assert_fault("129 registers", registers=129, threads=512)
        self.assert_fault("65 registers", registers=65, threads=1024)

    def test_threads_come_in_whole_warps(self):
        self.assert_fault("128 registers", registers=128, threads=513)

    def test_a_block_has_a_limit_and_a_size(self):
        self.assert_fault("1025 threads", threads=1025)
        self.assert_fault("REMPART_KERNEL(threads)", threads=None)

    def test_local_memory_has_a_limit(self):
        self.assertEqual([], launchable.faults(kernel(local_bytes=64)))
        self.assert_fault("72 bytes", local_bytes=72)


class CompiledTest(unittest.TestCase):
    def look_at(self, source: str) -> tuple[int, str, str]:
        """Exit status, output and errors for the object of this source."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "kernel.cu")
            path.write_text(source)
            subprocess.run([NVCC, "-c", path, "-o", f"{folder}/kernel.o",
                            "-gencode=arch=compute_80,code=sm_80",
                            "-gencode=arch=compute_90a,code=sm_90a"], check=True)
            with (contextlib.redirect_stdout(io.StringIO()) as out,
                  contextlib.redirect_stderr(io.StringIO()) as errors):
                status = launchable.main([f"{folder}/kernel.o"])
            return status, out.getvalue(), errors.getvalue()

    def test_a_bounded_kernel_is_launchable_on_each_architecture(self):
        status, out, errors = self.look_at(
            "__global__ void __launch_bounds__(512) Sum(int* at) { *at += threadIdx.x; }")
        self.assertEqual((0, ""), (status, errors))
        self.assertIn("2 launchable, 0 not", out)

    def test_a_kernel_without_a_bound_is_named_on_each_architecture(self):
        status, out, errors = self.look_at("__global__ void Sum(int* at) { *at += threadIdx.x; }")
        self.assertEqual(1, status)
        for architecture in ("sm_80", "sm_90"):
            self.assertIn(f"{architecture}: Sum(int*) names no largest block", errors)
        self.assertIn("0 launchable, 2 not", out)

    def test_an_array_in_local_memory_is_named(self):
        status, _, errors = self.look_at(
            "__global__ void __launch_bounds__(64) Pick(int* at, int n) {\n"
            "  int all[64];\n  for (int i = 0; i < n; ++i) all[at[i] & 63] = i;\n"
            "  at[0] = all[n & 63] + all[n / 64 & 63];\n}\n")
        self.assertEqual(1, status)
        self.assertIn("keeps 256 bytes of each thread in local memory", errors)

    def test_an_object_without_kernels_is_no_success(self):
        status, _, errors = self.look_at("int Host() { return 1; }")
        self.assertEqual(1, status)
        self.assertIn("holds no kernel", errors)


if __name__ == "__main__":
    unittest.main()
