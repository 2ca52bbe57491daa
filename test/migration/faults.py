"""Either daemon killed, and the link cut, in each phase: the pod runs on in one place, and never in two."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time

import servers
from harness import BUILD, Case, Failure, Suite, expect, wait_for
from migration import load, proc
from migration.cluster import Cluster, Migration

# Phase, and the strategy with which it is long enough to be met on a slow link.
PHASES = [("negotiate", "precopy"), ("prepare", "precopy"), ("precopy", "precopy"), ("freeze", "freeze"),
          ("restart", "precopy"), ("drain", "postcopy")]


class Faults(Suite):
    name = "faults"

    def cases(self):
        return [Case(f"{side}-killed-in-{phase}", lambda s=side, p=phase, y=strategy: self._kill(s, p, y)) for phase, strategy in PHASES
                for side in ("source", "destination")] + [
                    Case(f"link-cut-in-{phase}", lambda p=phase, y=strategy: self._cut(p, y)) for phase, strategy in (("precopy", "precopy"), ("freeze", "freeze"))
                ] + [Case(f"source-killed-in-{phase}-with-tcp", lambda p=phase, y=strategy: self._kill_with_tcp(p, y))
                     for phase, strategy in (("precopy", "precopy"), ("freeze", "freeze"))
                ] + [Case("daemon-restarts-under-a-pod", self._restart), Case("limits-and-connections-stay", self._stay),
                     Case("no-more-threads", self._no_more_threads, exclusive=True)]

    def setup(self):
        self.cluster = Cluster("faults", nodes=3)
        self.cluster.up()

    def teardown(self):
        self.cluster.down()

    def _start(self, pod: str, name: str = "anon_private") -> None:
        # Its store is node a's: the pod starts on b and goes to c, so that the store lives.
        tracee = BUILD / "tracees" / name
        self.cluster.provide(tracee)
        self.cluster.run("b", pod, [tracee])
        self.cluster.wait_logs(pod, "ready\n")

    def _runs(self, pod: str, places: tuple, seconds: float = 30) -> str:
        """Waits until the pod makes progress in one of these places and is nowhere else."""
        cluster = self.cluster

        def settled():
            state = cluster.pods().get(pod, {})
            if state.get("state") != "running" or state.get("node") not in places or not self.cluster.alone(pod):
                return None
            return state["node"]

        node = wait_for(f"{pod} to run on {' or '.join(places)}, and there only", settled, seconds, step=0.2)
        ticks = self._ticks(pod)
        wait_for(f"{pod} to make progress on {node}", lambda: self._ticks(pod) > ticks, 10)
        if not self.cluster.alone(pod):
            raise Failure(f"{pod} runs twice")
        return node

    def _ticks(self, pod: str) -> int:
        total = 0
        for pid in self.cluster.processes(pod):
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total

    def _marks(self, pod: str) -> dict:
        """Where a migration that was cut off would show: code of ours in a process, and how its threads are scheduled. By pid in the pod."""
        marks = {}
        for pid in self.cluster.processes(pod):
            with open(f"/proc/{pid}/maps") as maps:
                code = sorted(line.split()[0] for line in maps if " r-xp " in line and len(line.split()) == 5)
            threads = []
            for thread in sorted(int(name) for name in os.listdir(f"/proc/{pid}/task")):
                with open(f"/proc/{thread}/timerslack_ns") as slack:
                    threads.append((os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority, slack.read().strip()))
            marks[proc.inner_pid(pid)] = (code, threads)
        return marks

    def _let_down(self, pod: str) -> None:
        """While there is no daemon its threads aren't in the freeze's real-time class any more."""

        def none_raised():
            with contextlib.suppress(OSError):  # one has just ended
                return all(policy != os.SCHED_FIFO for _, threads in self._marks(pod).values() for policy, *_ in threads)

        wait_for(f"the threads of {pod} to be let down", none_raised, 10)

    def _finish(self, pod: str, node: str) -> None:
        self.cluster.signal(pod, "TERM", node)
        code = self.cluster.wait_exit(pod)
        # Dots: how far it has come.
        output = self.cluster.logs(pod).replace(".", "")
        if code != 0 or output != "ready\nok\n":
            raise Failure(f"exit code {code}, output {output[-1000:]!r}")

    def _interfere(self, pod: str, phase: str, strategy: str, interfere, restore, places: tuple, tracee: str = "anon_private", rate: str = "200mbit",
                   within: float = 90) -> dict:
        cluster = self.cluster
        try:
            self._start(pod, tracee)
            marks = self._marks(pod)
            cluster.link("c", f"rate={rate}")
            moving = Migration(cluster, pod, "c", strategy, node="a")
            moving.wait_phase(phase)
            if phase == "precopy":
                # Pages are on their way then. A daemon that dies while it puts its gadget into a process may take the process with it.
                time.sleep(0.3)
            interfere()
            begin = time.monotonic()
            last = moving.finish(90)
            if "error" not in last and "c" not in places:
                raise Failure(f"the migration says that it went well: {last}")
            answered = time.monotonic() - begin
            restore()
            node = self._runs(pod, places)
            stood = max(last.get("report", {}).get("pauses_us", []), default=0) / 1e6
            if answered > within or stood > within:
                raise Failure(f"it answered after {answered:.1f} s, and the pod stood still for up to {stood:.1f} s, instead of {within} s")
            if (left := self._marks(pod)) != marks:
                raise Failure(f"something of the migration is left: {marks} became {left}")
            self._finish(pod, node)
            return {"answered_s": answered, "node": node}
        except Failure as failure:
            raise Failure(f"{failure}\n" + "\n".join(f"-- {node}:\n{cluster.daemon_log(node, 15)}" for node in ("b", "c"))) from None
        finally:
            cluster.link("c", "up")
            cluster.link("c", "rate=none")
            cluster.heal()
            cluster.remove(pod)

    def _kill(self, side: str, phase: str, strategy: str) -> dict:
        node = "b" if side == "source" else "c"
        pod = f"{side}-dies-in-{phase}"

        def restore():
            if node == "b" and self.cluster.processes(pod):
                self._let_down(pod)
            self.cluster.daemon("start", node)

        # From the restart on the pod is the destination's; what the kill meets in between is either's, but never both's.
        places = {"freeze": ("b", "c"), "restart": ("b", "c"), "drain": ("c",)}.get(phase, ("b",))
        return self._interfere(pod, phase, strategy, lambda: self.cluster.daemon("kill", node), restore, places)

    def _cut(self, phase: str, strategy: str) -> dict:
        # While the pod stands still two seconds without a sign of the other node are enough.
        return self._interfere(f"cut-in-{phase}", phase, strategy, lambda: self.cluster.link("c", "down"), lambda: self.cluster.link("c", "up"), ("b",),
                               within=4 if phase == "freeze" else 10)

    def _kill_with_tcp(self, phase: str, strategy: str) -> dict:
        """Its connections go on. It is small: only a slow link makes a phase long enough to be met."""
        return self._interfere(f"tcp-source-dies-in-{phase}", phase, strategy, lambda: self.cluster.daemon("kill", "b"),
                               lambda: self.cluster.daemon("start", "b"), ("b",), "tcp_inside", "4mbit")

    def _restart(self) -> None:
        """The pod outlives its daemon, and the next daemon takes it back: it can be moved."""
        cluster, pod = self.cluster, "survivor"
        try:
            self._start(pod)
            for action in ("kill", "stop"):
                cluster.daemon(action, "b")
                ticks = self._ticks(pod)
                wait_for("progress without a daemon", lambda before=ticks: self._ticks(pod) > before, 10)
                cluster.daemon("start", "b")
            cluster.migrate(pod, "c", "precopy", node="b")
            self._finish(pod, self._runs(pod, ("c",)))
        finally:
            cluster.heal()
            cluster.remove(pod)

    def _no_more_threads(self) -> dict:
        """A node without room for one more thread: its daemon and its pod live on, a move says why it can't be, and all is well afterwards."""
        cluster, pod = self.cluster, "crowded"
        try:
            self._start(pod)
            marks = self._marks(pod)
            daemon = cluster.daemon_pid("b")
            limit = proc.pids_limit(daemon)
            before = limit.read_text()
            limit.write_text((limit.parent / "pids.current").read_text())
            try:
                last = Migration(cluster, pod, "c", "postcopy").finish(60)
                if "error" not in last:
                    raise Failure(f"it moved without threads: {last}")
                # Longer than from one round of all that the daemon does by itself to the next.
                for _ in range(25):
                    time.sleep(1)
                    if cluster.daemon_pid("b") != daemon or cluster.daemon_state("b") != "running":
                        raise Failure(f"the daemon has ended: {cluster.daemon_log('b')}")
            finally:
                limit.write_text(before)
            self._runs(pod, ("b",))
            if (left := self._marks(pod)) != marks:
                raise Failure(f"something of the migration is left: {marks} became {left}")
            cluster.migrate(pod, "c", "postcopy")
            self._finish(pod, self._runs(pod, ("c",)))
            return {"error": last["error"]["message"]}
        finally:
            cluster.heal()
            cluster.remove(pod)

    def _stay(self) -> None:
        """A restart of its daemon, and a move, change neither a pod's limits nor its address: an old connection goes on, and new ones are let in."""
        cluster, pod, server = self.cluster, "bounded", servers.python()
        # Sends each line of its stdin over one connection, and prints the answer.
        ask = "import socket, sys\nstream = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20).makefile('rw')\n" \
              "for line in sys.stdin:\n    print(line, end='', file=stream, flush=True)\n    print(stream.readline(), end='', flush=True)"
        client = None
        try:
            address = load.start(cluster, server, pod, "b", "--memory", "64M", "--cpus", "0.5")
            words = cluster.exec_words("client", "python3", "-c", ask, address, server.port)
            client = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            asked = 0

            def unchanged(node: str) -> None:
                nonlocal asked
                limits = {tuple(sorted(proc.cgroup_limits(pid).items())) for pid in cluster.processes(pod)}
                expect(f"the limits on {node}", limits, {(("cpu", "50000 100000"), ("memory", str(64 << 20)))})
                asked += 1
                client.stdin.write("still there\n")
                expect(f"the answer from {node}, and the number of questions", client.stdout.readline(), f"still there {asked}\n")
                load.listening(cluster, pod, address, server.port)
                expect("its address", cluster.address(pod), address)

            unchanged("b")
            for action in ("kill", "stop"):
                cluster.daemon(action, "b")
                cluster.daemon("start", "b")
                unchanged("b")
            cluster.migrate(pod, "c", node="b")
            cluster.drained(pod, "c")
            unchanged("c")
            cluster.daemon("kill", "c")
            cluster.daemon("start", "c")
            unchanged("c")
        finally:
            if client:
                client.kill()
                client.wait()
            cluster.heal()
            cluster.remove(pod)
