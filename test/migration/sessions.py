"""Whoever follows a pod by command stays with it when it moves: waiting, reading its output, typing at its terminal."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time

from daemons import Terminal
from harness import Case, Failure, Process, Suite, expect, wait_for
from migration.cluster import Cluster, CommandError

STRATEGIES = ("precopy", "postcopy", "hybrid", "freeze", "eager-dirty", "auto")


class Sessions(Suite):
    name = "sessions"

    def cases(self):
        return [Case("logs_wait_and_run", self._output), Case("input", self._input), Case("terminal", self._terminal),
                Case("commands_meanwhile", self._meanwhile), Case("interrupted", self._interrupted), Case("daemons_killed", self._killed), Case("followers_outlive_daemons", self._followers), Case("input_ended", self._input_ended),
                Case("exec_output", self._exec_output), Case("exec_input", self._exec_input), Case("exec_both_ways", self._exec_both_ways), Case("exec_terminal", self._exec_terminal),
                Case("exec_daemons_killed", self._exec_killed), Case("exec_ends_on_its_way", self._exec_ends), Case("exec_hangs_up", self._exec_hangs_up)]

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

    def _fed(self, pod: str, words: list, code: int) -> None:
        """Lines go into a program that repeats them and says when there are no more, while its pod goes around: all of them come back."""
        sent, moved = [], threading.Event()
        with open(self.directory / pod, "wb") as output:
            run = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)

        def feed():
            while not moved.is_set():
                line = f"line {len(sent)} {'x' * (len(sent) % 500)}."
                run.stdin.write(line.encode() + b"\n")
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
            expect("exit code", run.wait(30), code)
            got, wanted = (self.directory / pod).read_text().splitlines(), [*sent, "the end"]
            for number, (one, other) in enumerate(zip(got, wanted)):
                if one != other:
                    raise Failure(f"line {number} of {len(wanted)} is {one[:60]!r} instead of {other[:60]!r}")
            expect("lines", len(got), len(wanted))
        finally:
            moved.set()
            run.kill()
            run.wait()
            self.cluster.remove(pod)

    def _input(self):
        program = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)\nprint('the end', flush=True)"
        self._fed("eater", self.cluster.exec_words("a", "godwit", "run", "-i", "--name", "eater", "--", "python3", "-c", program), 0)

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

    def _followers(self):
        """`logs --follow` and `wait` go on with the next daemon, from where they were."""
        pod = "followed"
        self.cluster.run("b", pod, ["python3", "-c", "import time\nn = 0\nwhile True:\n n += 1\n print(n, flush=True)\n time.sleep(0.002)"])
        logs, wait = self._start("logs", "a", "logs", "-f", pod), self._start("wait", "a", "wait", pod)
        try:
            logs.wait_output("\n5\n")
            for action, victim in (("kill", "a"), ("kill", "b"), ("stop", "a")):
                self.cluster.daemon(action, victim)
                time.sleep(0.5)
                self.cluster.daemon("start", victim)
                seen = len(logs.output().splitlines())
                wait_for("more output", lambda: len(logs.output().splitlines()) > seen + 20)
            self.cluster.signal(pod, "TERM", node="b")
            expect("exit code of wait", wait.wait(), 143)
            expect("exit code of logs", logs.wait(), 0)
            lines = (self.directory / "logs").read_text().split()
            expect("the output", lines, [str(number + 1) for number in range(len(lines))])
        finally:
            logs.end()
            wait.end()
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
            self._left_nothing("c", pod)
            expect("it runs", self.cluster.godwit("a", "exec", pod, "--", "echo", "here").stdout, "here\n")
            try:
                self.cluster.migrate(pod, "nowhere")
                raise Failure("moved to nowhere")
            except CommandError as refusal:
                expect("exit code", refusal.code, 4)
            moving = threading.Thread(target=cancelled_move)
            moving.start()
            wait_for("the migration", lambda: self.cluster.pod(pod)["state"] == "leaving", step=0.005)
            self.cluster.godwit("c", "rm", "--force", pod)
            moving.join(60)
            expect("what is removed doesn't arrive first", cancelled, [(1, False)] * 2)
            expect("the pods", [name for name in self.cluster.pods() if name == pod], [])
        finally:
            self.cluster.link("b", "rate=none")
            self.cluster.remove(pod)

    def _left_nothing(self, node: str, pod: str) -> None:
        wait_for(f"nothing of {pod} to be left on {node}: {self.cluster.traces(node, pod)}", lambda: not self.cluster.traces(node, pod), 10, step=0.1)
        if not self.cluster.alone(pod):
            raise Failure(f"{pod} runs twice, or not at all")

    def _interrupted(self):
        """Ctrl-C of `migrate` cancels the move: the pod runs on where it was, the other node keeps neither anything of it nor a place for it."""
        pod, config = "recalled", "/etc/godwit/godwitd.toml"
        program = ("import os, time\nwaste = bytearray(os.urandom(1 << 20)) * 100\nn = 0\nwhile True:\n n += 1\n waste[n * 4096 % len(waste)] = n % 256\n"
                   " print(n, flush=True)\n time.sleep(0.002)")
        plain = self.cluster.exec("c", "cat", config).stdout

        def configure(text: str) -> None:
            self.cluster.exec("c", "sh", "-c", f"cat > {config}", input=text)
            self.cluster.daemon("stop", "c")
            self.cluster.daemon("start", "c")

        try:
            # With a place that is kept for a move that isn't, the next one has none.
            configure("most_pods = 1\n" + plain)
            self.cluster.run("a", pod, ["python3", "-c", program])
            self.cluster.wait_logs(pod, "5\n")
            self.cluster.link("c", "rate=100mbit")
            for number in (signal.SIGINT, signal.SIGTERM):
                move = self._start("move", "a", "migrate", pod, "c", "--strategy", "precopy")
                move.wait_output("precopy round 1")
                wait_for("the copy on c", lambda: self.cluster.traces("c", pod), step=0.05)
                move.signal(number)
                expect("exit code", move.wait(), 1)
                said = move.output()
                if "asking for the migration to be cancelled" not in said or "cancelled" not in said.split("to be cancelled")[-1]:
                    raise Failure(f"the command doesn't say that it was cancelled: {said}")
                state = self.cluster.pod(pod)
                expect("where, and how it is", (state["node"], state["state"]), ("a", "running"))
                seen = len(self.cluster.logs(pod).splitlines())
                wait_for("the pod to go on", lambda: len(self.cluster.logs(pod).splitlines()) > seen + 20)
                self._left_nothing("c", pod)
                history = lambda: json.loads(self.cluster.godwit("b", "history", pod, "--limit", "1", "--json").stdout)  # noqa: E731
                wait_for("the history", lambda: [move["outcome"] for move in history()] == ["cancelled"])
            self.cluster.link("c", "rate=none")
            begin = time.monotonic()
            self.cluster.migrate(pod, "c", "precopy")
            if (took := time.monotonic() - begin) > 9:
                raise Failure(f"the next move took {took:.1f} s: as long as a promise lasts")
            expect("node", self.cluster.pod(pod)["node"], "c")
            numbers = self.cluster.logs(pod).split()
            expect("its output", numbers, [str(number + 1) for number in range(len(numbers))])
        finally:
            self.cluster.link("c", "rate=none")
            self.cluster.remove(pod)
            configure(plain)

    def _input_ended(self):
        """The end of the input is the same wherever it is read."""
        pod = "late-reader"
        program = "import sys, time\nwhile not sys.argv[1:] and not __import__('os').path.exists('/read'): time.sleep(0.01)\nprint(sys.stdin.read() + 'the end', flush=True)"
        words = self.cluster.exec_words("a", "godwit", "run", "-i", "--name", pod, "--", "python3", "-c", program)
        with open(self.directory / "late", "wb") as output:
            run = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for(pod, lambda: pod in self.cluster.pods())
            run.stdin.write(b"some, and ")
            run.stdin.close()
            self._round(pod, ("precopy", "postcopy"))
            # The pod may end before anybody hears how this did.
            self.cluster.godwit("c", "exec", pod, "--", "touch", "/read", check=False)
            expect("exit code", run.wait(30), 0)
            expect("what it read", (self.directory / "late").read_text(), "some, and the end\n")
        finally:
            run.kill()
            run.wait()
            self.cluster.remove(pod)

    def _exec_output(self):
        """What a program beside the first writes comes once, all of it, wherever its pod goes; much of it as well."""
        pod = "beside"
        self.cluster.run("a", pod, ["sleep", "1000"])
        program = "import time\nn = 0\nwhile True:\n n += 1\n print(n, flush=True)\n time.sleep(0.002)"
        torrent = "import hashlib, sys\nn = 0\nfor n in range(400000): print(n)\nsys.exit(5)"
        counters = {node: self._start(f"exec.{node}", node, "exec", pod, "--", "python3", "-c", program) for node in "ac"}
        flood = None
        try:
            for counter in counters.values():
                counter.wait_output("\n5\n")
            flood = self._start("flood", "b", "exec", pod, "--", "python3", "-c", torrent)
            self._round(pod)
            expect("exit code of much output", flood.wait(), 5)
            expect("much output", (self.directory / "flood").read_text().split(), [str(number) for number in range(400000)])
            seen = {node: len(counter.output().splitlines()) for node, counter in counters.items()}
            for node, counter in counters.items():
                wait_for("more output", lambda: len(counter.output().splitlines()) > seen[node] + 20)
            self.cluster.signal(pod, "TERM", node="b")
            for node, counter in counters.items():
                expect("exit code", counter.wait(), 137)
                lines = (self.directory / f"exec.{node}").read_text().split()
                expect(f"the output seen from {node}", lines, [str(number + 1) for number in range(len(lines))])
        finally:
            for process in (*counters.values(), *([flood] if flood else [])):
                process.end()
            self.cluster.remove(pod)

    def _exec_input(self):
        self.cluster.run("a", "pipeline", ["sleep", "1000"])
        self._fed("pipeline", self.cluster.exec_words("c", "godwit", "exec", "-i", "pipeline", "--", "sh", "-c", "cat; echo the end; exit 3"), 3)

    def _exec_both_ways(self):
        """Much of it in both directions at once: neither waits for the other."""
        pod = "echo"
        self.cluster.run("a", pod, ["sleep", "1000"])
        text = "".join(f"{number}\n" for number in range(1_000_000))
        try:
            for node, to in zip("abcab", "bcabc"):
                if self.cluster.exec(node, "godwit", "exec", "-i", pod, "--", "cat", input=text).stdout != text:
                    raise Failure(f"what came back on {node} isn't what was sent")
                self.cluster.migrate(pod, to)
        finally:
            self.cluster.remove(pod)

    def _exec_shell(self, pod: str, node: str = "a") -> Terminal:
        words = self.cluster.exec_words(node, "godwit", "exec", "-it", pod, "--", "bash", "--norc")
        return Terminal(words, os.environ | {"TERM": "xterm"}, 33, 101)

    def _exec_terminal(self):
        """Two terminals beside the first program, asked for on different nodes, each with its own state."""
        pod = "two-shells"
        self.cluster.run("a", pod, ["sleep", "1000"])
        shells = {node: self._exec_shell(pod, node) for node in "ac"}
        try:
            for node, shell in shells.items():
                shell.type(f"X=5; exec 9</dev/tty; echo ready-{node}$((1+1))\n")
                shell.until(f"ready-{node}2")
            for number, strategy in enumerate(STRATEGIES):
                for to in "bca":
                    self.cluster.migrate(pod, to, strategy)
                    for node, shell in shells.items():
                        shell.type(f"echo here-{to}{node}-$((X+{number}))\n")
                        shell.until(f"here-{to}{node}-{5 + number}")
                for node, shell in shells.items():
                    shell.resize(20 + number, 70)
                    shell.type(f"while [ \"$(stty size)\" != '{20 + number} 70' ]; do :; done; echo resized-$((X+{number}))\n")
                    shell.until(f"resized-{5 + number}")
            # Each has its own terminal behind /dev/tty.
            for node, shell in shells.items():
                shell.type("echo asked-$((1+1)); read -u 9 line; echo got-$line\n")
                shell.until("asked-2")
                shell.type(f"for-{node}\n")
                shell.until(f"got-for-{node}")
                shell.type("exit 9\n")
                expect("exit code", shell.finish(), 9)
        finally:
            self.cluster.remove(pod)

    def _exec_killed(self):
        """As daemons_killed, of a program beside the first."""
        pod = "beside-survivor"
        self.cluster.run("a", pod, ["sleep", "1000"])
        shell = self._exec_shell(pod)
        try:
            shell.type("N=0; count() { N=$((N+1)); echo counted-$N; }; echo ready-$((1+1))\n")
            shell.until("ready-2")
            number = 0
            for here in "ab":
                if self.cluster.pod(pod)["node"] != here:
                    self.cluster.migrate(pod, here)
                for victim in "ab":
                    self.cluster.daemon("kill", victim)
                    shell.type("count\n")
                    self.cluster.daemon("start", victim)
                    number += 1
                    shell.until(f"counted-{number}")
            # One that ends as it should doesn't take the program for forsaken either.
            self.cluster.daemon("stop", "a")
            self.cluster.daemon("start", "a")
            shell.type("count\n")
            shell.until(f"counted-{number + 1}")
            shell.type("exit $N\n")
            expect("exit code", shell.finish(), number + 1)
        finally:
            self.cluster.remove(pod)

    def _exec_ends(self):
        """How it ended, and its last words, come from wherever its pod is by then."""
        pod = "short-lived"
        self.cluster.run("a", pod, ["sleep", "1000"])
        try:
            for round_number, to in enumerate("bcabca"):
                program = f"i=0; while [ $i -lt {20 + 15 * round_number} ]; do i=$((i+1)); sleep 0.01; done; echo last words; exit {round_number}"
                ending = [self._start(f"ending.{n}", "abc"[n], "exec", pod, "--", "sh", "-c", program) for n in range(3)]
                self.cluster.migrate(pod, to, STRATEGIES[round_number])
                for process in ending:
                    expect("exit code", process.wait(), round_number)
                    expect("output", process.output(), "last words\n")
            expect("processes in it", self.cluster.pod(pod)["processes"], 1)
        finally:
            self.cluster.remove(pod)

    def _exec_hangs_up(self):
        """When whoever has started it is gone, so is the program, wherever that is."""
        pod = "forsaken"
        self.cluster.run("a", pod, ["sleep", "1000"])
        program = "trap 'echo hup >> /said; exit' HUP; echo ready; while :; do sleep 0.05; done"
        processes = lambda: self.cluster.pod(pod)["processes"]  # noqa: E731
        said = lambda: self.cluster.godwit("c", "exec", pod, "--", "sh", "-c", "cat /said 2>/dev/null | wc -l").stdout.strip()  # noqa: E731
        try:
            for number, to in enumerate("bc"):
                words = self.cluster.exec_words("a", "godwit", "exec", "-it", pod, "--", "bash", "-c", program)
                client = Terminal(words, os.environ | {"TERM": "xterm"}, 24, 80)
                client.until("ready")
                self.cluster.migrate(pod, to)
                client.kill()
                wait_for("the end of what it has started", lambda: processes() == 1)
                expect("hang-ups", said(), str(number + 1))
            # Its client and the daemon that it had asked die together: the pod's own notices.
            words = self.cluster.exec_words("a", "godwit", "exec", "-it", pod, "--", "bash", "-c", program)
            client = Terminal(words, os.environ | {"TERM": "xterm"}, 24, 80)
            client.until("ready")
            self.cluster.daemon("kill", "a")
            client.kill()
            self.cluster.daemon("start", "a")
            wait_for("the end of what nobody reads", lambda: processes() == 1, seconds=60)
            expect("hang-ups", said(), "3")
        finally:
            self.cluster.remove(pod)
