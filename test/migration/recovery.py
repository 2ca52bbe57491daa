"""What a lost machine or store leaves: in doubt and frozen, until the store is back or an operator decides; or ended, with the reason, when pages are
lost. Never twice, and never with zeros for memory."""

from __future__ import annotations

import json
import time

from harness import Case, Failure, wait_for
from migration.cluster import CommandError, Migration
from migration.matrix import Field, cluster_json

CONFIG = "/etc/godwit/godwitd.toml"


class Recovery(Field):
    name = "recovery"

    def __init__(self, options):
        super().__init__(options, "recovery")

    def cases(self):
        return [Case(name, getattr(self, "_" + name.replace("-", "_")), exclusive=True)
                for name in ("store-away-at-the-commit", "doubt-resolved-here", "doubt-of-both-resolved", "link-lost-in-drain", "upgraded-in-drain", "pages-lost", "remainder-dropped")]

    def setup(self):
        super().setup()
        # The machine with the pages is waited for this long.
        self.cluster.exec("c", "sed", "-i", "s/^page_patience = .*/page_patience = 6/", CONFIG)
        self.cluster.daemon("stop", "c")
        self.cluster.daemon("start", "c")

    def _at_the_commit(self, pod: str) -> Migration:
        """A move that stands still just before its commit, and a store that is away."""
        self._start(pod)
        self._arm("b", "source.pinned", "wait")
        moving = Migration(self.cluster, pod, "c", "precopy", node="b")
        self._reached("b", "wait", moving)
        self.cluster.daemon("kill", "a")
        return moving

    def _doubt(self, node: str, pod: str) -> dict:
        def seen():
            found = [doubt for doubt in cluster_json(self.cluster, node)["doubts"] if doubt["pod"] == pod]
            return found[0] if found else None

        return wait_for(f"{pod} to be in doubt on {node}", seen, 30)

    def _frozen(self, pod: str) -> None:
        before = self._ticks(pod)
        time.sleep(1)
        if self._ticks(pod) != before:
            raise Failure(f"{pod} runs while it is in doubt")

    def _end(self, pod: str) -> None:
        self._disarm()
        self.cluster.link("c", "up")
        self.cluster.link("c", "rate=none")
        self.cluster.heal()
        self.cluster.remove(pod)

    def _store_away_at_the_commit(self) -> dict:
        """In doubt, frozen, shown as such; the store's return ends it by itself."""
        pod = "commits"
        try:
            self._at_the_commit(pod)
            self._go("b")
            self._doubt("b", pod)
            if "in doubt" not in self.cluster.godwit("b", "ps", "--local").stdout:
                raise Failure("ps doesn't show that it is in doubt")
            self._frozen(pod)
            self._disarm()
            self.cluster.daemon("start", "a")
            node = self._runs(pod, ("b", "c"))
            self._nothing_left(pod)
            self._finish(pod, node)
            return {"node": node}
        finally:
            self._end(pod)

    def _doubt_resolved_here(self) -> None:
        """An operator's word ends it without the store, which is told later."""
        pod = "resolved"
        try:
            self._at_the_commit(pod)
            self._go("b")
            self._doubt("b", pod)
            self._disarm()
            if pod not in self.cluster.godwit("b", "resolve").stdout:
                raise Failure("resolve doesn't list it")
            self.cluster.godwit("b", "resolve", "--here", pod)
            wait_for(f"{pod} to run on b", lambda: self._state("b", pod) == "running", 15)
            before = self._ticks(pod)
            wait_for("progress", lambda: self._ticks(pod) > before, 10)
            self.cluster.daemon("start", "a")
            self._runs(pod, ("b",))
            self._nothing_left(pod)
            self._finish(pod, "b")
        finally:
            self._end(pod)

    def _doubt_of_both_resolved(self) -> None:
        """The link is cut as well: both sides are in doubt, and each does what it is told."""
        pod = "both"
        try:
            self._at_the_commit(pod)
            self.cluster.link("c", "down")
            self._go("b")
            self._doubt("b", pod)
            self._doubt("c", pod)
            self._frozen(pod)
            self._disarm()
            self.cluster.godwit("c", "resolve", "--here", pod)
            self.cluster.godwit("b", "resolve", "--there", pod)
            wait_for(f"{pod} to run on c", lambda: self._state("c", pod) == "running" and self.cluster.alone(pod), 15)
            self.cluster.daemon("start", "a")
            self.cluster.link("c", "up")
            self._runs(pod, ("c",))
            self._nothing_left(pod)
            self._finish(pod, "c")
        finally:
            self._end(pod)

    def _state(self, node: str, pod: str) -> str:
        pods = json.loads(self.cluster.api(node, "GET", "/v1/pods?local").read())["pods"]
        return next((entry["state"] for entry in pods if entry["name"] == pod), "")

    def _draining(self, pod: str) -> Migration:
        self._start(pod)
        self.cluster.link("c", "rate=20mbit")
        moving = Migration(self.cluster, pod, "c", "postcopy", node="b")
        moving.wait_phase("drain")
        return moving

    def _link_lost_in_drain(self) -> None:
        """The connections break, both daemons live: they are made anew, and the pod has all of its memory."""
        pod = "relinked"
        try:
            self._draining(pod)
            self.cluster.link("c", "down")
            time.sleep(8)
            self.cluster.link("c", "rate=none")
            self.cluster.link("c", "up")
            if self._runs(pod, ("c",)) != "c":
                raise Failure("it should run on c")
            self._nothing_left(pod)
            self._finish(pod, "c")
        finally:
            self._end(pod)

    def _upgraded_in_drain(self) -> None:
        """Either daemon is stopped as for an upgrade, and another one started: the pod has all of its memory."""
        pod = "upgraded"
        try:
            self._draining(pod)
            for node in ("c", "b"):
                self.cluster.daemon("stop", node)
                self.cluster.daemon("start", node)
            self.cluster.link("c", "rate=none")
            self._runs(pod, ("c",))
            self._nothing_left(pod)
            self._finish(pod, "c")
        finally:
            self._end(pod)

    def _pages_lost(self) -> dict:
        """The machine with the pages doesn't come back: the pod ends, and says why."""
        pod = "orphan"
        try:
            self._draining(pod)
            self.cluster.daemon("kill", "b")
            self.cluster.link("c", "rate=none")

            def ended():
                state = self.cluster.pod(pod)
                return state if state["state"] == "exited" else None

            state = wait_for(f"the end of {pod}", ended, 60)
            if "lost" not in state.get("note", "") or state["exit_code"] != 137:
                raise Failure(f"it should say that its pages are lost: {state}")
            if "wrong" in self.cluster.logs(pod):
                raise Failure(f"it has seen memory that isn't its own: {self.cluster.logs(pod)}")
            self.cluster.daemon("start", "b")
            wait_for("nothing to be left on b", lambda: not cluster_json(self.cluster, "b")["remainders"], 30)
            return {"note": state["note"]}
        finally:
            self._end(pod)

    def _remainder_dropped(self) -> None:
        """What a pod has left is listed with reason and end, and an operator can end it: the pod ends then, with the reason."""
        pod = "dropped"
        try:
            self._draining(pod)
            self.cluster.daemon("kill", "c")
            left = wait_for("the remainder", lambda: cluster_json(self.cluster, "b")["remainders"], 30)
            if not left[0]["reason"] or not left[0]["ends"]:
                raise Failure(f"no reason or no end: {left}")
            self.cluster.godwit("b", "resolve", "--drop", pod)
            self.cluster.link("c", "rate=none")
            self.cluster.daemon("start", "c")
            wait_for(f"the end of {pod}", lambda: self.cluster.pod(pod)["state"] == "exited", 30)
            try:
                self.cluster.godwit("b", "resolve", "--drop", pod)
            except CommandError:
                return
            raise Failure("dropped twice")
        finally:
            self._end(pod)
