"""Every tracee, moved there and back with every strategy, and looked at from outside before and after."""

from __future__ import annotations

import json
import subprocess

import local
from harness import BUILD, Case, Failure, Skip, Suite, wait_for
from migration import proc
from migration.cluster import STRATEGIES, Cluster, CommandError

ECHO = """
import socket, threading
listener = socket.create_server(("0.0.0.0", 7000), backlog=256)
def serve(connection):
    with connection:
        try:
            while data := connection.recv(65536): connection.sendall(data)
        except OSError: pass
print("serving", flush=True)
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


class Moved(Suite):
    name = "moved"
    jobs = 2

    def cases(self):
        pairs = [("a", "b"), ("b", "c"), ("c", "a")]
        found = []
        for number, tracee in enumerate(local.tracees()):
            for offset, strategy in enumerate(STRATEGIES):
                source, destination = pairs[(number + offset) % 3]
                found.append(Case(f"{tracee}/{strategy}", lambda t=tracee, s=strategy, a=source, b=destination: self._move(t, s, a, b)))
        return found

    def setup(self):
        self.cluster = Cluster("tracees")
        self.cluster.up()
        for tracee in local.tracees():
            if self.cluster.exec("a", "test", "-x", BUILD / "tracees" / tracee, check=False).returncode != 0:
                self.cluster.provide(BUILD / "tracees" / tracee)
        words = self.cluster.exec_words("client", "python3", "-c", ECHO)
        self.echo = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.echo.stdout.readline()
        client = next(host for host in self.cluster.status()["hosts"] if host["name"] == "client")
        self.peer = [client["address"], "7000"]

    def teardown(self):
        if hasattr(self, "echo"):
            self.echo.terminate()
            self.echo.wait(10)
        self.cluster.down()

    def _move(self, tracee: str, strategy: str, source: str, destination: str) -> dict:
        cluster, pod = self.cluster, f"{tracee.replace('_', '-')}-{strategy}"
        varies = local.trait(tracee, "varies")
        words = [BUILD / "tracees" / tracee, *(self.peer if local.trait(tracee, "peer") else [])]
        reports = []
        try:
            cluster.run(source, pod, words)
            cluster.wait_logs(pod, "ready\n", source)
            for here, there in ((source, destination), (destination, source)):
                before = self._look_at_rest(pod, varies)
                try:
                    reports.append(cluster.migrate(pod, there, strategy, node=here))
                except CommandError as refusal:
                    self._may_be_refused(tracee, pod, here, refusal)
                cluster.drained(pod, there)
                self._compare(pod, before, varies, f"{here} to {there}")
                self._content(pod, there)
            self._finish(pod, source)
        except Failure as failure:
            dead = cluster.heal()
            note = f"\ngodwitd died on {', '.join(dead)}:\n" + "\n".join(cluster.daemon_log(node) for node in dead) if dead else ""
            said = cluster.godwit(source, "logs", pod, check=False).stdout[-1000:]
            raise Failure(f"{failure}\n(the program said {said!r}){note}") from None
        finally:
            cluster.remove(pod)
        return {"freeze_us": [report["freeze_us"] for report in reports]}

    def _finish(self, pod: str, node: str) -> None:
        """Tells the program to check itself and end."""
        self.cluster.signal(pod, "TERM", node)
        code = self.cluster.wait_exit(pod)
        output = self.cluster.logs(pod, node)
        if code != 0 or output != "ready\nok\n":
            raise Failure(f"exit code {code}, output {output[-1000:]!r}")

    def _may_be_refused(self, tracee: str, pod: str, node: str, refusal: CommandError) -> None:
        """For what is not supported: it has to be refused by name and to be content where it is."""
        words = " ".join(local.trait(tracee, "may-refuse"))
        if not words or refusal.code != 3 or words not in refusal.text:
            raise refusal
        self._content(pod, node)
        self._finish(pod, node)
        raise Skip(f"refused by name: {refusal.text.splitlines()[-1].strip()}")

    def _look(self, pod: str) -> dict:
        return proc.snapshot(self.cluster.processes(pod))

    def _look_at_rest(self, pod: str, varies: list[str]) -> dict:
        """What a second look sees as well: the first may meet the program within a signal's handler."""
        before = self._look(pod)
        for _ in range(20):
            now = self._look(pod)
            if not proc.differences(before, now, varies):
                break
            before = now
        return before

    def _compare(self, pod: str, before: dict, varies: list[str], way: str) -> None:
        # Something may just be under way in the program: it has to settle to what it was.
        found = [""]

        def same():
            found[:] = proc.differences(before, self._look(pod), varies)
            return not found

        try:
            wait_for("/proc to be as before", same, 1, step=0.1)
        except Failure:
            raise Failure(f"{way}: /proc is not what it was\n" + "\n".join(found[:40])) from None
        if problems := proc.not_at_rest(self.cluster.processes(pod)):
            raise Failure(f"{way}: the pod still pays\n" + "\n".join(problems))

    def _content(self, pod: str, node: str) -> None:
        state = self.cluster.pod(pod)
        if state["state"] != "running" or state["node"] != node:
            raise Failure(f"{pod} should run on {node}: {json.dumps(state)}")
