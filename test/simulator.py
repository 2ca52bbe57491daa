"""The code in control/ in a simulated cluster, and every order of events in a small one. That they would find something is shown by bugs that are planted."""

from __future__ import annotations

import re

from harness import BUILD, Case, Failure, Suite, command

SIM = BUILD / "godwit-sim"

# By which invariants a planted bug shows in the simulator, any of them.
SIMULATED = {
    "source-runs-on": {"two running", "misplaced", "stale"},
    "destination-runs-on": {"two running", "stale", "misplaced"},
    "no-fence": {"two running", "misplaced", "stale", "vanished"},
    "any-epoch": {"two running", "misplaced", "stale"},
    "owner-compared-alone": {"epoch"},
    "late-answer": {"two running", "misplaced", "stale"},
    "abort-in-doubt": {"vanished"},
    "cancel-committing": {"two running", "misplaced", "stale"},
    "adopted-unasked": {"two running", "stale"},
    "noted-late": {"two running", "stale", "misplaced"},
    "second-copy": {"two running", "stale"},
    "never-doubts": {"unfinished"},
    "early-end": {"needed"},
    "moves-on-owed": {"needed", "holes"},
    "features-unsaid": {"machine"},
    "undecided": {"policy", "room", "machine"},
    "promise-forever": {"promise"},
    "promise-leaks": {"leaked"},
}
# Shows only where the store is out of reach for one node, and for long enough.
RARE = {"second-copy": ["--nodes", 3, "--span", 60, "--runs", 10_000]}
# And with what in the explorer.
EXPLORED = {
    "source-runs-on": "record doesn't say",
    "destination-runs-on": "two copies run",
    "no-fence": "last copy",
    "any-epoch": "record doesn't say",
    "owner-compared-alone": "epoch goes back",
    "late-answer": "two copies run",
    "old-go": "gone on from elsewhere",
    "abort-in-doubt": "last copy",
    "cancel-committing": "record doesn't say",
    "adopted-unasked": "two copies run",
    "noted-late": "two copies run",
    "second-copy": "gone on from elsewhere",
    "never-doubts": "frozen for ever",
    "early-end": "still owes pages",
    "word-unfenced": "record doesn't say",
}


class Simulator(Suite):
    """Seeds are fixed: what passes here passes always, and what fails is repeated by its seed."""

    name = "sim"

    def cases(self):
        return [
            Case("small-clusters", lambda: self._clean("--runs", 100_000 if self.options.long else 8_000)),
            Case("hundreds-of-nodes", lambda: self._clean("--runs", 20 if self.options.long else 5, "--nodes", 300)),
            Case("thousands-of-nodes", lambda: self._clean("--runs", 1, "--nodes", 3000, "--span", 10)),
            Case("long-storms", lambda: self._clean("--runs", 2_000 if self.options.long else 200, "--nodes", 4, "--span", 120)),
            Case("repeats-exactly", self._repeats),
            Case("explorer", self._explorer),
            Case("every-bug-is-tried", self._every_bug),
            *[Case(f"planted-{bug}", lambda bug=bug: self._planted(bug)) for bug in SIMULATED],
            *[Case(f"explored-{bug}", lambda bug=bug: self._explored(bug)) for bug in EXPLORED],
            Case("refuses-nonsense", self._nonsense),
        ]

    def _clean(self, *options) -> dict:
        output = command([SIM, *options], seconds=1200).stdout
        found = re.search(r"^(\d+) runs, (\d+) events, \d+ s simulated: nothing found$", output, re.M)
        committed = re.search(r"^ +(\d+)  committed$", output, re.M)
        if not found or not committed:
            raise Failure(output[-2000:])
        # All faults there are have been tried, or nothing was shown.
        kinds = set(re.findall(r"^ +\d+  (.*)$", output, re.M))
        missing = {"daemons killed", "machines lost", "messages lost", "messages doubled", "messages late", "partitions", "links cut",
                   "partitions, in one direction", "store deaf", "store dumb", "store late", "clock jumps"} - kinds
        if missing and "--nodes" not in options:
            raise Failure(f"never tried: {', '.join(sorted(missing))}")
        return {"runs": int(found[1]), "events": int(found[2]), "committed": int(committed[1])}

    def _repeats(self) -> None:
        first, second = (command([SIM, "--seed", 4711, "--trace"]).stdout for _ in range(2))
        other = command([SIM, "--seed", 4712, "--trace"]).stdout
        if first != second:
            raise Failure("the same seed, and another course of events")
        if first == other or len(first.splitlines()) < 50:
            raise Failure(f"the seed changes nothing, or nothing happens:\n{first[:1000]}")

    def _explorer(self) -> dict:
        output = command([SIM, "--explore"], seconds=600).stdout
        found = re.search(r"^(\d+) states in all: nothing found$", output, re.M)
        if not found or int(found[1]) < 100_000:
            raise Failure(output)
        return {"states": int(found[1])}

    def _every_bug(self) -> None:
        """What the program says of itself is what the tests above hold it to."""
        simulated, explored = set(), set()
        for line in command([SIM, "--bugs"]).stdout.splitlines():
            words = line.split()
            simulated |= {words[0]} if "simulated" in words else set()
            explored |= {words[0]} if "explored" in words else set()
        if simulated != set(SIMULATED) or explored != set(EXPLORED):
            raise Failure(f"simulated: {simulated ^ set(SIMULATED)}, explored: {explored ^ set(EXPLORED)}")

    def _planted(self, bug: str) -> dict:
        options = RARE.get(bug, ["--runs", 2_000])
        done = command([SIM, "--bug", bug, *options], check=False, seconds=300)
        found = re.search(r"^seed (\d+): ([\w ]+): ", done.stdout, re.M)
        if done.returncode != 1 or not found:
            raise Failure(f"not found (exit code {done.returncode}):\n{done.stdout[-1000:]}")
        if found[2] not in SIMULATED[bug]:
            raise Failure(f"found as '{found[2]}', not as one of {SIMULATED[bug]}")
        again = command([SIM, "--bug", bug, *options[:-2], "--seed", found[1]], check=False)
        if found[0] not in again.stdout:
            raise Failure(f"seed {found[1]} doesn't repeat it")
        return {"seed": int(found[1]), "invariant": found[2]}

    def _explored(self, bug: str) -> None:
        done = command([SIM, "--explore", "--bug", bug], check=False, seconds=300)
        if done.returncode != 1 or EXPLORED[bug] not in done.stdout:
            raise Failure(f"not found (exit code {done.returncode}):\n{done.stdout[-1000:]}")

    def _nonsense(self) -> None:
        for options in (["--bug", "no-such"], ["--nodes", "-1"], ["--no-such"], ["--runs", "1", "--time", "1"]):
            done = command([SIM, *options], check=False)
            if done.returncode != 2:
                raise Failure(f"{options}: exit code {done.returncode}")
