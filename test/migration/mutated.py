"""A node that lies: moves from it and to it, and in each of them something that it says is not what it should be (test/faults/liar.cpp). Whatever
that is, the other node's daemon lives on and keeps nothing of it, its own pods and those beside are unharmed, and the moved one is in one place."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import tempfile
import threading
import time

import servers
from harness import BUILD, Case, Failure, Suite, wait_for
from migration import inventory, load
from migration.cluster import STRATEGIES, Cluster, Migration

HONEST = ("a", "b")
STEPS = 6     # moves of one pod's life, at most
ROUND = 10    # lives of each liar, after which everything on the honest nodes is counted
SHORT = 240   # moves
WARM_UP = 4   # lives of each liar, after which caches, pools and arenas have what they need
PATIENCE = 5  # seconds that a destination waits for a source with pages
# Each has messages, objects or layouts that the others haven't.
PROGRAMS = ("anon_private", "anon_shared", "cow_shared", "credentials", "deleted_map", "directory", "epolls", "eventfds", "fifo", "file_deleted", "file_position",
            "file_shared", "itimers", "locks", "many_maps", "memfd", "pipes", "posix_timers", "robust", "shared_table", "signal_pending", "signalfds", "sleep_timed",
            "sparse", "tcp_inside", "tcp_queues", "threads", "timerfds", "tree", "udp", "unix_dgram", "unix_stream", "zombies")
# What a program is told: a node that lies may draw a freeze out for as long as an honest one has patience with it (15 s).
ARGUMENTS = {"sleep_timed": ("20000",)}
# A shell that counts: no number may be missing, or come twice.
COUNTER = "echo ready; trap 'echo ok; exit 0' TERM; i=0; while :; do i=$((i + 1)); echo $i; sleep 0.05; done"
# What a daemon that has met nothing but lies never says.
NEVER_SAID = re.compile(r"Sanitizer|runtime error:|terminate called|std::|vector::|basic_string|map::at|bad_alloc|Assertion")


class Mutated(Suite):
    name = "mutated"

    def __init__(self, options):
        super().__init__(options)
        self.moves = getattr(options, "migrations", None) or SHORT
        self.seed = getattr(options, "seed", None) or 1
        self.life = getattr(options, "life", None)
        self.liars = [chr(ord("c") + number) for number in range(getattr(options, "liars", None) or 6)]
        # Of the honest nodes; built with sanitizers, say.
        self.daemon = pathlib.Path(getattr(options, "godwitd", None) or BUILD / "godwitd")

    def cases(self):
        return [Case("moves", self._moves)]

    def setup(self):
        self.files = tempfile.TemporaryDirectory(dir=BUILD)
        wrapper = pathlib.Path(self.files.name) / "godwitd"
        wrapper.write_text(f'#!/bin/sh\ncase $(cat /etc/hostname) in\n{"|".join(HONEST)}) exec "{self.daemon}" "$@";;\n*) exec "{BUILD}/godwitd-faults" "$@";;\nesac\n')
        wrapper.chmod(0o755)
        self.cluster = Cluster("mutated", nodes=2 + len(self.liars), options=("--godwitd", wrapper))
        self.cluster.up()
        for node in self.cluster.nodes:
            self.cluster.exec(node, "sed", "-i", f"s/^page_patience = .*/page_patience = {PATIENCE}/", "/etc/godwit/godwitd.toml")
            self.cluster.daemon("stop", node)
            self.cluster.daemon("start", node)
        for program in PROGRAMS:
            if self.cluster.exec("a", "test", "-x", BUILD / "tracees" / program, check=False).returncode != 0:
                self.cluster.provide(BUILD / "tracees" / program)
        self.roots = {node: pathlib.Path(f"/proc/{self.cluster.host_pid(node)}/root") for node in self.cluster.nodes}
        self.daemons = self._daemons()
        self.lock = threading.Lock()
        self.moving = threading.Lock()  # held by whoever moves what is beside, or counts what is there when nothing moves
        self.told: dict[str, int] = {}  # kinds of lies, and how many of each were told
        self.counts = {"moves": 0, "mutated": 0, "went through": 0, "failed": 0, "ended": 0}

    def teardown(self):
        self.cluster.down()
        self.files.cleanup()

    # ---- what must hold

    def _daemons(self) -> dict[str, int]:
        return {host["name"]: host["daemon"]["pid"] for host in self.cluster.status()["hosts"] if host["name"] in self.cluster.nodes}

    def _all_live(self) -> None:
        for node, pid in self.daemons.items():
            with contextlib.suppress(OSError):
                if open(f"/proc/{pid}/stat", encoding="utf-8").read().rpartition(")")[2].split()[0] != "Z":
                    continue
            raise Failure(f"the daemon of {node} has ended:\n{self.cluster.daemon_log(node, 60)}")

    def _homes(self, pod: str) -> list[str]:
        return [node for node, root in self.roots.items() if (root / "var/lib/godwit/pods" / pod).is_dir()]

    def _seen(self, node: str, pod: str) -> dict | None:
        pods = json.loads(self.cluster.api(node, "GET", "/v1/pods?local").read())["pods"]
        return next((entry for entry in pods if entry["name"] == pod), None)

    def _settled(self, pod: str, liar: str) -> tuple[str, str]:
        """Where the pod is when everything is over, and its state there. Nowhere else is anything of it."""
        last = [""]

        def over():
            self._all_live()
            found = []
            for node in (*HONEST, liar):
                told = json.loads(self.cluster.api(node, "GET", "/v1/node").read())
                for kind in ("doubts", "remainders"):
                    if any(entry["pod"] == pod for entry in told[kind]):
                        last[0] = f"{kind} on {node}: {told[kind]}"
                        return None
                seen = self._seen(node, pod)
                if seen:
                    found.append((node, seen["state"]))
            homes = self._homes(pod)
            last[0] = f"seen {found}, directories on {homes}"
            if len(found) != 1 or found[0][1] not in ("running", "exited") or homes != [found[0][0]]:
                return None
            return found[0]

        try:
            return wait_for(f"{pod} to be in one place", over, 100, step=0.05)
        except Failure as failure:
            raise Failure(f"{failure}: {last[0]}") from None

    def _gone(self, pod: str) -> None:
        """Nothing of it is left on the honest nodes."""

        left = []

        def clean():
            self._all_live()
            left[:] = [f"its directory on {node}" for node in self._homes(pod) if node in HONEST]
            left.extend(f"known to {node}" for node in HONEST if self._seen(node, pod))
            left.extend(f"process {pid}" for pid in self.cluster.processes(pod))
            return not left

        # A source that never says that this was all is given a minute.
        try:
            wait_for(f"nothing of {pod} to be left", clean, 100, step=0.1)
        except Failure as failure:
            raise Failure(f"{failure}: {', '.join(left)}") from None

    def _said(self) -> None:
        for node in HONEST:
            log = self.roots[node] / "var/log/godwitd.log"
            for line in log.read_text(errors="replace").splitlines():
                if NEVER_SAID.search(line):
                    raise Failure(f"{node} says: {line[:2000]}")

    # ---- one move

    def _file(self, liar: str, name: str) -> pathlib.Path:
        return self.roots[liar] / "run/godwit" / name

    def _move(self, pod: str, here: str, there: str, strategy: str, number: int) -> tuple[dict, list[str]]:
        """A move in which the liar among the two lies: its last word, and which lies were told."""
        liar, side = (here, "source") if here not in HONEST else (there, "destination")
        told = self._file(liar, "lie.told")
        told.unlink(missing_ok=True)
        self._file(liar, "lie.new").write_text(f"{self.seed} {number} {side}\n")
        os.rename(self._file(liar, "lie.new"), self._file(liar, "lie"))
        try:
            last = Migration(self.cluster, pod, there, strategy, node=here).finish(240)
        finally:
            self._file(liar, "lie").unlink(missing_ok=True)
        lies = told.read_text().splitlines() if told.exists() else []
        with self.lock:
            self.counts["moves"] += 1
            self.counts["mutated"] += bool(lies)
            self.counts["failed" if "error" in last else "went through"] += 1
            for lie in lies:
                kind = f"{side}: {lie.split(' #')[0]}"
                self.told[kind] = self.told.get(kind, 0) + 1
        return last, lies

    # ---- one pod's life

    def _life(self, life: int, liar: str) -> None:
        chance = random.Random(f"{self.seed} {life}")
        pod, honest = f"life{life}", chance.choice(HONEST)
        counts = chance.random() < 0.1
        program = chance.choice(PROGRAMS)
        words = ["/bin/sh", "-c", COUNTER] if counts else [BUILD / "tracees" / program, *ARGUMENTS.get(program, ())]
        story = [f"life {life} of seed {self.seed}, {'counter' if counts else program}, liar {liar}"]
        try:
            self.cluster.run(here := chance.choice((honest, liar)), pod, words)
            self.cluster.wait_logs(pod, "ready\n", here, seconds=60)
            intact = True  # nothing that was told about it was believed
            for step in range(STEPS):
                there = liar if here in HONEST else chance.choice(HONEST)
                strategy = chance.choice(STRATEGIES)
                last, lies = self._move(pod, here, there, strategy, life * STEPS + step)
                failed = json.dumps(last.get("error")) if "error" in last else ""
                story.append(f"{here} to {there}, {strategy}: {lies}: {failed[:600] or 'moved'}")
                if "no last word" in failed:
                    raise Failure("a move ended without a last word")
                before = here
                here, state = self._settled(pod, liar)
                if here not in (before, there):
                    raise Failure(f"it is on {here}")
                if not failed and here == before:
                    raise Failure("it was said to have moved")
                if lies and here == there:
                    intact = False
                if state == "exited":
                    if intact:
                        raise Failure(f"it has ended: {json.dumps(self._seen(here, pod))}: {self.cluster.logs(pod, here)[-1000:]}")
                    with self.lock:
                        self.counts["ended"] += 1
                    break
            if intact:
                self._content(pod, here, counts)
        except Failure as failure:
            said = "\n".join(f"-- {node}:\n{self.cluster.daemon_log(node, 30)}" for node in (*HONEST, liar))
            raise Failure(f"{failure}\n" + "\n".join(story) + "\n" + said) from None
        finally:
            self.cluster.remove(pod)
        self._gone(pod)

    def _content(self, pod: str, node: str, counts: bool) -> None:
        """It checks itself, and is content."""
        self.cluster.signal(pod, "TERM", node)
        code = self.cluster.wait_exit(pod)
        output = self.cluster.logs(pod, node)
        lines = output.split("\n")
        expected = ["ready", *(str(number) for number in range(1, len(lines) - 2)), "ok", ""] if counts else ["ready", "ok", ""]
        if code != 0 or lines != expected:
            raise Failure(f"exit code {code}, output {output[-1000:]!r}")

    # ---- all of them

    def _beside(self, stop: threading.Event) -> None:
        """A server under load on the honest nodes, moved to the other one and back now and then."""
        strategies = itertools.cycle(STRATEGIES)
        while not stop.wait(4):
            with self.moving:
                for here, there in (HONEST, HONEST[::-1]):
                    self.cluster.migrate("beside", there, next(strategies), node=here)
                    self.cluster.drained("beside", there)

    def _round(self, lives: range) -> None:
        waiting = iter(lives)

        def work(liar: str) -> None:
            while True:
                with self.lock:
                    life = next(waiting, None)
                if life is None:
                    return
                self._life(life, liar)

        with concurrent.futures.ThreadPoolExecutor(len(self.liars)) as pool:
            for done in concurrent.futures.as_completed([pool.submit(work, liar) for liar in self.liars]):
                if done.exception():
                    # Nobody begins another one.
                    with self.lock:
                        for _ in waiting:
                            pass
                    done.result()

    def _moves(self) -> dict:
        cluster, stop = self.cluster, threading.Event()
        # A second try is a whole one.
        self.counts = dict.fromkeys(self.counts, 0)
        server = servers.redis(fill_mib=4)
        client = None
        with concurrent.futures.ThreadPoolExecutor(1) as aside:
            try:
                client = load.Load(cluster, server, load.start(cluster, server, "beside"), "--rate", 100, "--connections", 4)
                beside = aside.submit(self._beside, stop)
                if self.life is not None:
                    return self._life(self.life, self.liars[0])
                life = WARM_UP * len(self.liars)
                self._round(range(life))
                with self.moving:
                    before, begin = inventory.take(cluster, HONEST), time.monotonic()
                while self.counts["mutated"] < self.moves:
                    self._round(range(life, life := life + ROUND * len(self.liars)))
                    with self.moving:
                        # When a move of it has failed, it isn't where it was counted.
                        if beside.done():
                            beside.result()
                        inventory.wait_same(cluster, before, 60)
                        memory = {node: counts["memory"] for node, counts in inventory.take(cluster, HONEST).items()}
                    self._said()
                    if self._daemons() != self.daemons:
                        raise Failure("a daemon is another one")
                    print(f"     mutated: seed {self.seed}, {life} lives, {self.counts}, {time.monotonic() - begin:.0f} s; the honest daemons' memory {memory} KiB",
                          flush=True)
                stop.set()
                beside.result()
                summary = client.finish()
                if summary["errors"]:
                    raise Failure(f"{summary['errors']} errors in {summary['requests']} requests beside: " + "; ".join(summary["messages"]))
                print("     mutated: " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.told.items())), flush=True)
                return {**self.counts, "lies": self.told, "requests": summary["requests"]}
            finally:
                stop.set()
                if client:
                    client.end()
                cluster.remove("beside")
