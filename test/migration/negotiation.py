"""Who takes a pod: two starters agree before anything moves, a no has a reason, and where there is one the name of a node that would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time

from harness import Case, Failure, Suite, expect, wait_for
from migration.cluster import Cluster, CommandError, Migration

CONFIG = "/etc/godwit/godwitd.toml"
# Before the tables of the config, and after them.
SETTINGS = {
    "a": ("", '[groups]\nrack = ["b", "c"]\n'),
    "b": ("most_pods = 2\n", '[groups]\nrack = ["b", "c"]\n'),
    "c": ("guests = true\n", '[groups]\nrack = ["b", "c"]\n'),
}
# Labels are what the authority says of a node.
LABELS = {"b": "zone=x", "c": "secure"}


class Negotiation(Suite):
    name = "negotiation"

    def cases(self):
        names = ("draining", "label", "group", "any", "quota", "owner", "processor", "other-files", "two-movers", "crossing", "drain-empties", "deadline",
                 "dry-run", "promise-is-given-back", "silent-node", "nodes")
        return [Case(name, getattr(self, "_" + name.replace("-", "_")), exclusive=True) for name in names]

    def setup(self):
        self.cluster = Cluster("negotiation")
        self.cluster.up()
        for node, label in LABELS.items():
            token = self.cluster.godwit("a", "pki", "token", "--node", node, "--label", label).stdout.strip()
            self.cluster.godwit(node, "join", "--again", "--token", token)
        for node in SETTINGS:
            self._configure(node)

    def teardown(self):
        self.cluster.down()

    # ---- helpers

    def _configure(self, node: str, *, guests: bool = True) -> None:
        cluster = self.cluster
        if not hasattr(self, "_plain"):
            self._plain = {}
        if node not in self._plain:
            self._plain[node] = cluster.exec(node, "cat", CONFIG).stdout
        before, after = SETTINGS[node]
        text = before.replace("guests = true", f"guests = {str(guests).lower()}") + self._plain[node] + after
        cluster.exec(node, "sh", "-c", f"cat > {CONFIG}", input=text)
        cluster.daemon("stop", node)
        cluster.daemon("start", node)

    def _start(self, pod: str, *options: str, node: str = "a") -> None:
        self.cluster.run(node, pod, ["sh", "-c", "echo ready; exec sleep 1000"], *options)
        self.cluster.wait_logs(pod, "ready\n")

    def _refused(self, pod: str, to: str, *words: str, node: str = "a") -> None:
        try:
            report = self.cluster.migrate(pod, to, node=node)
        except CommandError as refusal:
            for word in words:
                if word not in refusal.text:
                    raise Failure(f"the refusal doesn't say {word!r}: {refusal.text}") from None
            state = self.cluster.pod(pod)
            if state["state"] != "running":
                raise Failure(f"the pod should run on: {state}") from None
            return
        raise Failure(f"not refused, moved: {report}")

    def _on(self, pod: str, *nodes: str) -> str:
        state = self.cluster.pod(pod)
        if state["node"] not in nodes or state["state"] != "running":
            raise Failure(f"it should run on {' or '.join(nodes)}: {state}")
        return state["node"]

    # ---- reasons

    def _draining(self) -> None:
        cluster = self.cluster
        self._start("kept")
        try:
            cluster.godwit("b", "drain", "--only-close")
            self._refused("kept", "b", "b is being emptied", "c would take it")
            if cluster.godwit("b", "run", "--detach", "--", "true", check=False).returncode == 0:
                raise Failure("a node that is being emptied starts a pod")
            # Remembered by the next daemon.
            cluster.daemon("stop", "b")
            cluster.daemon("start", "b")
            self._refused("kept", "b", "b is being emptied")
            cluster.godwit("b", "drain", "--undo")
            cluster.migrate("kept", "b")
            self._on("kept", "b")
        finally:
            cluster.godwit("b", "drain", "--undo")
            cluster.remove("kept")

    def _label(self) -> None:
        cluster = self.cluster
        if cluster.godwit("a", "run", "--detach", "--needs", "secure", "--", "true", check=False).returncode == 0:
            raise Failure("a sensitive pod runs on a node without the label")
        self._start("payroll", "--needs", "secure", node="c")
        try:
            self._refused("payroll", "b", "hasn't the label secure", node="c")
            self._refused("payroll", "any", "hasn't the label secure", node="c")
            self._on("payroll", "c")
        finally:
            cluster.remove("payroll")
        self._start("zoned", "--needs", "zone=x", node="b")
        try:
            self._refused("zoned", "c", "hasn't the label zone=x", node="b")
        finally:
            cluster.remove("zoned")

    def _quota(self) -> None:
        cluster = self.cluster
        pods = [f"quota-{i}" for i in range(3)]
        try:
            for pod in pods:
                self._start(pod)
            for pod in pods[:2]:
                cluster.migrate(pod, "b")
            self._refused(pods[2], "b", "takes 2 pods at most", "c would take it")
        finally:
            for pod in pods:
                cluster.remove(pod)

    def _owner(self) -> None:
        cluster = self.cluster
        self._start("guest")
        self._start("native", node="c")
        try:
            cluster.migrate("native", "a", node="c")
            self._configure("c", guests=False)
            self._refused("guest", "c", "wants no guests", "b would take it")
            cluster.migrate("native", "c")
            self._on("native", "c")
        finally:
            self._configure("c")
            cluster.remove("guest")
            cluster.remove("native")

    # ---- places

    def _group(self) -> None:
        cluster = self.cluster
        self._start("grouped")
        try:
            cluster.migrate("grouped", "rack")
            self._on("grouped", "b", "c")
            cluster.migrate("grouped", "a")
            # The first of the group says no and names the other one.
            cluster.godwit("b", "drain", "--only-close")
            cluster.migrate("grouped", "rack")
            self._on("grouped", "c")
            cluster.migrate("grouped", "a")
            cluster.godwit("c", "drain", "--only-close")
            self._refused("grouped", "rack", "b is being emptied", "c is being emptied")
            # The first of the group is out of reach.
            cluster.godwit("c", "drain", "--undo")
            cluster.daemon("stop", "b")
            cluster.migrate("grouped", "rack")
            self._on("grouped", "c")
        finally:
            cluster.daemon("start", "b")
            for node in "bc":
                cluster.godwit(node, "drain", "--undo")
            cluster.remove("grouped")

    def _any(self) -> None:
        cluster = self.cluster
        self._start("anywhere")
        try:
            report = cluster.migrate("anywhere", "any")
            if self._on("anywhere", "b", "c") != report["destination"]:
                raise Failure(f"the report names another node: {report}")
        finally:
            cluster.remove("anywhere")

    @contextlib.contextmanager
    def _features(self, *nodes: str):
        """Processors of these nodes that can what the others' can't, by what the kernel says there of them."""
        cluster, known = self.cluster, "/proc/cpuinfo"
        try:
            for node in nodes:
                cluster.exec(node, "sh", "-c", f"sed 's/^flags.*/& godwit-one godwit-two/' {known} > /tmp/cpuinfo && mount --bind /tmp/cpuinfo {known}")
                cluster.daemon("stop", node)
                cluster.daemon("start", node)
            yield
        finally:
            for node in nodes:
                cluster.exec(node, "umount", known, check=False)
                cluster.daemon("stop", node)
                cluster.daemon("start", node)

    def _processor(self) -> None:
        """A pod that may have seen what a processor can goes only where another one can the same."""
        cluster = self.cluster
        lacks = "b's processor lacks godwit-one, godwit-two"
        with self._features("a", "c"):
            self._start("demanding")
            try:
                self._refused("demanding", "b", lacks, "c would take it")
                cluster.godwit("c", "drain", "--only-close")
                self._refused("demanding", "rack", lacks, "c is being emptied")
                done = cluster.godwit("a", "migrate", "demanding", "c", check=False)
                if done.returncode == 0 or "would take it" in done.stdout + done.stderr:
                    raise Failure(f"b is named, and can't: {done.stdout}{done.stderr}")
                cluster.godwit("c", "drain", "--undo")
                # The first of the group lacks it: the next one doesn't.
                cluster.migrate("demanding", "rack")
                self._on("demanding", "c")
            finally:
                cluster.godwit("c", "drain", "--undo")
                cluster.remove("demanding")

    def _other_files(self) -> None:
        """That files differ shows only when the migration has begun to speak: the others that may have the pod are asked then."""
        cluster, path = self.cluster, "/etc/godwit-other-files"
        for node, text in (("a", "one"), ("b", "another"), ("c", "one")):
            cluster.exec(node, "sh", "-c", f"echo {text} > {path}")
        cluster.run("a", "picky", ["python3", "-c", f"import mmap, time; file = open('{path}'); kept = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ); print('ready', flush=True); time.sleep(1000)"])
        cluster.wait_logs("picky", "ready\n")
        try:
            self._refused("picky", "b", path)
            cluster.godwit("c", "drain", "--only-close")
            self._refused("picky", "rack", path, "c is being emptied")
            cluster.godwit("c", "drain", "--undo")
            dry = cluster.godwit("a", "migrate", "--dry-run", "--json", "picky", "rack")
            if json.loads(dry.stdout)["destination"] != "c":
                raise Failure(f"a dry run stops at b: {dry.stdout}")
            report = cluster.migrate("picky", "rack")
            self._on("picky", "c")
            if report["destination"] != "c" or report.get("refusals"):
                raise Failure(f"the report isn't about c: {report}")
        finally:
            cluster.godwit("c", "drain", "--undo")
            cluster.remove("picky")

    # ---- requests that cross

    def _two_movers(self) -> None:
        cluster = self.cluster
        self._start("wanted-twice")
        try:
            moves = [Migration(cluster, "wanted-twice", to, "precopy") for to in ("b", "c")]
            ends = [move.finish() for move in moves]
            good = [end for end in ends if "error" not in end]
            if not good:
                raise Failure(f"neither mover had it: {ends}")
            # The second may have come when the first was done, and then moved it on.
            place = self._on("wanted-twice", "b", "c")
            if len(good) == 1 and good[0]["report"]["destination"] != place:
                raise Failure(f"it is on {place}, and the one that succeeded says {good[0]['report']['destination']}")
        finally:
            cluster.remove("wanted-twice")

    def _crossing(self) -> None:
        cluster = self.cluster
        self._start("goes")
        self._start("comes", node="c")
        try:
            ways = [("goes", "a", "c"), ("comes", "c", "a")]
            for _ in range(5):
                moves = [Migration(cluster, pod, to, "precopy", node=there) for pod, there, to in ways]
                for move, (pod, _there, to) in zip(moves, ways):
                    last = move.finish()
                    if "error" in last:
                        raise Failure(f"{pod} to {to}: {json.dumps(last['error'])}")
                    self._on(pod, to)
                ways = [(pod, to, there) for pod, there, to in ways]
        finally:
            cluster.remove("goes")
            cluster.remove("comes")

    # ---- the operator

    def _drain_empties(self) -> None:
        cluster = self.cluster
        pods = [f"drained-{i}" for i in range(3)]
        try:
            for pod in pods:
                self._start(pod)
            done = json.loads(cluster.godwit("a", "drain", "--json").stdout)
            if [move["moved"] for move in done["moves"]] != [True] * len(done["moves"]) or len(done["moves"]) < len(pods):
                raise Failure(f"not all moved: {done}")
            for pod in pods:
                self._on(pod, "b", "c")
        finally:
            cluster.godwit("a", "drain", "--undo")
            for pod in pods:
                cluster.remove(pod)

    def _deadline(self) -> None:
        cluster = self.cluster
        cluster.run("a", "large", ["python3", "-c", "import os, time; waste = os.urandom(64 << 20); print('ready', flush=True); time.sleep(1000)"])
        cluster.wait_logs("large", "ready\n")
        try:
            cluster.link("b", "rate=100mbit")
            done = cluster.godwit("a", "migrate", "--deadline", "1", "large", "b", check=False)
            if done.returncode != 6 or "deadline" not in done.stderr:
                raise Failure(f"exit code {done.returncode}: {done.stderr}")
            self._on("large", "a")
            cluster.link("b", "rate=none")
            cluster.migrate("large", "b")
            self._on("large", "b")
        finally:
            cluster.link("b", "rate=none")
            cluster.remove("large")

    def _dry_run(self) -> None:
        cluster = self.cluster
        self._start("asked")
        try:
            cluster.godwit("b", "drain", "--only-close")
            done = cluster.godwit("a", "migrate", "--dry-run", "--json", "asked", "b", check=False)
            if done.returncode != 3 or "b is being emptied" not in done.stdout:
                raise Failure(f"exit code {done.returncode}: {done.stdout}{done.stderr}")
            self._on("asked", "a")
        finally:
            cluster.godwit("b", "drain", "--undo")
            cluster.remove("asked")

    def _promise_is_given_back(self) -> None:
        """A node that takes two pods at most promises a place to a move that then doesn't begin: the next one has it at once."""
        cluster = self.cluster
        pods = ["first", "refused", "second"]
        try:
            self._start("first")
            cluster.migrate("first", "b")
            cluster.run("a", "refused", ["python3", "-c", "import ctypes, time; ctypes.CDLL(None).inotify_init1(0); print('ready', flush=True); time.sleep(1000)"])
            cluster.wait_logs("refused", "ready\n")
            self._start("second")
            self._refused("refused", "b", "inotify")
            begin = time.monotonic()
            cluster.migrate("second", "b")
            if time.monotonic() - begin > 9:
                raise Failure("the place was only free when the promise had run out")
        finally:
            for pod in pods:
                cluster.remove(pod)

    def _nodes(self) -> None:
        """Any node tells the labels, the load and the pods of the others."""
        cluster = self.cluster
        self._start("counted", node="b")
        try:
            for asked in cluster.nodes:
                about = lambda: {one["name"]: one for one in json.loads(cluster.godwit(asked, "nodes", "--json").stdout)}  # noqa: B023, E731
                expect("labels", {name: one["labels"] for name, one in about().items()}, {"a": {}, "b": {"zone": "x"}, "c": {"secure": ""}})
                # All nodes are this machine here. Each says it anew every 3 s.
                wait_for(f"the load of all nodes on {asked}", lambda: all(abs(one["load"] - os.getloadavg()[0]) < 0.5 for one in about().values()), 20, step=0.3)
                wait_for(f"b's pod on {asked}", lambda: {name: one["pods"] for name, one in about().items()} == {"a": 0, "b": 1, "c": 0}, 10, step=0.3)
                header, *rows = [re.split(r"  +", line) for line in cluster.godwit(asked, "nodes").stdout.splitlines()]
                shown = {row[0]: row[header.index("LABELS")] for row in rows}
                expect("the labels in the table", shown, {"a": "-", "b": "zone=x", "c": "secure"})
        finally:
            cluster.remove("counted")

    def _silent_node(self) -> None:
        """A daemon that says nothing is asked for five seconds and more, but not beyond the move's end."""
        cluster = self.cluster
        self._start("waits")
        daemon = next(host["daemon"]["pid"] for host in cluster.status()["hosts"] if host["name"] == "b")
        os.kill(daemon, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            done = cluster.godwit("a", "migrate", "--deadline", "1", "waits", "b", check=False)
            if done.returncode != 6 or time.monotonic() - begin > 3.5:
                raise Failure(f"exit code {done.returncode} after {time.monotonic() - begin:.1f} s: {done.stderr}")
            move = Migration(cluster, "waits", "b", "precopy")
            time.sleep(0.5)
            begin = time.monotonic()
            cluster.godwit("a", "migrate", "--cancel", "waits")
            last = move.finish()
            if last.get("error", {}).get("kind") != "cancelled" or time.monotonic() - begin > 2.5:
                raise Failure(f"over {time.monotonic() - begin:.1f} s after it was cancelled: {last}")
            self._on("waits", "a")
        finally:
            os.kill(daemon, signal.SIGCONT)
            cluster.remove("waits")
