#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether a GPU can start every kernel of compiled CUDA files, and whether its threads stay out of
local memory.

    tests/cuda/launchable.py OBJECT...      last line: "N launchable, N not"

Registers are shared out to whole warps, 8 a thread at a time, from the 64 Ki of a multiprocessor: a
block that needs more is never started. Which block is the largest one only the source knows, so
every kernel has to name it (REMPART_KERNEL, kernels/cuda/platform.h).

What is read are the images for single architectures in an object's section .nv_fatbin, and in each
the attributes that ptxas leaves for the driver in .nv.info.
"""

import dataclasses
import pathlib
import struct
import subprocess
import sys

REGISTERS = 65536  # of a multiprocessor, and the most that a block may have
THREADS = 1024
# Bytes of a thread: cosf and sinf bring 32 for large angles; the widest kernels spill a few words.
LOCAL_BYTES = 64

FATBIN_MAGIC = 0xBA55ED50
FATBIN_ELF = 2
ELF_MAGIC = b"\x7fELF"
# Attributes of .nv.info, as cuobjdump -elf names them (EIATTR_...).
MAX_THREADS, MIN_STACK_SIZE, REGCOUNT = 0x05, 0x12, 0x2F
WITH_DATA = 4


@dataclasses.dataclass(frozen=True)
class Kernel:
    name: str
    architecture: int
    registers: int
    threads: int | None  # of the largest block, where the source says it
    local_bytes: int


def faults(kernel: Kernel) -> list[str]:
    """Why it cannot be started, or should not be."""
    found = []
    if kernel.threads is None:
        found.append("names no largest block: write REMPART_KERNEL(threads)")
    elif kernel.threads > THREADS:
        found.append(f"has blocks of {kernel.threads} threads; a GPU starts {THREADS} at most")
    else:
        a_thread = (kernel.registers + 7) // 8 * 8
        whole_warps = (kernel.threads + 31) // 32 * 32
        if a_thread * whole_warps > REGISTERS:
            found.append(f"needs {kernel.registers} registers for each of {kernel.threads} threads: "
                         f"a multiprocessor has {REGISTERS}")
    if kernel.local_bytes > LOCAL_BYTES:
        found.append(f"keeps {kernel.local_bytes} bytes of each thread in local memory, more than "
                     f"{LOCAL_BYTES}: unroll what indexes its arrays, or need fewer registers")
    return found


def sections(elf: bytes) -> list[tuple[str, bytes, int]]:
    """Name, contents, and the section that it is about."""
    table, = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * size) for i in range(count)]
    text = elf[headers[names][4]:][:headers[names][5]]
    return [(text[header[0]:text.index(b"\0", header[0])].decode(),
             b"" if header[1] == 8 else elf[header[4]:header[4] + header[5]], header[7])
            for header in headers]


def images(path: pathlib.Path) -> list[tuple[int, bytes]]:
    """Architecture and cubin of each image in an object file of nvcc."""
    found = []
    for name, data, _ in sections(path.read_bytes()):
        if name != ".nv_fatbin":
            continue
        at = 0
        while at < len(data):
            magic, _, header_bytes, bytes_in_it = struct.unpack_from("<IHHQ", data, at)
            if magic != FATBIN_MAGIC:
                raise ValueError(f"{path}: no fat binary at {at} of .nv_fatbin")
            at += header_bytes
            end = at + bytes_in_it
            while at < end:
                kind, _, header_bytes, image_bytes = struct.unpack_from("<HHIQ", data, at)
                architecture, = struct.unpack_from("<I", data, at + 28)
                image = data[at + header_bytes:][:image_bytes]
                if kind == FATBIN_ELF:
                    if not image.startswith(ELF_MAGIC):
                        raise ValueError(f"{path}: an image is compressed; build with --no-compress")
                    found.append((architecture, image))
                at += header_bytes + image_bytes
    return found


def attributes(info: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, at)
        at += 4
        data = info[at:at + value] if form == WITH_DATA else struct.pack("<H", value)
        at += len(data) if form == WITH_DATA else 0
        found.append((attribute, data))
    return found


def kernels(architecture: int, cubin: bytes) -> list[Kernel]:
    tables = {name: data for name, data, _ in sections(cubin)}
    symbols, names = tables[".symtab"], tables[".strtab"]

    def name_of(symbol: int) -> str:
        start, = struct.unpack_from("<I", symbols, 24 * symbol)
        return names[start:names.index(b"\0", start)].decode()

    by_symbol = {REGCOUNT: {}, MIN_STACK_SIZE: {}}
    for attribute, data in attributes(tables[".nv.info"]):
        if attribute in by_symbol:
            symbol, value = struct.unpack("<II", data)
            by_symbol[attribute][name_of(symbol)] = value
    found = []
    for section, info in tables.items():
        if not section.startswith(".nv.info."):
            continue
        name = section.removeprefix(".nv.info.")
        block = [struct.unpack("<III", data) for kind, data in attributes(info)
                 if kind == MAX_THREADS]
        found.append(Kernel(name, architecture, by_symbol[REGCOUNT][name],
                            block[0][0] * block[0][1] * block[0][2] if block else None,
                            by_symbol[MIN_STACK_SIZE][name]))
    return found


def readable(name: str) -> str:
    shown = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    return shown.strip().replace("rempart::kernels::", "").replace("(anonymous namespace)::", "")


def main(paths: list[str]) -> int:
    launchable = refused = 0
    largest: dict[int, Kernel] = {}
    for path in paths:
        found = [kernel for image in images(pathlib.Path(path)) for kernel in kernels(*image)]
        if not found:
            print(f"{path}: holds no kernel", file=sys.stderr)
            refused += 1
        for kernel in found:
            reasons = faults(kernel)
            for reason in reasons:
                print(f"{path}: sm_{kernel.architecture}: {readable(kernel.name)} {reason}",
                      file=sys.stderr)
            refused += 1 if reasons else 0
            launchable += 0 if reasons else 1
            if kernel.local_bytes > largest.get(kernel.architecture, kernel).local_bytes or (
                    kernel.architecture not in largest):
                largest[kernel.architecture] = kernel
    for architecture, kernel in sorted(largest.items()):
        print(f"sm_{architecture}: at most {kernel.local_bytes} bytes of local memory a thread "
              f"({readable(kernel.name)})")
    print(f"{launchable} launchable, {refused} not")
    return 1 if refused or not launchable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
