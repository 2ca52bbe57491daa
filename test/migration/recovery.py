"""What a lost machine or store leaves: in doubt and frozen, until the store is back or an operator decides; or ended, with the reason, when pages are
lost. Never twice, and never with zeros for memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

from harness import BUILD, Case, Failure, wait_for
from migration.cluster import CommandError, Migration
from migration.matrix import Field, cluster_json

CONFIG = "/etc/godwit/godwitd.toml"
# Stands in rt_sigtimedwait(2), whose time limit is on the thread's stack.
WAITS = """
import signal, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
threading.Thread(target=signal.sigtimedwait, args=([signal.SIGUSR1], 3600)).start()
print("ready")
"""


class Recovery(Field):
    name = "recovery"

    def __init__(self, options):
        super().__init__(options, "recovery")

    def cases(self):
        return [Case(name, getattr(self, "_" + name.replace("-", "_")), exclusive=True)
                for name in ("store-away-at-the-commit", "doubt-outlives-the-daemons", "doubt-resolved-here", "doubt-of-both-resolved", "word-outlives-the-daemons", "word-goes-along",
                             "remainder-by-an-operators-word", "rm-spares-what-runs", "link-lost-in-drain", "source-silent-in-the-rebuild", "upgraded-in-drain", "pages-lost", "frozen-killed-in-drain",
                             "frozen-killed-and-daemon-restarted", "forks-in-drain", "remainder-dropped",
                             "history-of-the-interrupted", "history-of-a-remainder")]

    def setup(self):
        super().setup()
        # The machine with the pages is waited for this long.
        self.cluster.exec("c", "sed", "-i", "s/^page_patience = .*/page_patience = 20/", CONFIG)
        self.cluster.daemon("stop", "c")
        self.cluster.daemon("start", "c")

    def _at_the_commit(self, pod: str, strategy: str = "precopy", rate: str = "none", cut: bool = False) -> Migration:
        """A move that stands still just before its commit, and a store that is away: its daemon has died, or nobody reaches it."""
        self._start(pod)
        self.cluster.link("c", f"rate={rate}")
        self._arm("b", "source.pinned", "wait")
        moving = Migration(self.cluster, pod, "c", strategy, node="b")
        self._reached("b", "wait", moving)
        if cut:
            self.cluster.link("a", "down")
        else:
            self.cluster.daemon("kill", "a")
        return moving

    def _doubt(self, node: str, pod: str) -> dict:
        def seen():
            found = [doubt for doubt in cluster_json(self.cluster, node)["doubts"] if doubt["pod"] == pod]
            return found[0] if found else None

        return wait_for(f"{pod} to be in doubt on {node}", seen, 30)

    def _frozen(self, pod: str, seconds: float = 1) -> None:
        before = self._ticks(pod)
        time.sleep(seconds)
        if self._ticks(pod) != before:
            raise Failure(f"{pod} runs while it is in doubt")

    def _end(self, pod: str) -> None:
        self._disarm()
        self.cluster.link("a", "up")
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

    def _doubt_outlives_the_daemons(self) -> dict:
        """Both have a complete copy and can't read whose it is: neither their next daemons nor time let one run."""
        pod = "unread"
        try:
            self._at_the_commit(pod, cut=True)
            self._go("b")
            self._doubt("b", pod)
            self._disarm()
            for node in ("b", "c"):
                self.cluster.daemon("kill", node)
            for node in ("b", "c"):
                self.cluster.daemon("start", node)
            for node in ("b", "c"):
                self._doubt(node, pod)
                if (state := self._state(node, pod)) != "in doubt":
                    raise Failure(f"{pod} is {state or 'not there'} on {node}")
            listed = [line.split()[:2] for line in self.cluster.godwit("c", "resolve").stdout.splitlines()[1:]]
            if listed != [["b", pod], ["c", pod]]:
                raise Failure(f"resolve lists {listed}")
            # Longer than a daemon waits before it asks again.
            self._frozen(pod, 4)
            self.cluster.link("a", "up")
            node = self._runs(pod, ("b", "c"))
            self._nothing_left(pod)
            self._finish(pod, node)
            return {"node": node}
        finally:
            self._end(pod)

    def _source_silent_in_the_rebuild(self) -> dict:
        """The destination itself needs a page before the commit (a time limit that stands in the program's memory), and the source doesn't answer: the move has
        failed, and nobody waits for the page any longer."""
        pod = "unanswered"
        try:
            # Without rseq(2), whose memory the kernel would touch first.
            self.cluster.run("b", pod, ["env", "GLIBC_TUNABLES=glibc.pthread.rseq=0", "python3", "-uc", WAITS])
            self.cluster.wait_logs(pod, "ready\n")
            before = self.cluster.processes(pod)
            self._arm("b", "source.answering", "wait")
            moving = Migration(self.cluster, pod, "c", "postcopy", node="b")
            self._reached("b", "wait", moving)
            wait_for("c to give up", lambda: "a page that was asked for doesn't come" in self.cluster.daemon_log("c", 20), 30)
            self._go("b")
            error = moving.finish().get("error", {}).get("message", "")
            if "a page that was asked for doesn't come" not in error:
                raise Failure(f"it ended with {error or moving.last}")
            self._disarm()
            wait_for(f"{pod} to be on b as before, and there only", lambda: self.cluster.processes(pod) == before, 10)
            self._nothing_left(pod)
            return {"error": error[:200]}
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
            # Alone b tells the record, although that says so already: the commit may still be on its way.
            self.cluster.daemon("kill", "c")
            self.cluster.daemon("start", "a")
            wait_for("the record's next epoch", lambda: self.cluster.pods().get(pod, {}).get("epoch") == 2, 15)
            self.cluster.daemon("start", "c")
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

    def _word_outlives_the_daemons(self) -> None:
        """What both were told holds for the next daemons, until the record has been told: it never becomes the other's."""
        pod = "remembered"
        try:
            self._at_the_commit(pod)
            self.cluster.link("c", "down")
            self._go("b")
            self._doubt("b", pod)
            self._doubt("c", pod)
            self._disarm()
            self.cluster.godwit("c", "resolve", "--here", pod)
            self.cluster.godwit("b", "resolve", "--there", pod)
            self._runs_without_store(pod)
            self.cluster.link("c", "up")
            for node in ("c", "b"):
                self.cluster.daemon("kill", node)
                self.cluster.daemon("start", node)
            self._runs_without_store(pod)
            self.cluster.daemon("start", "a")
            self._runs(pod, ("c",))
            self._nothing_left(pod)
            self._restarts_on_c(pod)
            self._finish(pod, "c")
        finally:
            self._end(pod)

    def _word_goes_along(self) -> None:
        """Only the source is in doubt. The destination hears from it that it is by an operator's word, and tells the record."""
        pod = "told"
        try:
            self._at_the_commit(pod)
            self._go("b")
            self._doubt("b", pod)
            self._disarm()
            self.cluster.godwit("b", "resolve", "--there", pod)
            self._runs_without_store(pod)
            self.cluster.daemon("start", "a")
            self._runs(pod, ("c",))
            self._nothing_left(pod)
            self._restarts_on_c(pod)
            self._finish(pod, "c")
        finally:
            self._end(pod)

    def _runs_without_store(self, pod: str) -> None:
        wait_for(f"{pod} to run on c", lambda: self._state("c", pod) == "running" and self.cluster.alone(pod), 20)

    def _restarts_on_c(self, pod: str) -> None:
        """The next daemon goes by the record."""
        self.cluster.daemon("stop", "c")
        self.cluster.daemon("start", "c")
        self._runs(pod, ("c",))

    def _remainder_by_an_operators_word(self) -> None:
        """The store is back before the destination has told it: what the source has left is still needed."""
        pod = "believed"
        try:
            self._at_the_commit(pod, "postcopy", "20mbit")
            self._go("b")
            self._doubt("b", pod)
            self._disarm()
            self.cluster.godwit("b", "resolve", "--there", pod)
            wait_for(f"{pod} to run on c", lambda: self._state("c", pod) == "running", 20)
            self.cluster.link("c", "down")
            wait_for("the remainder", lambda: cluster_json(self.cluster, "b")["remainders"], 30)
            self.cluster.daemon("start", "a")
            wait_for("the store", lambda: self.cluster.pods("b").get(pod), 15)
            # Longer than b takes to look at the record and to ask c in vain; shorter than c waits.
            time.sleep(8)
            if not cluster_json(self.cluster, "b")["remainders"]:
                raise Failure("what the pod is owed has been given up")
            self.cluster.link("c", "rate=none")
            self.cluster.link("c", "up")
            self._runs(pod, ("c",))
            self._nothing_left(pod)
            self._finish(pod, "c")
        finally:
            self._end(pod)

    def _rm_spares_what_runs(self) -> None:
        """A pod that the daemon couldn't take over isn't lost: its files stay below it, and the next daemon has it."""
        pod = "untaken"
        socket = f"/run/godwit/pods/{pod}.sock"
        try:
            self._start(pod)
            self.cluster.daemon("stop", "b")
            self.cluster.exec("b", "mv", socket, socket + ".away")
            self.cluster.daemon("start", "b")
            done = self.cluster.godwit("b", "rm", "--force", pod, check=False)
            if done.returncode == 0 or "kill -9" not in done.stdout + done.stderr:
                raise Failure(f"rm should refuse, and say what to do: {done.returncode} {done.stdout + done.stderr}")
            self.cluster.daemon("stop", "b")
            self.cluster.exec("b", "mv", socket + ".away", socket)
            self.cluster.daemon("start", "b")
            self._runs(pod, ("b",))
            self._finish(pod, "b")
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

            note = self._lost(pod)
            self.cluster.daemon("start", "b")
            wait_for("nothing to be left on b", lambda: not cluster_json(self.cluster, "b")["remainders"], 30)
            return {"note": note}
        finally:
            self._end(pod)

    def _lost(self, pod: str) -> str:
        """Waits until the pod has ended because its pages are lost, and has seen nothing else for them; its note."""

        def ended():
            state = self.cluster.pod(pod)
            return state if state["state"] == "exited" else None

        state = wait_for(f"the end of {pod}", ended, 60)
        if "lost" not in state.get("note", "") or state["exit_code"] != 137:
            raise Failure(f"it should say that its pages are lost: {state}")
        if (output := self.cluster.logs(pod)) != "ready\n":
            raise Failure(f"it has seen memory that isn't its own: {output}")
        return state["note"]

    def _kill_frozen(self, pod: str, restart: bool) -> dict:
        try:
            self._start(pod)
            frozen = self.cluster.processes(pod)
            self.cluster.link("c", "rate=20mbit")
            Migration(self.cluster, pod, "c", "postcopy", node="b").wait_phase("drain")
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if restart:
                self.cluster.daemon("kill", "b")
                self.cluster.daemon("start", "b")
            self.cluster.link("c", "rate=none")
            note = self._lost(pod)
            wait_for("nothing to be left on b", lambda: not cluster_json(self.cluster, "b")["remainders"], 30)
            return {"note": note}
        finally:
            self._end(pod)

    def _frozen_killed_in_drain(self) -> dict:
        """The source's machine has killed the frozen processes, as for want of memory: the pod ends, with that reason."""
        return self._kill_frozen("bereft", restart=False)

    def _frozen_killed_and_daemon_restarted(self) -> dict:
        """And its daemon is another one since, which finds nothing of them."""
        return self._kill_frozen("bereft-twice", restart=True)

    def _forks(self, pod: str) -> int:
        """How often it has forked, to the next hundred."""
        return 100 * self.cluster.logs(pod).count(".")

    def _forks_in_drain(self) -> dict:
        """A pod that forks more often than its init may have descriptors while it is owed pages, and those that live then are another daemon's
        in the end: every child has its memory, and no fork waits for ever."""
        pod = "forker"
        try:
            tracee = BUILD / "tracees" / "forks"
            self.cluster.provide(tracee)
            self.cluster.run("b", pod, [tracee, "64"])
            self.cluster.wait_logs(pod, "ready\n")
            self.cluster.link("c", "rate=20mbit")
            moving = Migration(self.cluster, pod, "c", "postcopy", node="b")
            moving.wait_phase("drain")
            # Not before: what is shared with a child is sent before the freeze.
            self.cluster.signal(pod, "USR2", node="c")
            wait_for("1500 forks", lambda: self._forks(pod) >= 1500 or moving.over(), 60, step=0.2)
            forks = self._forks(pod)
            if forks < 1500 or moving.over():
                raise Failure(f"everything was there after {forks} forks: {str(moving.last)[:400]}")
            self.cluster.daemon("kill", "c")
            self.cluster.daemon("start", "c")
            self.cluster.link("c", "rate=none")
            self.cluster.drained(pod, "c")
            self._nothing_left(pod)
            # Nothing is owed any more, and nobody reads what a userfaultfd says.
            last = self._forks(pod)
            wait_for("more forks", lambda: self._forks(pod) > last + 100, 30, step=0.2)
            self._finish(pod, "c")
            return {"forks": forks}
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

    def _told(self, pod: str) -> list[dict]:
        return json.loads(self.cluster.godwit("a", "history", pod, "--json").stdout)

    def _interrupted(self, pod: str, strategy: str, node: str) -> None:
        """The history has this one move, as interrupted, and says where the pod is."""
        moves = wait_for(f"the history of {pod}", lambda: self._told(pod), 20, step=0.1)
        seen = [(move["outcome"], move["source"], move["destination"], move["strategy"], move["node"]) for move in moves]
        if seen != [("interrupted", "b", "c", strategy, node)]:
            raise Failure(f"the history of a move that ended with its source's daemon: {moves}")
        if f"interrupted, on {node} " not in self.cluster.godwit("c", "history", pod).stdout:
            raise Failure(f"the table doesn't say it: {self.cluster.godwit('a', 'history', pod).stdout}")
        whole = json.loads(self.cluster.godwit("a", "history", "--show", moves[0]["id"], "--json").stdout)
        if "the daemon of node b ended" not in whole["error"] or whole["node"] != node:
            raise Failure(f"its report: {whole}")

    def _history_of_the_interrupted(self) -> None:
        """The source's daemon dies under way: the next one writes down what became of the move, once."""
        for point, strategy, node in (("source.prepared", "precopy", "b"), ("source.frozen", "precopy", "b"), ("claim.swapped", "precopy", "c"),
                                      ("source.owing", "postcopy", "c")):
            # A name of its own: the history remembers.
            self.count += 1
            pod = f"broken-off-{self.count}"
            try:
                self._start(pod)
                self._arm("b", point, "kill")
                self._reached("b", "kill", Migration(self.cluster, pod, "c", strategy))
                self._disarm()
                self.cluster.daemon("start", "b")
                self._runs(pod, (node,))
                self._nothing_left(pod)
                self._interrupted(pod, strategy, node)
                self._finish(pod, node)
            finally:
                self._end(pod)

    def _history_of_a_remainder(self) -> None:
        """What a source has left is another daemon's, and the next one's again: the move is in the history once. What the first has come to write stays."""
        for cut in (False, True):
            self.count += 1
            pod = f"left-{self.count}"
            try:
                self._draining(pod)
                # It takes longer than all that follows.
                self.cluster.link("c", "rate=1mbit")
                if cut:
                    self.cluster.link("c", "down")
                    wait_for("the source to give up", lambda: cluster_json(self.cluster, "b")["remainders"], 60)
                    wait_for("its word in the history", lambda: self._told(pod), 20)
                    self.cluster.link("c", "up")
                first = self._told(pod)
                for _ in range(2):
                    self.cluster.daemon("kill", "b")
                    self.cluster.daemon("start", "b")
                    wait_for("the remainder", lambda: cluster_json(self.cluster, "b")["remainders"], 30)
                    told = wait_for("the history", lambda: self._told(pod), 20)
                    # A line that is written anew is written within this time.
                    time.sleep(2)
                    if (now := self._told(pod)) != (first or told):
                        raise Failure(f"the history has become {now}, it was {first or told}")
                    first = now
                self.cluster.link("c", "rate=none")
                self._runs(pod, ("c",))
                self._nothing_left(pod)
                if cut and ([move["outcome"] for move in first] != ["failed"] or "daemon of node b" in first[0]["error"]):
                    raise Failure(f"the first daemon's word is lost: {first}")
                if not cut:
                    self._interrupted(pod, "postcopy", "c")
                self._finish(pod, "c")
            finally:
                self._end(pod)
