"""Whoever follows a pod by command stays with it when it moves: waiting, reading its output, typing at its terminal."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time

from daemons import Terminal
from harness import Case, Failure, Process, Suite, wait_for
from migration.cluster import Cluster, CommandError

STRATEGIES = ("precopy", "postcopy", "hybrid", "freeze", "eager-dirty", "auto")


def expect(what: str, found, wanted) -> None:
    if found != wanted:
        raise Failure(f"{what}: {found!r} instead of {wanted!r}")


class Sessions(Suite):
    name = "sessions"

    def cases(self):
        return [Case("logs_wait_and_run", self._output), Case("input", self._input), Case("terminal", self._terminal),
                Case("commands_meanwhile", self._meanwhile), Case("daemons_killed", self._killed)]

    def setup(self):
        self.cluster = Cluster("sessions")
        self.cluster.up()
        self.files = tempfile.TemporaryDirectory(prefix="godwit-sessions-")
        self.directory = pathlib.Path(self.files.name)

    def teardown(self):
        self.cluster.down()
        self.files.cleanup()

    def _round(self, pod: str, strategies=STRATEGIES) -> None:
        """From a round the nodes and back, once with each strategy; asked of any node."""
        for strategy in strategies:
            for asked, to in (("a", "b"), ("a", "c"), ("b", "a")):
                self.cluster.migrate(pod, to, strategy, node=asked)

    def _start(self, name: str, node: str, *words) -> Process:
        return Process(self.cluster.exec_words(node, "godwit", *words), self.directory / name)

    def _output(self):
        pod = "counter"
        # No children: a program that forks while it is moved is another test's matter.
        program = "import time, sys\nn = 0\nwhile True:\n n += 1\n print(n, flush=True)\n time.sleep(0.002)"
        run = self._start("run", "a", "run", "--name", pod, "--", "python3", "-c", program)
        run.wait_output("\n5\n")
        follow = {node: self._start(f"follow.{node}", node, "logs", "-f", pod) for node in "ac"}
        wait = self._start("wait", "b", "wait", pod)
        try:
            self._round(pod)
            seen = len(run.output().splitlines())
            wait_for("more output", lambda: len(run.output().splitlines()) > seen + 20)
            whole = self.cluster.logs(pod, "b").split()
            expect("logs", whole, [str(number + 1) for number in range(len(whole))])
            self.cluster.signal(pod, "TERM", node="c")
            expect("exit code of run", run.wait(), 143)
            expect("exit code of wait", wait.wait(), 143)
            for node, process in follow.items():
                expect(f"exit code of logs -f on {node}", process.wait(), 0)
            for name in ("run", "follow.a", "follow.c"):
                lines = (self.directory / name).read_text().split()
                expect(f"the output of {name}", lines, [str(number + 1) for number in range(len(lines))])
        finally:
            for process in (run, wait, *follow.values()):
                process.end()
            self.cluster.remove(pod)

    def _input(self):
        pod = "eater"
        program = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)\nprint('the end', flush=True)"
        words = self.cluster.exec_words("a", "godwit", "run", "-i", "--name", pod, "--", "python3", "-c", program)
        sent, moved = [], threading.Event()
        with open(self.directory / "eaten", "wb") as output:
            run = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)

        def feed():
            while not moved.is_set():
                line = f"line {len(sent)} {'x' * (len(sent) % 500)}\n"
                run.stdin.write(line.encode())
                run.stdin.flush()
                sent.append(line)
                time.sleep(0.0005)
            run.stdin.close()

        feeder = threading.Thread(target=feed, daemon=True)
        try:
            wait_for(pod, lambda: pod in self.cluster.pods())
            feeder.start()
            self._round(pod)
            moved.set()
            expect("exit code", run.wait(30), 0)
            got = (self.directory / "eaten").read_text().splitlines()
            wanted = [line.strip() for line in sent] + ["the end"]
            for number, (one, other) in enumerate(zip(got, wanted)):
                if one != other:
                    raise Failure(f"line {number} of {len(wanted)} is {one[:60]!r} instead of {other[:60]!r}")
            expect("lines", len(got), len(wanted))
        finally:
            moved.set()
            run.kill()
            run.wait()
            self.cluster.remove(pod)

    def _terminal(self):
        pod = "shell"
        words = self.cluster.exec_words("a", "godwit", "run", "-it", "--name", pod, "--", "bash", "--norc")
        shell = Terminal(words, os.environ | {"TERM": "xterm"}, 33, 101)
        try:
            shell.type("X=5; echo ready-$((1+1))\n")
            shell.until("ready-2")
            for number, strategy in enumerate(STRATEGIES):
                for to in "bca":
                    self.cluster.migrate(pod, to, strategy)
                    shell.type(f"echo here-{to}-$((X+{number}))\n")
                    shell.until(f"here-{to}-{5 + number}")
                shell.resize(20 + number, 70)
                shell.type(f"while [ \"$(stty size)\" != '{20 + number} 70' ]; do :; done; echo resized-$((X+{number}))\n")
                shell.until(f"resized-{5 + number}")
            shell.type("exit 9\n")
            expect("exit code", shell.finish(), 9)
        finally:
            self.cluster.remove(pod)

    def _killed(self):
        """A terminal stays attached, whatever becomes of the daemon that was asked, and of the one that has the pod; nothing typed is lost or doubled."""
        pod = "survivor"
        words = self.cluster.exec_words("a", "godwit", "run", "-it", "--name", pod, "--", "bash", "--norc")
        shell = Terminal(words, os.environ | {"TERM": "xterm"}, 33, 101)
        try:
            shell.type("N=0; count() { N=$((N+1)); echo counted-$N; }; echo ready-$((1+1))\n")
            shell.until("ready-2")
            number = 0
            for here in "aab":
                if self.cluster.pod(pod)["node"] != here:
                    self.cluster.migrate(pod, here)
                for victim in "ab":
                    self.cluster.daemon("kill", victim)
                    # While nobody is there to hear it.
                    shell.type("count\n")
                    self.cluster.daemon("start", victim)
                    number += 1
                    shell.until(f"counted-{number}")
            shell.type("exit $N\n")
            expect("exit code", shell.finish(), number)
        finally:
            self.cluster.remove(pod)

    def _meanwhile(self):
        """Commands about a pod that is on its way wait for it, or go to where it is then."""
        pod = "busy"
        # A mebibyte that is dirtied all the time: there is always something to copy.
        program = ("import os, signal, time\nsignal.signal(signal.SIGUSR1, lambda *_: print('usr1', flush=True))\n"
                   "waste = bytearray(os.urandom(1 << 20)) * 200\nprint('ready', flush=True)\nwhile True: time.sleep(0.001)")
        self.cluster.run("a", pod, ["python3", "-c", program])
        try:
            self.cluster.wait_logs(pod, "ready")
            self.cluster.link("b", "rate=1gbit")
            codes: list[int] = []
            moving = threading.Thread(target=lambda: codes.append(
                self.cluster.godwit("a", "migrate", pod, "b", "--strategy", "precopy", "--json", check=False).returncode))
            moving.start()
            wait_for("the migration", lambda: self.cluster.pod(pod)["state"] == "leaving", step=0.005)
            self.cluster.signal(pod, "USR1", node="c")
            self.cluster.wait_logs(pod, "usr1", node="c")
            expect("a second migration is refused", self.cluster.godwit("c", "migrate", pod, "c", check=False).returncode, 3)
            expect("exec waits", self.cluster.godwit("c", "exec", pod, "--", "echo", "there").stdout, "there\n")
            moving.join(60)
            expect("the migration", codes, [0])
            expect("node", self.cluster.pod(pod)["node"], "b")
            cancelled: list[tuple] = []

            def cancelled_move():
                done = self.cluster.godwit("a", "migrate", pod, "c", "--strategy", "precopy", "--json", check=False)
                cancelled.append((done.returncode, json.loads(done.stdout)["moved"]))

            moving = threading.Thread(target=cancelled_move)
            moving.start()
            wait_for("the migration", lambda: self.cluster.pod(pod)["state"] == "leaving", step=0.005)
            self.cluster.godwit("c", "migrate", "--cancel", pod)
            moving.join(60)
            expect("exit code, and whether it moved", cancelled, [(1, False)])
            expect("node", self.cluster.pod(pod)["node"], "b")
            expect("it runs", self.cluster.godwit("a", "exec", pod, "--", "echo", "here").stdout, "here\n")
            try:
                self.cluster.migrate(pod, "nowhere")
                raise Failure("moved to nowhere")
            except CommandError as refusal:
                expect("exit code", refusal.code, 4)
        finally:
            self.cluster.link("b", "rate=none")
            self.cluster.remove(pod)
