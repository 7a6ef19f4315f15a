# SPDX-License-Identifier: Apache-2.0
"""Who may include whom. Each prefix of the tree lists the rooms and the libraries it may use; the
longest prefix that matches a file decides. worker, router and operator meet only in proto/."""

import dataclasses
import re

from tree import CPP, Breach, Tree

ROOMS = ("common", "kernels", "worker", "router", "operator", "cli", "proto", "tests",
         "benchmarks")
# First component of an include -> library.
LIBRARIES = {
    "absl": "abseil", "boost": "boost", "grpc": "grpc", "grpcpp": "grpc", "google": "protobuf",
    "openssl": "openssl", "prometheus": "prometheus", "simdjson.h": "simdjson", "yaml-cpp": "yaml",
    "curl": "curl", "gtest": "gtest", "gmock": "gtest", "cuda_runtime.h": "cuda",
    "cuda_runtime_api.h": "cuda", "cuda.h": "cuda", "cuda_bf16.h": "cuda", "cuda_fp16.h": "cuda",
    "cublasLt.h": "cuda", "nccl.h": "nccl",
}
INTRINSICS = ("immintrin.h", "cpuid.h", "arm_neon.h")
# A pure decision reads no clock and does no I/O.
IMPURE = ("chrono", "thread", "mutex", "fstream", "iostream", "filesystem", "random", "ctime")


@dataclasses.dataclass(frozen=True)
class May:
    rooms: tuple[str, ...]           # prefixes of files of ours
    libraries: tuple[str, ...] = ()
    pure: bool = False               # neither IMPURE nor system headers
    std_only: bool = False           # the standard library and intrinsics


