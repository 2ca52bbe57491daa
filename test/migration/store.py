"""The store as a cluster of etcd: moves while members die, and what still works without it; and what is left of SQLite's after a kill."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import time

from harness import Case, Failure, Suite, wait_for
from migration.cluster import Cluster

# Counts for ever; a number that is missing, or there twice, is a process that was lost or ran twice.
COUNTER = ["python3", "-u", "-c", "import time\ni = 0\nwhile True:\n    i += 1\n    print(i)\n    time.sleep(0.02)"]
STORE_NET = "10.66.1.0/24"  # where the playground's members of etcd are, and nothing else
AWAY = 7


class Store(Suite):
    name = "store"

    def cases(self):
        names = ("moves", "one-member-killed", "two-members-killed", "cut-off-from-the-store", "node-away", "watch", "sqlite-killed")
        return [Case(name, getattr(self, "_" + name.replace("-", "_")), exclusive=True) for name in names]

    def setup(self):
        self.cluster = Cluster("store", options=("--store", "etcd"))
        self.cluster.up()

    def teardown(self):
        self.cluster.down()

    # ---- helpers

    def _members(self, action: str, *nodes: str) -> None:
        for node in nodes:
            self.cluster.playground("store", action, node)

    @contextlib.contextmanager
    def _counting(self, pod: str, node: str = "a", cluster: Cluster | None = None):
        cluster = cluster or self.cluster
        cluster.run(node, pod, COUNTER)
        try:
            cluster.wait_logs(pod, "5\n", node)
            yield pod
        finally:
            cluster.remove(pod)

    def _counts(self, pod: str, node: str, cluster: Cluster | None = None) -> None:
        """It goes on counting on that node, and has left no number out."""
        logs = lambda: (cluster or self.cluster).logs(pod, node)  # noqa: E731
        before = len(logs().splitlines())
        wait_for(f"{pod} to go on counting", lambda: len(logs().splitlines()) > before + 5, 20)
        numbers = [int(line) for line in logs().splitlines()]
        if numbers != list(range(1, len(numbers) + 1)):
            raise Failure(f"{pod} has lost or repeated something: {numbers[:5]} … {numbers[-5:]}, {len(numbers)} in all")

    def _history(self, pod: str, node: str = "a", cluster: Cluster | None = None) -> list[dict]:
        return json.loads((cluster or self.cluster).godwit(node, "history", pod, "--json").stdout)

    def _wait_history(self, pod: str, outcomes: list[str], node: str = "a", cluster: Cluster | None = None) -> list[dict]:
        """Written when a move is over, by a thread of its own: the newest first."""
        found: list[dict] = []

        def there():
            found[:] = self._history(pod, node, cluster)
            return [move["outcome"] for move in found] == outcomes

        try:
            wait_for("the history", there, 20, step=0.1)
        except Failure:
            raise Failure(f"the history of {pod} has {[move['outcome'] for move in found]} instead of {outcomes}") from None
        return found

    def _nodes(self, node: str) -> dict[str, dict]:
        done = self.cluster.godwit(node, "nodes", "--json", check=False)
        return {one["name"]: one for one in json.loads(done.stdout)}

    def _wait_store(self) -> None:
        for node in self.cluster.nodes:
            wait_for(f"the store to answer on {node}", lambda node=node: self.cluster.godwit(node, "history", check=False).returncode == 0, 60, step=0.2)

    def _fails(self, code: int, *words: str, node: str = "a", says: str) -> None:
        done = self.cluster.godwit(node, *words, check=False, seconds=60)
        if done.returncode != code or says not in done.stderr:
            raise Failure(f"godwit {' '.join(words)}: exit code {done.returncode} instead of {code}, or without {says!r}: {done.stderr[-2000:]}")

    # ---- cases

    def _moves(self) -> None:
        cluster = self.cluster
        with self._counting("counter") as pod:
            reports = [cluster.migrate(pod, to, strategy, node=here) for here, to, strategy in
                       (("a", "b", "precopy"), ("b", "c", "postcopy"), ("c", "a", "freeze"))]
            self._counts(pod, "a")
            for node in cluster.nodes:
                moves = self._wait_history(pod, ["moved"] * 3, node)
                ways = [(move["source"], move["destination"], move["strategy"]) for move in moves]
                if ways != [("c", "a", "freeze"), ("b", "c", "postcopy"), ("a", "b", "precopy")]:
                    raise Failure(f"the history on {node} has {ways}")
                whole = json.loads(cluster.godwit(node, "history", "--show", moves[2]["id"][:12], "--json").stdout)
                if whole["phases"] != reports[0]["phases"] or whole["freeze_us"] != reports[0]["freeze_us"]:
                    raise Failure(f"another report than the move's own: {whole}")
            if len(json.loads(cluster.godwit("a", "history", pod, "--limit", "1", "--json").stdout)) != 1:
                raise Failure("--limit 1 gives more than one")
            self._fails(4, "history", "--show", "ffffffffffffffff0", says="no move")

    def _one_member_killed(self) -> None:
        cluster = self.cluster
        with self._counting("survivor") as pod:
            for dead, here, to in (("a", "a", "b"), ("b", "b", "c"), ("c", "c", "a")):
                self._members("kill", dead)
                try:
                    cluster.migrate(pod, to, "precopy", node=here)
                    self._counts(pod, to)
                finally:
                    self._members("start", dead)
                    self._wait_store()
            self._wait_history(pod, ["moved"] * 3)

    def _two_members_killed(self) -> None:
        cluster = self.cluster
        with self._counting("stays") as pod, self._counting("elsewhere", "b"):
            self._members("kill", "b", "c")
            try:
                self._fails(5, "migrate", pod, "b", says="etcd")
                self._fails(125, "run", "--", "true", says="etcd")
                for node in cluster.nodes:
                    done = cluster.godwit(node, "ps", "--json", check=False)
                    pods = {one["name"]: one for one in json.loads(done.stdout)}
                    if done.returncode != AWAY or "etcd" not in done.stderr:
                        raise Failure(f"ps on {node}: exit code {done.returncode}: {done.stderr}")
                    if {name: (one["node"], one["state"], one["store"]) for name, one in pods.items()} != {
                            "stays": ("a", "running", "away"), "elsewhere": ("b", "running", "away")}:
                        raise Failure(f"ps on {node}: {pods}")
                done = cluster.godwit("a", "nodes", "--json", check=False)
                states = {one["name"]: one["state"] for one in json.loads(done.stdout)}
                if done.returncode != AWAY or states != dict.fromkeys(cluster.nodes, "ok"):
                    raise Failure(f"nodes: exit code {done.returncode}: {states}")
                self._fails(5, "history", says="etcd")
                # All that runs goes on running, and is at hand.
                self._counts(pod, "a")
                self._counts("elsewhere", "b")
                cluster.godwit("a", "exec", pod, "--", "true")
                self._members("start", "b")
                self._wait_store()
                cluster.migrate(pod, "b", "precopy")
                self._counts(pod, "b")
                # What the store couldn't be told then it was told later.
                moves = self._wait_history(pod, ["moved", "failed"], "c")
                if "etcd" not in moves[1]["error"]:
                    raise Failure(f"the failed move doesn't say why: {moves[1]}")
            finally:
                self._members("start", "b", "c")
                self._wait_store()

    def _cut_off_from_the_store(self) -> None:
        """A node that can't ask its store takes no pod, and whoever asks is told so."""
        cluster = self.cluster
        with self._counting("wanted") as pod:
            cluster.exec("c", "ip", "route", "add", "blackhole", STORE_NET)
            try:
                self._fails(5, "migrate", pod, "c", says="c can't ask its store")
                self._counts(pod, "a")
                self._fails(5, "migrate", "--dry-run", pod, "c", says="c can't ask its store")
                cluster.migrate(pod, "b", "precopy")
                self._counts(pod, "b")
                # Its lease runs out; it answers all the same, and says what it lacks.
                wait_for("c to be without the store", lambda: self._nodes("a")["c"].get("store_state") == "away", 40, step=0.3)
            finally:
                cluster.exec("c", "ip", "route", "del", "blackhole", STORE_NET)
            self._wait_store()
            cluster.migrate(pod, "c", "precopy", node="b")
            self._counts(pod, "c")

    def _node_away(self) -> None:
        cluster = self.cluster
        with self._counting("left", "c") as pod:
            self._fails(3, "nodes", "--forget", "c", says="is there")
            cluster.daemon("stop", "c")
            try:
                for node in "ab":
                    away = self._nodes(node)["c"]
                    if away["state"] != "away" or not away["seen_ms"] or not away["kernel"]:
                        raise Failure(f"node c, stopped, as {node} sees it: {away}")
                    state = cluster.pods(node)[pod]["state"]
                    if state != "away":
                        raise Failure(f"the pod of a node that is away is {state} on {node}")
                shown = cluster.godwit("b", "nodes").stdout
                if "away since " not in shown:
                    raise Failure(f"nodes doesn't say since when: {shown}")
                cluster.godwit("b", "nodes", "--forget", "c")
                if self._nodes("a")["c"]["state"] != "unreachable":
                    raise Failure("a forgotten node that stands in the config should be asked, and be unreachable")
                self._fails(4, "nodes", "--forget", "c", says="is registered")
            finally:
                cluster.daemon("start", "c")
            wait_for("c to be back", lambda: self._nodes("a")["c"]["state"] == "ok" and cluster.pods("a")[pod]["state"] == "running", 20)
            self._counts(pod, "c")
            # Killed it says nothing: its lease does.
            cluster.daemon("kill", "c")
            try:
                wait_for("the lease to be over", lambda: self._nodes("a")["c"]["state"] == "away", 40, step=0.3)
            finally:
                cluster.daemon("start", "c")
            wait_for("c to be back", lambda: self._nodes("a")["c"]["state"] == "ok", 20)

    def _watch(self) -> None:
        cluster = self.cluster
        with self._counting("watched") as pod:
            watch = subprocess.Popen(cluster.exec_words("c", "godwit", "ps", "--watch", "--json"), stdout=subprocess.PIPE, bufsize=0)
            try:
                places = []

                def until(node: str) -> None:
                    end = time.monotonic() + 30
                    while not places or places[-1] != node:
                        if not select.select([watch.stdout], [], [], max(0, end - time.monotonic()))[0]:
                            raise Failure(f"{pod} was not seen on {node}, but on {places}")
                        seen = {one["name"]: one["node"] for one in json.loads(watch.stdout.readline())}
                        places.append(seen.get(pod))

                until("a")
                cluster.migrate(pod, "b", "precopy")
                until("b")
            finally:
                watch.terminate()
                watch.wait(20)

    def _sqlite_killed(self) -> None:
        """The node that has the store in a file is killed: records, nodes and history are there when it is back."""
        cluster = Cluster("store-sqlite", nodes=2)
        cluster.up()
        try:
            with self._counting("kept", cluster=cluster) as pod:
                cluster.migrate(pod, "b", "precopy")
                cluster.migrate(pod, "a", "precopy", node="b")
                cluster.migrate(pod, "b", "precopy")
                self._wait_history(pod, ["moved"] * 3, cluster=cluster)
                epoch = cluster.pods("a")[pod]["epoch"]
                cluster.daemon("kill", "a")
                done = cluster.godwit("b", "migrate", pod, "a", check=False)
                if done.returncode != 5:
                    raise Failure(f"a move without the store: exit code {done.returncode}: {done.stderr}")
                self._counts(pod, "b", cluster)
                cluster.daemon("start", "a")
                state = cluster.pods("a")[pod]
                if (state["node"], state["state"], state["epoch"]) != ("b", "running", epoch):
                    raise Failure(f"after the kill the pod is {state}, it was at epoch {epoch}")
                moves = self._wait_history(pod, ["failed"] + ["moved"] * 3, cluster=cluster)
                if "store" not in moves[0]["error"]:
                    raise Failure(f"the failed move doesn't say why: {moves[0]}")
                names = {one["name"]: one["state"] for one in json.loads(cluster.godwit("a", "nodes", "--json").stdout)}
                if names != {"a": "ok", "b": "ok"}:
                    raise Failure(f"nodes: {names}")
                cluster.migrate(pod, "a", "precopy", node="b")
                self._counts(pod, "a", cluster)
        finally:
            cluster.down()
