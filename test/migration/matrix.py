"""Daemons that die, links that break in one direction or both, a store that is away or late, a full disk, no memory, clocks that jump, at every named
point of a move (src/base/fault.hpp), for every strategy: afterwards the pod runs in exactly one place, with its memory as it should be, and neither node has
anything of it too much."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import time

from harness import BUILD, Case, Failure, Suite, wait_for
from migration.cluster import Cluster, Migration
from migration.faults import Faults

STRATEGIES = ("freeze", "precopy", "postcopy", "hybrid", "eager-dirty", "auto")
OWING = ("postcopy", "hybrid")  # eager-dirty sends in the freeze what no file has
# On whose daemon; who has the pod when both sides are themselves again: b is the source, c the destination.
BEFORE, AFTER, EITHER = ("b",), ("c",), ("b", "c")
POINTS = {
    "source.negotiated": ("b", BEFORE), "source.prepared": ("b", BEFORE), "source.copied": ("b", BEFORE), "source.frozen": ("b", BEFORE),
    "source.state": ("b", BEFORE), "source.pinned": ("b", BEFORE), "claim.swap": ("b", BEFORE), "claim.swapped": ("b", AFTER),
    "gate.half-kept": ("b", BEFORE), "gate.half-forgotten": ("c", AFTER), "pager.half-forgotten": ("c", AFTER), "source.committed": ("b", AFTER), "source.said-go": ("b", AFTER), "source.owing": ("b", AFTER), "source.released": ("b", AFTER),
    "destination.negotiated": ("c", BEFORE), "destination.prepared": ("c", BEFORE), "destination.copied": ("c", BEFORE),
    "destination.rebuilt": ("c", BEFORE), "destination.pinned": ("c", EITHER), "destination.committed": ("c", AFTER),
    "destination.restarted": ("c", AFTER), "destination.settled": ("c", AFTER), "destination.drained": ("c", AFTER),
}
ONLY_OWING = ("source.owing", "destination.drained", "pager.half-forgotten")
FAULTS = ("kill", "kill-both", "cut", "mute-source", "mute-destination", "store-gone", "store-late", "disk-full", "no-memory", "clock-source", "clock-destination")
# At which points `./dev test` tries the later ones; everything else is `./dev faults`.
TRIED = {
    "mute-source": (("claim.swap", "precopy"), ("source.owing", "postcopy")), "mute-destination": (("destination.pinned", "precopy"), ("destination.drained", "postcopy")),
    "store-gone": (("source.pinned", "precopy"), ("source.copied", "postcopy")), "store-late": (("claim.swap", "precopy"), ("destination.pinned", "postcopy")),
    "disk-full": (("destination.prepared", "precopy"), ("destination.copied", "postcopy")),
    "no-memory": (("destination.prepared", "precopy"), ("destination.copied", "postcopy")),
    "clock-source": (("source.pinned", "precopy"), ("source.owing", "postcopy")), "clock-destination": (("destination.pinned", "precopy"), ("destination.prepared", "postcopy")),
}
# By how much a clock is wrong: to one that is a day behind no certificate of this cluster is valid yet.
WRONG_S = {"clock-source": 24 * 3600, "clock-destination": -24 * 3600}
# The store answers again after this time: later than whoever asks has waited for it.
LATE_S = 7


# All of it takes hours one by one, most of them waiting.
ALL = os.environ.get("GODWIT_MATRIX") == "all"
JOBS = int(os.environ.get("GODWIT_JOBS", max(1, os.cpu_count() // 2))) if ALL else 1


class Matrix(Suite):
    name = "matrix"
    jobs = JOBS

    def cases(self):
        return [Case(f"{fault}-at-{point}-{strategy}", lambda f=fault, p=point, s=strategy: self._cell(f, p, s))
                for point in POINTS for fault in FAULTS for strategy in STRATEGIES if self._wanted(fault, point, strategy)]

    def _wanted(self, fault: str, point: str, strategy: str) -> bool:
        if point in ONLY_OWING and strategy not in OWING:
            return False
        if ALL:
            # What fails at the destination alone fails where the destination has something to do.
            return fault not in ("disk-full", "no-memory") or point.startswith("destination.")
        if fault in TRIED:
            return (point, strategy) in TRIED[fault]
        # The rest is `./dev faults`.
        if strategy == "postcopy":
            return fault == "kill" or point in ("source.pinned", "source.committed", "destination.restarted")
        return strategy == "precopy" and fault == "kill" and point in ("claim.swap", "claim.swapped", "source.committed", "destination.pinned", "gate.half-kept", "gate.half-forgotten")

    def setup(self):
        self.table: dict[tuple[str, str], dict[str, str]] = {}
        self.fields: list[Field] = []
        self.free: queue.Queue[Field] = queue.Queue()
        for number in range(JOBS):
            self.fields.append(Field(self.options, f"matrix{number}"))
            self.fields[-1].setup()
            self.free.put(self.fields[-1])

    def teardown(self):
        """What became of it, cell by cell: the node on which the pod ran on."""
        if self.table:
            self._print_table()
        for field in self.fields:
            field.teardown()

    def _cell(self, fault: str, point: str, strategy: str) -> dict:
        field = self.free.get()
        try:
            node = field.try_cell(fault, point, strategy)
            self.table.setdefault((point, fault), {})[strategy] = f"on {node}"
            return {"node": node}
        except Exception:
            self.table.setdefault((point, fault), {})[strategy] = "FAIL"
            raise
        finally:
            self.free.put(field)

    def _print_table(self) -> None:
        print(f"     {'':34}" + "".join(f"{strategy:>13}" for strategy in STRATEGIES))
        for (point, fault), row in sorted(self.table.items(), key=lambda item: (list(POINTS).index(item[0][0]), FAULTS.index(item[0][1]))):
            print(f"     {point + ' ' + fault:34}" + "".join(f"{row.get(strategy, '-'):>13}" for strategy in STRATEGIES))
        right = sum(cell != "FAIL" for row in self.table.values() for cell in row.values())
        print(f"     {right} of {sum(len(row) for row in self.table.values())} cells: one copy runs, whole, and nothing else is left")


class Field(Faults):
    """Three nodes on which one cell after the other is tried."""

    def __init__(self, options, name: str):
        super().__init__(options)
        self.cluster = Cluster(name, nodes=3, options=("--godwitd", BUILD / "godwitd-faults"))
        self.count = 0

    def setup(self):
        self.cluster.up()

    # ---- fault points

    def _file(self, node: str, name: str) -> str:
        return f"/proc/{self.cluster.host_pid(node)}/root/run/godwit/{name}"

    def _arm(self, node: str, point: str, action: str) -> None:
        with open(self._file(node, "fault.new"), "w") as file:
            file.write(f"{point}:{action}\n")
        os.rename(self._file(node, "fault.new"), self._file(node, "fault"))

    def _disarm(self) -> None:
        for node in ("b", "c"):
            for name in ("fault.go", "fault", "fault.reached"):
                if name == "fault.go":
                    open(self._file(node, name), "w").close()
                    continue
                if os.path.exists(self._file(node, name)):
                    os.unlink(self._file(node, name))
            os.unlink(self._file(node, "fault.go"))

    def _reached(self, node: str, fault: str, moving: Migration) -> None:
        def happened():
            if fault == "kill":
                return not self._alive(node) or (moving.over() and "no")
            return os.path.exists(self._file(node, "fault.reached")) or (moving.over() and "no")

        if wait_for(f"{fault} on {node}", happened, 40, step=0.02) == "no" and (fault != "kill" or self._alive(node)):
            # The source may have heard the end of it a moment before the other side gets there.
            wait_for(f"{fault} on {node} after the end of the move ({str(moving.last)[:400]})",
                     lambda: not self._alive(node) if fault == "kill" else os.path.exists(self._file(node, "fault.reached")), 5, step=0.02)

    def _alive(self, node: str) -> bool:
        return self.cluster.daemon_state(node) == "running"

    # ---- one cell

    def try_cell(self, fault: str, point: str, strategy: str) -> str:
        """The node on which the pod ran on."""
        cluster = self.cluster
        side, places = POINTS[point]
        self.count += 1
        pod = f"m{self.count}"
        try:
            self._start(pod)
            marks = self._marks(pod)
            if fault == "disk-full":
                self._small_disk()
            self._arm(side, point, "kill" if fault == "kill" else "wait")
            # The store's node may be the one that goes.
            moving = Migration(cluster, pod, "c", strategy, node="b" if fault.startswith("store") else "a")
            self._reached(side, fault, moving)
            if fault == "kill-both":
                for node in ("b", "c"):
                    cluster.daemon("kill", node)
                places = EITHER
            elif fault == "cut":
                cluster.link("c", "down")
                self._go(side)
                time.sleep(4)
                cluster.link("c", "up")
                places = EITHER
            elif fault != "kill":
                with self._trouble(fault):
                    self._go(side)
                    time.sleep(LATE_S)
                places = EITHER
            self._disarm()
            for node in ("b", "c"):
                if not self._alive(node):
                    cluster.daemon("start", node)
            node = self._runs(pod, places, 60)
            self._nothing_left(pod)
            if (left := self._marks(pod)) != marks:
                raise Failure(f"something of the migration is left: {marks} became {left}")
            self._finish(pod, node)
            return node
        except Failure as failure:
            raise Failure(f"{failure}\n" + "\n".join(f"-- {node}:\n{cluster.daemon_log(node, 25)}" for node in ("b", "c"))) from None
        finally:
            self._disarm()
            cluster.link("c", "up")
            cluster.heal()
            cluster.remove(pod)
            if fault == "disk-full":
                self._own_disk()

    # ---- what else can go wrong

    @contextlib.contextmanager
    def _trouble(self, fault: str):
        cluster = self.cluster
        store, daemon = self._daemon("a"), self._daemon("c")
        muted = {"mute-source": "b", "mute-destination": "c"}.get(fault)
        if muted:
            # Nothing goes out; what is sent to it arrives.
            cluster.exec(muted, "tc", "qdisc", "replace", "dev", "uplink", "root", "tbf", "rate", "8bit", "burst", "1", "limit", "1")
        elif fault == "store-gone":
            cluster.daemon("kill", "a")
        elif fault == "store-late":
            os.kill(store, signal.SIGSTOP)
        elif fault == "disk-full":
            cluster.exec("c", "sh", "-c", "head -c 1G /dev/zero > /var/lib/godwit/filler", check=False)
        elif fault == "no-memory":
            with open(f"/proc/{daemon}/status", encoding="utf-8") as status:
                size = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
            resource.prlimit(daemon, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        elif fault in WRONG_S:
            self._set_clock("b" if fault == "clock-source" else "c", WRONG_S[fault])
        try:
            yield
        finally:
            if fault in WRONG_S:
                self._set_clock("b" if fault == "clock-source" else "c", 0)
            elif muted:
                cluster.exec(muted, "tc", "qdisc", "del", "dev", "uplink", "root")
            elif fault == "store-gone":
                cluster.daemon("start", "a")
            elif fault == "store-late":
                os.kill(store, signal.SIGCONT)
            elif fault == "disk-full":
                cluster.exec("c", "rm", "-f", "/var/lib/godwit/filler")
            elif fault == "no-memory" and self._alive("c"):
                resource.prlimit(daemon, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _set_clock(self, node: str, seconds: int) -> None:
        with open(self._file(node, "clock"), "w") as file:
            file.write(str(seconds))

    def _daemon(self, node: str) -> int:
        return next(host["daemon"]["pid"] for host in self.cluster.status()["hosts"] if host["name"] == node)

    def _small_disk(self) -> None:
        """c's pods lie on a file system of their own, which can be filled."""
        self.cluster.daemon("stop", "c")
        self.cluster.exec("c", "mount", "-t", "tmpfs", "-o", "size=64m,mode=711", "none", "/var/lib/godwit")
        self.cluster.daemon("start", "c")

    def _own_disk(self) -> None:
        self.cluster.daemon("stop", "c")
        self.cluster.exec("c", "umount", "-l", "/var/lib/godwit")
        self.cluster.daemon("start", "c")

    def _go(self, node: str) -> None:
        open(self._file(node, "fault.go"), "w").close()

    def _nothing_left(self, pod: str) -> None:
        """No doubt, no remainder, and no directory of the pod but the owner's."""

        def clean():
            for node in ("b", "c"):
                try:
                    told = cluster_json(self.cluster, node)
                except Failure:  # not up yet
                    return None
                if told["doubts"] or told["remainders"]:
                    return None
            homes = [node for node in ("b", "c") if os.path.isdir(f"/proc/{self.cluster.host_pid(node)}/root/var/lib/godwit/pods/{pod}")]
            return self.cluster.alone(pod) and len(homes) == 1

        wait_for(f"nothing but {pod} itself to be left", clean, 30, step=0.2)


def cluster_json(cluster: Cluster, node: str) -> dict:
    return json.loads(cluster.api(node, "GET", "/v1/node").read())
