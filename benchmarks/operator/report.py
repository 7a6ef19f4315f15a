# SPDX-License-Identifier: Apache-2.0
"""The benchmark's page of docs/benchmarks. Pure."""

# What must hold, as a name of the summary and its upper bound.
TARGETS = {"applied_p99_ms": ("edit to applied, 99th percentile", 500, "ms"), "idle_cpu_percent": ("processor while nothing changes", 1, "% of a core"),
           "peak_mib": ("memory, the most at any time", 150, "MiB"), "idle_writes_per_minute": ("writes while nothing changes", 0, "a minute")}
WORDS = {"load": "all Models created at once, until all are Ready", "idle": "nothing changes", "edits": "edits one after the other",
         "burst": "edits at once", "restart": "stopped and started, nothing to do", "restart_killed": "`kill -9`, edits meanwhile, started"}


def missed(summary: dict) -> list:
    return [name for name, (_, most, _) in TARGETS.items() if summary[name] > most]


def target_rows(summary: dict) -> list:
    rows = ["| what | measured | target |", "|---|---|---|"]
    for name, (words, most, unit) in TARGETS.items():
        value = f"{summary[name]} {unit}"
        rows.append(f"| {words} | {f'**{value}**' if name in missed(summary) else value} | {most} {unit} |")
    return rows


def edit_rows(results: dict) -> list:
    rows = ["| | edits | applied: p50 / p99 / worst | told in the status | all pods replaced |", "|---|---|---|---|---|"]
    for name in ("edits", "burst"):
        part = results[name]
        cells = [f"{part[what]['p50_ms']:.0f} / {part[what]['p99_ms']:.0f} / {part[what]['worst_ms']:.0f} ms" for what in ("applied", "told", "rolled")]
        rows.append(f"| {WORDS[name]} | {part['applied']['count']} | " + " | ".join(cells) + " |")
    return rows


def others_in_words(part: dict) -> str:
    return f"{part['others_cores']} cores" if "others_cores" in part else "not measured"


def part_rows(results: dict) -> list:
    rows = ["| | seconds | other programs | processor | share of a core | reconciles | API calls | of these writes | calls per reconcile | "
            "resident, at the end / most |",
            "|---|---|---|---|---|---|---|---|---|---|"]
    for name, part in results.items():
        memory = part["memory"]
        rows.append(f"| {WORDS[name]} | {part['seconds']:.0f} | {others_in_words(part)} | {part['cpu_seconds']:.1f} s | {part['cpu_percent']} % | "
                    f"{part['reconciles']} | {part['calls']} | {part['writes']} | {part['calls_per_reconcile']} | {memory['rss_mib']} / {memory['peak_mib']} MiB |")
    return rows


def page(facts: dict, summary: dict, results: dict) -> str:
    restart, killed = results["restart"], results["restart_killed"]
    calls = ", ".join(f"{count} {call}" for call, count in list(results["edits"]["calls_of"].items())[:12])
    lines = [
        "# The operator with many Models", "",
        "`benchmarks/operator/run` starts a control plane of its own (etcd without fsync, API server, controllers and scheduler with raised client",
        "limits), on which kwok plays the nodes and the lives of pods, and the real `rempart-operator` with the rights that the chart gives it. Each",
        "Model has two groups of five pods. No worker runs: a group counts as Ready by its leader's pod, as it does for any worker that has not",
        "spoken yet, and `drainSeconds` is 0, since nobody could say that it has drained. So Join streams are not part of the load.", "",
        f"{facts['date']}, commit {facts['commit']}, {facts['processor']}, {facts['cores']} cores for everything together, load {facts['load']} before",
        f"the benchmark; {facts['models']} Models, {facts['pods']} pods, {facts['nodes']} nodes, seed {facts['seed']}.", "",
        *([facts["note"], ""] if "note" in facts else []),
        *target_rows(summary), "",
        "## Edits", "",
        "An edit changes `spec.engine.maxSequences`, which is a new template for both groups, one after the other. Its time begins before the request",
        "is sent, and ends when a watch shows the new template on the StatefulSet of the first group (*applied*), when the status speaks of the edit",
        "(*told*), and when all ten pods have been replaced and are Ready (which is the controllers' and kwok's time as well).", "",
        *edit_rows(results), "",
        "## What it costs", "",
        "API calls are those that the API server's audit log has of the operator, watches and the lease apart (the lease is read and written every 2 s).",
        "Other programs: what the machine worked meanwhile for none of the benchmark's own processes; it slows the API server, and each edit is",
        "three of its calls.",
        "", *part_rows(results), "",
        f"Calls while edits came one after the other: {calls}.", "",
        "## After a restart", "",
        f"Stopped in good order and started with nothing to do: first lists after {restart['lists_seconds']} s, every Model looked at after",
        f"{restart['converged_seconds']} s, {restart['writes']} writes. Killed, with {killed['edits']} edits while it was away: all applied",
        f"{killed['applied_seconds']} s after the start, of which up to 15 s are the lease of the one that was killed.", ""]
    return "\n".join(lines)
