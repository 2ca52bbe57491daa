"""Daemons that die, links that break in one direction or both, a store that is away, slow or late, a full disk, no memory, clocks that jump, a move that is
called off, at every named point of a move (src/base/fault.hpp), for every strategy. At no moment two copies of the pod can run; afterwards it runs in exactly
one place, with its memory as it should be and to a client that has lost, had twice or had to repeat nothing; and no node has anything of it too much."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import resource
import signal
import time

from harness import BUILD, Case, Failure, Suite, wait_for
from migration import inventory, load
from migration.cluster import Cluster, Migration
from migration.doubles import NeverTwice
from migration.faults import Faults
from servers import Server

STRATEGIES = ("freeze", "precopy", "postcopy", "hybrid", "eager-dirty", "auto")
OWING = ("postcopy", "hybrid")  # eager-dirty sends in the freeze what no file has
# On whose daemon; who has the pod when both sides are themselves again: b is the source, c the destination.
BEFORE, AFTER, EITHER = ("b",), ("c",), ("b", "c")
POINTS = {
    "starter.asked": ("b", BEFORE), "starter.promised": ("c", BEFORE),
    "source.negotiated": ("b", BEFORE), "source.prepared": ("b", BEFORE), "source.copied": ("b", BEFORE), "source.stopping": ("b", BEFORE),
    "source.frozen": ("b", BEFORE),
    "source.state": ("b", BEFORE), "source.pinned": ("b", BEFORE), "claim.swap": ("b", BEFORE), "claim.swapped": ("b", AFTER),
    "gate.half-kept": ("b", BEFORE), "gate.half-forgotten": ("c", AFTER), "pager.half-forgotten": ("c", AFTER), "source.committed": ("b", AFTER), "source.said-go": ("b", AFTER), "source.owing": ("b", AFTER), "source.released": ("b", AFTER),
    "destination.negotiated": ("c", BEFORE), "destination.prepared": ("c", BEFORE), "destination.copied": ("c", BEFORE),
    "destination.rebuilt": ("c", BEFORE), "destination.pinned": ("c", EITHER), "destination.committed": ("c", AFTER),
    "destination.restarted": ("c", AFTER), "destination.settled": ("c", AFTER), "destination.drained": ("c", AFTER),
}
ONLY_OWING = ("source.owing", "destination.drained", "pager.half-forgotten")
FAULTS = ("kill", "kill-other", "kill-both", "cut", "mute-source", "mute-destination", "store-gone", "store-slow", "store-late", "disk-full", "no-memory", "clock-source",
          "clock-destination", "cancel")


@dataclasses.dataclass(frozen=True)
class Again:
    """Points that are reached only when something went wrong before: the first daemon dies, and then the one that has to do with it. Once more each."""
    first: tuple[str, str]
    then: tuple[str, str]
    places: tuple
    owing: bool = True


AGAIN = {
    "adopt.decided after source.pinned": Again(("b", "source.pinned"), ("b", "adopt.decided"), BEFORE, owing=False),
    "adopt.decided after source.committed": Again(("b", "source.committed"), ("b", "adopt.decided"), AFTER, owing=False),
    "adopt.decided after destination.pinned": Again(("c", "destination.pinned"), ("c", "adopt.decided"), EITHER, owing=False),
    "claim.look": Again(("b", "claim.swap"), ("b", "claim.look"), EITHER, owing=False),
    "pager.resumed": Again(("b", "source.owing"), ("c", "pager.resumed"), AFTER),
    "remainder.serving": Again(("c", "destination.restarted"), ("b", "remainder.serving"), AFTER),
    "remainder.drained": Again(("c", "destination.restarted"), ("b", "remainder.drained"), AFTER),
}
# At which points `./dev test` tries the later ones; everything else is `./dev faults`.
TRIED = {
    "kill-other": (("source.frozen", "precopy"), ("destination.rebuilt", "postcopy"), ("source.owing", "postcopy")),
    "cancel": (("source.copied", "precopy"), ("destination.rebuilt", "postcopy")), "store-slow": (("claim.swap", "precopy"),),
    "mute-source": (("claim.swap", "precopy"), ("source.owing", "postcopy")), "mute-destination": (("destination.pinned", "precopy"), ("destination.drained", "postcopy")),
    "store-gone": (("source.pinned", "precopy"), ("source.copied", "postcopy")), "store-late": (("claim.swap", "precopy"), ("destination.pinned", "postcopy")),
    "disk-full": (("destination.prepared", "precopy"), ("destination.copied", "postcopy")),
    "no-memory": (("destination.prepared", "precopy"), ("destination.copied", "postcopy")),
    "clock-source": (("source.pinned", "precopy"), ("source.owing", "postcopy")), "clock-destination": (("destination.pinned", "precopy"), ("destination.prepared", "postcopy")),
}
# By how much a clock is wrong: to one that is a day behind no certificate of this cluster is valid yet.
WRONG_S = {"clock-source": 24 * 3600, "clock-destination": -24 * 3600}
# The store answers again after this time: later than whoever asks has waited for it; or while he still waits.
LATE_S, SLOW_S = 7, 2
# The pod: it checks its memory, and answers one client that is never told to try again.
TRACEE, PORT = "serving", 7000
# What may be more of on a node afterwards: each daemon keeps up to four connections to the store, each with a thread that serves it.
ALLOWED = {"descriptors:socket": 8, "threads": 8}
SILENCE_S = 60  # as long as an answer may take: a daemon is away, then TCP waits


# All of it takes hours one by one.
ALL = os.environ.get("GODWIT_MATRIX") == "all"
JOBS = int(os.environ.get("GODWIT_JOBS", min(8, max(2, os.cpu_count()))))  # most of a cell is waiting


class Matrix(Suite):
    name = "matrix"
    jobs = JOBS

    def cases(self):
        cells = [(fault, point, strategy) for point in POINTS for fault in FAULTS for strategy in STRATEGIES if self._wanted(fault, point, strategy)]
        cells += [("kill-again", point, strategy) for point, again in AGAIN.items() for strategy in STRATEGIES
                  if (strategy in OWING or not again.owing) and (ALL or strategy == "postcopy")]
        return [Case(f"{fault}-at-{point.replace(' ', '-')}-{strategy}", lambda f=fault, p=point, s=strategy: self._cell(f, p, s)) for fault, point, strategy in cells]

    def _wanted(self, fault: str, point: str, strategy: str) -> bool:
        if point in ONLY_OWING and strategy not in OWING:
            return False
        if ALL:
            # What fails at the destination alone fails where the destination has something to do; what is ours already can't be called off.
            if fault == "cancel":
                return POINTS[point][1] == BEFORE and point.split(".")[0] in ("starter", "source", "destination")
            return fault not in ("disk-full", "no-memory") or point.startswith("destination.")
        if fault in TRIED:
            return (point, strategy) in TRIED[fault]
        # The rest is `./dev faults`.
        if strategy == "postcopy":
            return fault == "kill" or point in ("source.pinned", "source.committed", "destination.restarted")
        return strategy == "precopy" and fault == "kill" and point in ("claim.swap", "claim.swapped", "source.committed", "destination.pinned", "gate.half-kept", "gate.half-forgotten")

    def setup(self):
        self.table: dict[tuple[str, str], dict[str, str]] = {}
        self.looks = self.requests = 0
        self.ended: dict[str, list[str]] = {}  # what the moves ended with, by what was done to them
        self.fields: list[Trial] = []
        self.free: queue.Queue[Trial] = queue.Queue()
        for number in range(JOBS):
            self.fields.append(Trial(self.options, f"matrix{number}"))
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
            seen = field.try_cell(fault, point, strategy)
            self.table.setdefault((point, fault), {})[strategy] = f"on {seen['node']}"
            self.looks += seen["looks"]
            self.requests += seen["requests"]
            self.ended.setdefault(fault, []).append(seen["error"])
            return seen
        except Exception:
            self.table.setdefault((point, fault), {})[strategy] = "FAIL"
            raise
        finally:
            self.free.put(field)

    def _print_table(self) -> None:
        points, faults = [*POINTS, *AGAIN], [*FAULTS, "kill-again"]
        print(f"     {'':50}" + "".join(f"{strategy:>13}" for strategy in STRATEGIES))
        for (point, fault), row in sorted(self.table.items(), key=lambda item: (points.index(item[0][0]), faults.index(item[0][1]))):
            print(f"     {point + ' ' + fault:50}" + "".join(f"{row.get(strategy, '-'):>13}" for strategy in STRATEGIES))
        for fault, errors in sorted(self.ended.items(), key=lambda item: faults.index(item[0])):
            failed = [error for error in errors if error]
            print(f"     {fault}: {len(failed)} of {len(errors)} moves failed" + (f", by {failed[0][:120]!r} for one" if failed else ""))
        right = sum(cell != "FAIL" for row in self.table.values() for cell in row.values())
        print(f"     {right} of {sum(len(row) for row in self.table.values())} cells: one copy runs, whole, and nothing else is left; "
              f"in {self.looks} looks never two that could run, in {self.requests} requests no error")


class Field(Faults):
    """Three nodes whose daemons have fault points."""

    def __init__(self, options, name: str):
        super().__init__(options)
        self.cluster = Cluster(name, nodes=3, options=("--godwitd", BUILD / "godwitd-faults"))
        self.count = 0  # pods, each with a name of its own

    def setup(self):
        self.cluster.up()

    # ---- fault points

    def _file(self, node: str, name: str) -> str:
        return f"/proc/{self.cluster.host_pid(node)}/root/run/godwit/{name}"

    def _arm(self, node: str, point: str, action: str, more: str = "") -> None:
        """`more`: another POINT:ACTION."""
        with open(self._file(node, "fault.new"), "w") as file:
            file.write(f"{point}:{action}\n{more}\n")
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

    # ---- what else can go wrong

    @contextlib.contextmanager
    def _trouble(self, fault: str):
        cluster = self.cluster
        store, daemon = self.cluster.daemon_pid("a"), self.cluster.daemon_pid("c")
        muted = {"mute-source": "b", "mute-destination": "c"}.get(fault)
        if muted:
            # Nothing goes out; what is sent to it arrives.
            cluster.exec(muted, "tc", "qdisc", "replace", "dev", "uplink", "root", "tbf", "rate", "8bit", "burst", "1", "limit", "1")
        elif fault == "store-gone":
            cluster.daemon("kill", "a")
        elif fault in ("store-late", "store-slow"):
            os.kill(store, signal.SIGSTOP)
        elif fault == "disk-full":
            cluster.exec("c", "sh", "-c", "head -c 1G /dev/zero > /var/lib/godwit/filler", check=False)
            if cluster.exec("c", "sh", "-c", "echo > /var/lib/godwit/one-more", check=False).returncode == 0:
                raise Failure("the disk isn't full")
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
            elif fault in ("store-late", "store-slow"):
                os.kill(store, signal.SIGCONT)
            elif fault == "disk-full":
                cluster.exec("c", "rm", "-f", "/var/lib/godwit/filler")
            elif fault == "no-memory" and self._alive("c"):
                resource.prlimit(daemon, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _set_clock(self, node: str, seconds: int) -> None:
        if seconds == 0:
            return os.unlink(self._file(node, "clock"))
        with open(self._file(node, "clock.new"), "w") as file:
            file.write(str(seconds))
        os.rename(self._file(node, "clock.new"), self._file(node, "clock"))

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
                if told["doubts"] or told["remainders"] or told["promises"]:
                    return None
            homes = [node for node in ("b", "c") if os.path.isdir(f"/proc/{self.cluster.host_pid(node)}/root/var/lib/godwit/pods/{pod}")]
            return self.cluster.alone(pod) and len(homes) == 1

        wait_for(f"nothing but {pod} itself to be left", clean, 30, step=0.2)


class Trial(Field):
    """Where one cell after the other is tried."""

    def setup(self):
        super().setup()
        self.cluster.provide(BUILD / "tracees" / TRACEE)
        # Whatever is made once and kept is there from now on.
        self._start("first")
        for there in ("c", "b"):
            self.cluster.migrate("first", there, "postcopy")
            self.cluster.drained("first", there)
        self.cluster.remove("first")
        self.before = inventory.take(self.cluster, self.cluster.nodes)

    def _start(self, pod: str) -> None:
        self.cluster.run("b", pod, [BUILD / "tracees" / TRACEE, PORT])
        self.cluster.wait_logs(pod, "ready\n")

    # ---- one cell

    def try_cell(self, fault: str, point: str, strategy: str) -> dict:
        """The node on which the pod ran on, how often it was looked at, what it answered, and what the move failed by."""
        cluster = self.cluster
        self.count += 1
        pod = f"m{self.count}"
        client = None
        try:
            self._start(pod)
            marks = self._marks(pod)
            if fault == "disk-full":
                self._small_disk()
            daemons = [cluster.daemon_pid(node) for node in ("b", "c")]
            server = Server(TRACEE, PORT, [], "echo")
            client = load.Load(cluster, server, cluster.address(pod), "--rate", 50, "--connections", 2, "--silence", SILENCE_S)
            with NeverTwice(cluster, pod, TRACEE) as copies:
                places, moving = self._kill_again(AGAIN[point], pod, strategy) if fault == "kill-again" else self._interfere_at(point, fault, pod, strategy)
                self._disarm()
                for node in ("b", "c"):
                    if not self._alive(node):
                        cluster.daemon("start", node)
                node = self._runs(pod, places, 60)
                self._nothing_left(pod)
            if "kill" not in fault and daemons != [cluster.daemon_pid(node) for node in ("b", "c")]:
                raise Failure("a daemon has ended that nobody has killed")
            if (left := self._marks(pod)) != marks:
                raise Failure(f"something of the migration is left: {marks} became {left}")
            error = self._told(moving.finish(SILENCE_S), fault)
            seen = client.finish()
            if seen["errors"] or not seen["requests"]:
                raise Failure(f"{seen['errors']} errors in {seen['requests']} requests: " + "; ".join(seen["messages"]))
            self._finish(pod, node)
            looks = copies.looks()
        except Failure as failure:
            raise Failure(f"{failure}\n" + "\n".join(f"-- {node}:\n{cluster.daemon_log(node, 25)}" for node in ("b", "c"))) from None
        finally:
            if client:
                client.end()
            self._disarm()
            cluster.link("c", "up")
            cluster.heal()
            cluster.remove(pod)
            if fault == "disk-full":
                self._own_disk()
        try:
            inventory.wait_same(cluster, self.before, 30, ALLOWED, without=("memory",))  # a daemon that has begun anew needs what it needs
        except Failure:
            self.before = inventory.take(cluster, cluster.nodes)
            raise
        return {"node": node, "looks": looks, "requests": seen["requests"], "error": error}

    def _interfere_at(self, point: str, fault: str, pod: str, strategy: str) -> tuple[tuple, Migration]:
        """Does it when the move is at this point. Gives where the pod may be then."""
        cluster = self.cluster
        side, places = POINTS[point]
        self._arm(side, point, "kill" if fault == "kill" else "wait")
        # The store's node may be the one that goes.
        moving = Migration(cluster, pod, "c", strategy, node="b" if fault.startswith("store") else "a")
        self._reached(side, fault, moving)
        if fault == "kill":
            return places, moving
        if fault == "cancel":
            answer = cluster.api("b", "POST", f"/v1/pods/{pod}/migrate/cancel")
            if answer.status != 200:
                raise Failure(f"not cancelled: {answer.read()[:500]}")
            self._go(side)
            wait_for("the end of the move that was cancelled", moving.over, 30)
            return BEFORE, moving
        if fault == "kill-both":
            for node in ("b", "c"):
                cluster.daemon("kill", node)
        elif fault == "kill-other":
            cluster.daemon("kill", "c" if side == "b" else "b")
            self._go(side)
            time.sleep(1)
        elif fault == "cut":
            cluster.link("c", "down")
            self._go(side)
            time.sleep(4)
            cluster.link("c", "up")
        else:
            with self._trouble(fault):
                self._go(side)
                time.sleep(SLOW_S if fault == "store-slow" else LATE_S)
        return AFTER if fault == "store-slow" else EITHER, moving

    def _kill_again(self, again: Again, pod: str, strategy: str) -> tuple[tuple, Migration]:
        cluster = self.cluster
        (first, first_point), (second, second_point) = again.first, again.then
        # A claim is looked for when the store has said nothing.
        silent = second_point == "claim.look"
        self._arm(first, first_point, *(("wait", f"{second_point}:kill") if silent else ("kill",)))
        moving = Migration(cluster, pod, "c", strategy, node="b" if silent else "a")
        self._reached(first, "wait" if silent else "kill", moving)
        store = self.cluster.daemon_pid("a")
        try:
            if silent:
                os.kill(store, signal.SIGSTOP)
                self._go(first)
            else:
                self._disarm()
                self._arm(second, second_point, "kill")
                # One that dies before it is up is no failure of the command's.
                cluster.playground("daemon", "start", first, check=False)
            wait_for(f"{second_point} on {second}", lambda: not self._alive(second), 60, step=0.05)
        finally:
            os.kill(store, signal.SIGCONT)
        return again.places, moving

    @staticmethod
    def _told(last: dict, fault: str) -> str:
        """What the move failed by; empty when it went well. Some are known."""
        error = last.get("error") or {}
        if fault == "cancel" and error.get("kind") != "cancelled":
            raise Failure(f"it was cancelled, and says {json.dumps(last)[:600]}")
        if fault == "store-slow" and error:
            raise Failure(f"the store was slow, and the move failed: {json.dumps(error)[:600]}")
        return error.get("message", "")


def cluster_json(cluster: Cluster, node: str) -> dict:
    return json.loads(cluster.api(node, "GET", "/v1/node").read())