MAY = {
    "kernels/": May(("kernels/",), std_only=True),
    "kernels/cuda/": May(("kernels/",), ("cuda",)),
    "common/": May(("common/",), ("abseil", "openssl", "prometheus")),
    "common/tls/": May(("common/",), ("abseil", "openssl", "grpc")),
    "common/health/": May(("common/",), ("abseil", "boost")),
    "worker/": May(("worker/", "common/"), ("abseil",)),
    "worker/device/": May(("worker/device/", "common/", "kernels/"), ("abseil",)),
    "worker/device/cuda_": May(("worker/device/", "common/", "kernels/"), ("abseil", "cuda")),
    "worker/comm/nccl_": May(("worker/comm/", "worker/device/", "common/", "kernels/"),
                             ("abseil", "cuda", "nccl")),
    "worker/cache/": May(("worker/cache/", "common/"), ("abseil", "openssl")),
    "worker/comm/": May(("worker/comm/", "worker/device/", "common/"), ("abseil", "openssl")),
    # simdjson: config.json and the headers of safetensors files.
    "worker/model/": May(("worker/model/", "worker/comm/communicator.h",
                          "worker/comm/device_communicator.h", "worker/device/", "kernels/",
                          "common/"), ("abseil", "simdjson")),
    "worker/text/": May(("worker/text/", "common/"), ("abseil",)),
    "worker/engine/": May(("worker/engine/", "worker/cache/", "worker/model/step_batch.h",
                           "worker/model/sampling.h", "kernels/sample_math.h", "common/"),
                          ("abseil",)),
    # Rows of logits are long: the sampler looks at them with the CPU's kernels.
    "worker/engine/sampler.": May(("worker/engine/", "worker/model/sampling.h", "kernels/ops.h",
                                   "kernels/sample_math.h", "common/"), ("abseil",)),
    "worker/engine/scheduler.": May(("worker/engine/scheduler.h", "worker/engine/sequence.h",
                                     "worker/engine/step_plan.h", "worker/cache/",
                                     "common/check.h"), ("abseil",), pure=True),
    "worker/group/": May(("worker/group/", "worker/comm/", "worker/device/", "worker/engine/",
                          "worker/model/step_batch.h", "worker/model/sampling.h", "common/"),
                         ("abseil",)),
    "worker/strike/": May(("worker/strike/", "common/"), ("abseil",)),
    "worker/config/": May(("worker/config/", "common/", "proto/worker/"), ("abseil", "protobuf")),
    "worker/api/": May(("worker/", "kernels/", "common/", "proto/worker/", "proto/group/"),
                       ("abseil", "protobuf", "grpc", "prometheus", "openssl", "simdjson")),
    "router/": May(("router/", "common/"), ("abseil",)),
    "router/policy/": May(("router/policy/",), (), pure=True),
    "router/api/": May(("router/api/",), ("abseil", "simdjson")),
    "router/auth/": May(("router/auth/", "common/"), ("abseil", "openssl")),
    "router/config/": May(("router/config/", "common/", "proto/router/"), ("abseil", "protobuf")),
    "router/endpoints/": May(("router/endpoints/", "router/policy/", "common/", "proto/worker/",
                              "proto/topology/"), ("abseil", "boost", "protobuf", "grpc")),
    "router/requests/": May(("router/requests/", "router/endpoints/", "router/policy/",
                             "router/api/", "common/", "proto/worker/", "proto/topology/"),
                            ("abseil", "boost", "protobuf")),
    "router/http/": May(("router/", "common/", "proto/worker/", "proto/topology/"),
                        ("abseil", "boost", "prometheus", "openssl", "simdjson")),
    "operator/": May(("operator/", "common/"), ("abseil",)),
    "operator/plan/": May(("operator/plan/", "proto/", "common/nccl_variables.h",
                           "common/split_files.h"), ("abseil", "protobuf"), pure=True),
    "operator/crdgen/": May(("operator/crdgen/", "common/status_macros.h", "proto/"),
                            ("abseil", "protobuf", "yaml")),
    "operator/kube/": May(("operator/kube/", "common/", "proto/crd/", "proto/k8s/", "proto/serving/"),
                          ("abseil", "protobuf", "curl", "simdjson", "yaml", "openssl")),
    "operator/group/": May(("operator/group/", "operator/plan/worker_phase.h"), ("abseil",),
                           pure=True),
    "operator/streams/": May(("operator/streams/", "operator/group/", "operator/plan/", "common/",
                              "proto/"), ("abseil", "protobuf", "grpc", "openssl")),
    "operator/reconcile/": May(("operator/", "common/", "proto/"),
                               ("abseil", "protobuf", "grpc", "prometheus")),
    "cli/": May(("cli/", "operator/kube/", "operator/plan/", "operator/streams/", "common/",
                 "proto/", "kernels/ops.h", "kernels/chosen_kernels.h", "worker/device/cpu_count.h",
                 "worker/device/memory_limit.h", "worker/device/nvml.h"),
                ("abseil", "protobuf", "grpc", "yaml", "boost", "openssl", "curl", "simdjson")),
}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def may_of(name: str) -> May | None:
    prefixes = [prefix for prefix in MAY if name.startswith(prefix)]
    return MAY[max(prefixes, key=len)] if prefixes else None


def proto_of(target: str) -> str:
    return re.sub(r"(\.grpc)?\.pb\.h$", ".proto", target)


def refusal(tree: Tree, may: May | None, quote: str, target: str) -> str:
    """Why this include is refused, or an empty string."""
    first = target.split("/")[0]
    if first in ROOMS and quote == '"':
        source = proto_of(target) if target.endswith(".pb.h") else target
        if not tree.exists(source):
            return f"includes {target}, which does not exist"
        if may and not target.startswith(may.rooms):
            return f"may not include {target}; allowed here: {' '.join(may.rooms)}"
        return ""
    library = LIBRARIES.get(first)
    if quote == '"' and library is None:
        return f'includes "{target}", which is not relative to the repository root'
    if may is None:
        return ""
    if library:
        allowed = " ".join(may.libraries) or "the standard library only"
        return "" if library in may.libraries else f"may not use {library} ({target}): {allowed}"
    system = target.endswith(".h") and target not in INTRINSICS
    if may.std_only and system:
        return f"may include the standard library only, not <{target}>"
    if may.pure and (system or first in IMPURE):
        return f"is a pure decision: no clock, thread or I/O, so not <{target}>"
    return ""


def check(tree: Tree) -> list[Breach]:
    breaches = []
    for name in tree.sources(CPP):
        for number, line in enumerate(tree.lines(name), 1):
            if match := INCLUDE.match(line):
                if why := refusal(tree, may_of(name), *match.groups()):
                    breaches.append(Breach(name, number, why))
    return breaches
