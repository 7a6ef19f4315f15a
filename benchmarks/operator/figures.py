# SPDX-License-Identifier: Apache-2.0
"""What the benchmark reads out of texts: percentiles, metrics, /proc, the audit log. Nothing here does I/O."""
import collections
import json
import math

READS = {"get", "list", "watch"}


def percentile(values: list, share: float) -> float:
    """The smallest value that `share` of all do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def spread(seconds: list) -> dict:
    """In milliseconds."""
    return {"count": len(seconds), **{name: round(1000 * percentile(seconds, share), 1)
                                      for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("worst_ms", 1.0))}}


def parse_metrics(text: str) -> dict:
    """Metrics without labels."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#") and "{" not in line:
            name, value = line.split()[:2]
            found[name] = float(value)
    return found


def cpu_ticks(stat: str) -> int:
    """User and system time of /proc/PID/stat. The name of the process may hold spaces."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def busy_ticks(stat: str) -> int:
    """Of /proc/stat: what all processors have worked, for whomever."""
    user, nice, system, _, _, irq, softirq = (int(field) for field in stat.split("\n", 1)[0].split()[1:8])
    return user + nice + system + irq + softirq


def memory_mib(status: str) -> dict:
    """Of /proc/PID/status: resident now, the most it ever was, and what of it is not pages of files."""
    kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
    return {"rss_mib": round(kib["VmRSS"] / 1024, 1), "peak_mib": round(kib["VmHWM"] / 1024, 1),
            "anonymous_mib": round(kib["RssAnon"] / 1024, 1)}


def count_calls(log: str) -> dict:
    """Of audit events, one a line: how many of each verb and resource, the lease and watches apart. A last line without its end is left out."""
    calls = collections.Counter()
    for line in log.split("\n")[:-1]:
        event = json.loads(line)
        what = event.get("objectRef", {})
        if event["verb"] == "watch" or what.get("resource") == "leases":
            continue
        resource = "/".join(part for part in (what.get("resource"), what.get("subresource")) if part)
        code = event.get("responseStatus", {}).get("code", 0)
        calls[f"{event['verb']} {resource}" + (f" ({code})" if code >= 400 else "")] += 1
    return dict(calls.most_common())


def writes_of(calls: dict) -> int:
    return sum(count for call, count in calls.items() if call.split()[0] not in READS)
