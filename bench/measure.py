"""The measurements. Each gives rows for the table: what was promised, what was found, and in the end where the time goes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import statistics
import time

import raw
import servers
import timeline
from harness import BUILD, Failure, wait_for
from migration import load, proc
from migration.cluster import Cluster
from table import ms

WORKLOAD = BUILD / "bench/workload"


@dataclasses.dataclass
class Row:
    what: str
    found: float | None
    bound: float | None
    show: str  # how `found` reads
    show_bound: str = ""
    at_least: bool = False
    note: str = ""

    @property
    def kept(self) -> bool | None:
        if self.found is None or self.bound is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound


def time_row(what: str, us: float, bound_us: float | None, note: str = "") -> Row:
    return Row(what, us, bound_us, ms(us), "≤ " + ms(bound_us) if bound_us is not None else "", note=note)


class Bench:
    def __init__(self, cluster: Cluster, count: int, pictures: pathlib.Path):
        self.cluster, self.count, self.pictures = cluster, count, pictures
        self.reports: dict[str, list[dict]] = {}

    # ---- helpers

    def move(self, what: str, pod: str, strategy: str, count: int | None = None, rest: float = 0.3) -> list[dict]:
        """Moves a pod round the nodes and gives the reports, with begin and end by CLOCK_REALTIME (µs)."""
        cluster, found = self.cluster, []
        for _ in range(count or self.count):
            here = cluster.pod(pod)["node"]
            there = cluster.nodes[(cluster.nodes.index(here) + 1) % len(cluster.nodes)]
            begin = time.time_ns() // 1000
            report = cluster.migrate(pod, there, strategy, node=here)
            cluster.drained(pod, there)
            found.append(report | {"begin": begin, "end": time.time_ns() // 1000})
            time.sleep(rest)
        self.reports[what] = found
        return found

    @contextlib.contextmanager
    def workload(self, pod: str, *options):
        self.cluster.provide(WORKLOAD)
        self.cluster.run("a", pod, [WORKLOAD, *options])
        try:
            self.cluster.wait_logs(pod, "ready\n", seconds=120)
            yield pod
        finally:
            self.cluster.remove(pod)

    @contextlib.contextmanager
    def redis(self, pod: str, mib: int, *options):
        """A redis under load; `finish` of the load client gives what it saw."""
        server, client = servers.redis(fill_mib=mib), None
        try:
            client = load.Load(self.cluster, server, load.start(self.cluster, server, pod), *options)
            time.sleep(1)
            yield client
        finally:
            if client:
                client.end()
            self.cluster.remove(pod)

    def freeze_of(self, name: str, options: list, strategy: str = "precopy", count: int | None = None) -> float:
        with self.workload(name, *options) as pod:
            return statistics.median(report["freeze_us"] for report in self.move(name, pod, strategy, count))

    def picture(self, name: str, summary: dict, report: dict) -> None:
        timeline.draw(self.pictures / f"{name}.svg", f"{name}: {report['source']} to {report['destination']} by {report['strategy']}", summary["bins"],
                      summary["started_us"], report["begin"], report["end"], report)

    # ---- the freeze

    def small(self) -> list[Row]:
        return [time_row("freeze, 1 MiB, 1 thread, pre-copy", self.freeze_of("small", []), 1000)]

    def threads(self) -> list[Row]:
        return [time_row("freeze, 64 threads, pre-copy", self.freeze_of("threads", ["--threads", 64]), 3000)]

    def shared(self) -> list[Row]:
        return [time_row("freeze, 256 MiB shared and written at 50 MB/s, pre-copy",
                         self.freeze_of("shared", ["--shared-mib", 256, "--dirty-mbps", 50]), 5000)]

    def growth(self) -> list[Row]:
        available = int(re.search(r"MemAvailable:\s+(\d+)", open("/proc/meminfo").read())[1]) >> 20
        sizes = [size for size in (1, 2, 4, 8) if size * 2 + 3 <= available]
        found = {size: self.freeze_of(f"grown-{size}g", ["--mib", size * 1024, "--dirty-mbps", 5], count=max(3, self.count // 2)) for size in sizes}
        rows = [time_row(f"freeze, {size} GiB resident, pre-copy", found[size], None) for size in sizes]
        if 8 not in sizes:
            rows.append(Row("freeze, 8 GiB resident, pre-copy", None, None, "not measured", note="this machine has too little memory"))
        rows.append(Row("freeze grows by, for each GiB", (found[sizes[-1]] - found[1]) / max(1, sizes[-1] - 1), None,
                        ms((found[sizes[-1]] - found[1]) / max(1, sizes[-1] - 1))))
        return rows

    def redis_load(self) -> list[Row]:
        with self.redis("redis-1g", 1024, "--rate", 2000, "--connections", 16) as client:
            before = {node: self.daemon_memory(node, reset=True) for node in self.cluster.nodes}
            reports = self.move("redis-1g", "redis-1g", "precopy")
            grown = {node: self.daemon_memory(node) - before[node] for node in self.cluster.nodes}
            summary = client.finish()
        gaps = [load.longest(summary, report["begin"], report["end"]) for report in reports]
        middle = sorted(zip(gaps, range(len(gaps))))[len(gaps) // 2][1]
        self.picture("redis-1GiB-precopy", summary, reports[middle])
        return [
            time_row("freeze, redis 1 GiB, 16 connections, pre-copy", statistics.median(report["freeze_us"] for report in reports), 2000),
            time_row("longest wait of its clients", statistics.median(gaps), 5000, f"longest of all {ms(max(gaps))}"),
            Row("errors its clients saw", summary["errors"], 0, str(summary["errors"]), "0"),
            Row("memory a daemon takes beyond the pod's", max(grown.values()) / (1 << 20), 64, f"{max(grown.values()) / (1 << 20):.0f} MiB", "≤ 64 MiB"),
        ]

    def connections(self) -> list[Row]:
        with self.redis("conns", 16, "--rate", 5000, "--connections", 1000) as client:
            reports = self.move("connections", "conns", "precopy", rest=1)
            summary = client.finish()
        gaps = sorted(load.longest(summary, report["begin"], report["end"]) for report in reports)
        self.picture("1000-connections", summary, reports[0])
        return [time_row("longest wait, 1,000 connections, pre-copy", gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)], 20000,
                         f"freeze {ms(statistics.median(report['freeze_us'] for report in reports))}, {summary['errors']} errors")]

    def daemon_memory(self, node: str, reset: bool = False) -> int:
        """Most that the node's daemon has held (bytes) since the last reset."""
        pid = next(host["daemon"]["pid"] for host in self.cluster.status()["hosts"] if host["name"] == node)
        if reset:
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) << 10

    # ---- post-copy

    def postcopy(self) -> list[Row]:
        rows = [time_row(f"freeze, {mib} MiB, post-copy", self.freeze_of(f"late-{mib}", ["--mib", mib], "postcopy"), 2000) for mib in (1, 256, 1024)]
        trip = raw.round_trip(self.cluster)
        p99 = []
        with self.workload("touch", "--mib", 1024, "--touch") as pod:
            for _ in range(self.count):
                self._stats(pod)
                self.move("touch", pod, "postcopy", 1)
                p99.append(self._stats(pod))
        found = statistics.median(one["p99_us"] for one in p99)
        rows.append(time_row("a fault in post-copy while the push goes on, p99, beyond the round trip", max(0, found - trip["p50_us"]), 200,
                             f"{sum(one['faults'] for one in p99)} faults, median {statistics.median(one['p50_us'] for one in p99):.0f} µs; round trip "
                             f"{trip['p50_us']:.0f} µs"))
        return rows

    def _stats(self, pod: str) -> dict:
        before = self.cluster.logs(pod).count("\n")
        self.cluster.signal(pod, "USR1")
        wait_for("the workload's figures", lambda: self.cluster.logs(pod).count("\n") > before, 10, step=0.05)
        return json.loads(self.cluster.logs(pod).splitlines()[-1])

    # ---- the whole time

    def limited(self) -> list[Row]:
        cluster = self.cluster
        for node in cluster.nodes:
            cluster.link(node, "rate=4gbit")
        try:
            wire = raw.tcp(cluster)["bytes_per_second"]
            with self.workload("idle-4g", "--mib", 1024) as pod:
                pre = self.move("idle-4g-precopy", pod, "precopy")
                post = self.move("idle-4g-postcopy", pod, "postcopy")
        finally:
            for node in cluster.nodes:
                cluster.link(node, "rate=none")
        ratio = statistics.median(report["total_us"] / 1e6 / (report["bytes_sent"] / wire) for report in pre)
        push = statistics.median(report["bytes_sent"] / wire / (report["total_us"] / 1e6) for report in post)
        return [Row("total time, 1 GiB idle, 4 Gbit/s, ÷ raw TCP's", ratio, 1.2, f"{ratio:.2f}", "≤ 1.20", note=f"raw TCP {wire * 8 / 1e9:.2f} Gbit/s"),
                Row("post-copy push, 4 Gbit/s, share of raw TCP", push, 0.8, f"{push:.0%}", "≥ 80%", at_least=True)]

    def unlimited(self) -> list[Row]:
        """The least has no encryption in it: the promise is about a plain stream, and what TLS adds is reported beside it."""
        least = raw.pipeline(self.cluster)
        rows = []
        plain = Cluster("bench-plain", nodes=2, options=("--plain",))
        plain.up()
        try:
            for what, bench, bound in (("", Bench(plain, self.count, self.pictures), 1.15), (", TLS", self, None)):
                with bench.workload("idle", "--mib", 1024) as pod:
                    reports = bench.move("idle-unlimited" + what, pod, "precopy")
                self.reports |= bench.reports
                found = statistics.median(report["total_us"] for report in reports)
                ratio = found / 1e6 / least["seconds"]
                rows.append(Row(f"total time, 1 GiB idle, unlimited link{what}, ÷ least that the processors allow", ratio, bound, f"{ratio:.2f}", "≤ 1.15" if bound else "",
                                note=f"{ms(found)}; least: read {least['read']:.2f} + send {least['send_and_receive']:.2f} + fill {least['fill']:.2f} s of processor"))
        finally:
            plain.down()
        return rows

    def runaway(self) -> list[Row]:
        cluster = self.cluster
        for node in cluster.nodes:
            cluster.link(node, "rate=1gbit")
        try:
            with self.workload("runaway", "--mib", 1024, "--dirty-mbps", 250) as pod:
                reports = self.move("runaway", pod, "auto")
        finally:
            for node in cluster.nodes:
                cluster.link(node, "rate=none")
        ratio = statistics.median(report["total_us"] / 1e6 / ((1 << 30) / 125e6) for report in reports)
        return [Row("auto, dirtied at 250 MB/s over 1 Gbit/s: total ÷ (resident ÷ link)", ratio, 1.3, f"{ratio:.2f}", "≤ 1.30"),
                time_row("its freeze", statistics.median(report["freeze_us"] for report in reports), 50000)]

    # ---- the store

    def store(self) -> list[Row]:
        """What of a freeze is the commit, and that is the store: the same small pod, each store in a playground of its own, in one run."""
        rows = []
        for what, store, nodes in (("SQLite", "sqlite", 3), ("etcd, 1 member", "etcd", 2), ("etcd, 3 members", "etcd", 3)):
            cluster = Cluster("bench-store", nodes=nodes, options=("--store", store))
            cluster.up()
            try:
                bench = Bench(cluster, self.count, self.pictures)
                with bench.workload("stored") as pod:
                    reports = bench.move(f"store: {what}", pod, "precopy")
                self.reports |= bench.reports
            finally:
                cluster.down()
            commits = [next(span["us"] for span in report["freeze"] if span["name"] == "commit") for report in reports]
            freeze = statistics.median(report["freeze_us"] for report in reports)
            rows.append(time_row(f"the store's part of a freeze, {what}", statistics.median(commits), None,
                                 f"of {ms(freeze)}; {ms(min(commits))} to {ms(max(commits))}"))
        return rows

    # ---- the transport

    def transport(self) -> list[Row]:
        """What TLS costs: the same pods in a playground without it and in one with it, moved in turn, in one run."""
        found: dict[str, dict[str, list[float]]] = {}
        with contextlib.ExitStack() as stack:
            sides = {}
            for what, options in (("plain", ("--plain",)), ("TLS", ())):
                cluster = Cluster("bench-" + what.lower(), nodes=2, options=options)
                stack.callback(cluster.down)
                cluster.up()
                bench = Bench(cluster, self.count, self.pictures)
                stack.enter_context(bench.workload("large", "--mib", 1024))
                stack.enter_context(bench.workload("small"))
                sides[what], found[what] = bench, {"speed": [], "processor": [], "freeze": []}
            for _ in range(self.count):
                for what, bench in sides.items():
                    before = bench.processor()
                    [report] = bench.move("large", "large", "precopy", 1)
                    found[what]["processor"].append((bench.processor() - before) * (1 << 30) / report["bytes_sent"])
                    found[what]["speed"].append(report["bytes_sent"] / report["total_us"])
                    [report] = bench.move("small", "small", "precopy", 1)
                    found[what]["freeze"].append(report["freeze_us"])
                    self.reports.setdefault(f"transport: {what}", []).append(report)
        rows = []
        for what, one in found.items():
            speed, processor = statistics.median(one["speed"]), statistics.median(one["processor"])
            rows.append(Row(f"pages, 1 GiB idle, {what}", speed, None, f"{speed:.0f} MB/s", note=f"{processor:.2f} s of processor for each GiB, both daemons together"))
            rows.append(time_row(f"freeze, 1 MiB, {what}", statistics.median(one["freeze"]), None, f"{ms(min(one['freeze']))} to {ms(max(one['freeze']))}"))
        return rows

    def processor(self) -> float:
        """Seconds of processor that all daemons have used."""
        ticks = 0
        for host in self.cluster.status()["hosts"]:
            if pid := host.get("daemon", {}).get("pid"):
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    # ---- at rest

    def rest(self) -> list[Row]:
        with self.workload("rest", "--mib", 64) as pod:
            self.move("rest", pod, "precopy", 1)
            problems = proc.not_at_rest(self.cluster.processes(pod))
        return [Row("tracers and userfaultfd ranges of a pod at rest", len(problems), 0, str(len(problems)), "0", note="; ".join(problems))]


SECTIONS = ("small", "threads", "shared", "redis_load", "connections", "postcopy", "limited", "unlimited", "runaway", "growth", "store", "transport", "rest")


def run(bench: Bench, section: str) -> list[Row]:
    try:
        return getattr(bench, section)()
    except Failure as failure:
        return [Row(section, None, None, "failed", note=str(failure).splitlines()[0])]
