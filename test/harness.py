"""Cases, and the running of them: in parallel where they allow it, each with a name, a result and the reason for it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Callable

import known_gaps

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


class Failure(Exception):
    """What was expected, and what was found."""


class Skip(Exception):
    """Why a case can't be run here."""


@dataclasses.dataclass
class Case:
    name: str
    run: Callable[[], object]
    exclusive: bool = False  # nothing else may run beside it


@dataclasses.dataclass
class Result:
    name: str
    status: str  # passed, failed, skipped
    reason: str = ""
    seconds: float = 0
    facts: dict = dataclasses.field(default_factory=dict)
    second_try: str = ""  # why the first one failed, when the second one passed


class Suite:
    """A number of cases with a set-up in common. `cases` may be called before `setup` and must be quick."""

    name = "?"
    jobs = 1

    def __init__(self, options):
        self.options = options

    def cases(self) -> list[Case]:
        raise NotImplementedError

    def setup(self) -> None:
        pass

    def teardown(self) -> None:
        pass


_print_lock = threading.Lock()


def say(text: str) -> None:
    with _print_lock:
        print(text, flush=True)


def _one(suite: Suite, case: Case) -> Result:
    begin = time.monotonic()
    result = Result(f"{suite.name}/{case.name}", "passed")
    try:
        facts = case.run()
        if isinstance(facts, dict):
            result.facts = facts
    except Skip as skip:
        result.status, result.reason = "skipped", str(skip)
    except Failure as failure:
        result.status, result.reason = "failed", str(failure)
    except Exception:  # a bug of the test is a failure too, and the others go on
        result.status, result.reason = "failed", traceback.format_exc()
    result.seconds = time.monotonic() - begin
    gap = known_gaps.reason(result.name) if result.status == "failed" else None
    if gap:
        result.status, result.reason = "skipped", f"known gap: {gap}; this time: {result.reason}"
    mark = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}[result.status]
    lines = result.reason.strip().splitlines() or [""]
    say(f"{mark} {result.name}  {result.seconds:.1f} s" + (f"  {lines[0]}" if lines[0] else ""))
    for line in lines[1:60]:
        say(f"       {line}")
    return result


def run_suite(suite: Suite, pattern: str | None) -> list[Result]:
    try:
        cases = [case for case in suite.cases() if pattern is None or fnmatch.fnmatch(f"{suite.name}/{case.name}", f"*{pattern}*")]
        if not cases:
            return []
        say(f"==== {suite.name}: {len(cases)} cases")
        suite.setup()
    except Skip as skip:
        say(f"skip {suite.name}  {skip}")
        return [Result(suite.name, "skipped", str(skip))]
    except Exception as error:
        reason = str(error) if isinstance(error, Failure) else traceback.format_exc()
        say(f"FAIL {suite.name}: set-up: {reason}")
        with contextlib.suppress(Exception):
            suite.teardown()
        return [Result(f"{suite.name}/set-up", "failed", reason)]
    results = []
    try:
        together = [case for case in cases if not case.exclusive]
        with concurrent.futures.ThreadPoolExecutor(max_workers=suite.jobs) as pool:
            results += pool.map(lambda case: _one(suite, case), together)
        results += [_one(suite, case) for case in cases if case.exclusive]
        # The machine is shared: what failed beside others is tried once more alone. It is told, and counted apart.
        for number, result in enumerate(results):
            if result.status != "failed":
                continue
            again = _one(suite, next(case for case in cases if f"{suite.name}/{case.name}" == result.name))
            if again.status == "passed":
                again.second_try = result.reason or "failed without a reason"
                results[number] = again
    finally:
        try:
            suite.teardown()
        except Exception as error:
            reason = str(error) if isinstance(error, Failure) else traceback.format_exc()
            say(f"FAIL {suite.name}: tear-down: {reason}")
            results.append(Result(f"{suite.name}/tear-down", "failed", reason))
    return results


def expect(what: str, found, wanted) -> None:
    if found != wanted:
        raise Failure(f"{what}: {found!r} instead of {wanted!r}")


def wait_for(what: str, condition: Callable[[], object], seconds: float = 10, step: float = 0.02):
    """Waits until the condition gives something true, and gives that back."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failure(f"waited {seconds:g} s for {what}")
        time.sleep(step)


def command(arguments: list, seconds: float = 60, check: bool = True, input: str | None = None, **more) -> subprocess.CompletedProcess:
    """Runs a program to its end; with `check` an exit code other than 0 is a failure."""
    arguments = [str(argument) for argument in arguments]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", timeout=seconds, input=input,
                              stdin=subprocess.DEVNULL if input is None else None, **more)
    except subprocess.TimeoutExpired as late:
        raise Failure(f"{' '.join(arguments)}: not done in {seconds:g} s\n{_text(late.stdout)}{_text(late.stderr)}") from None
    if check and done.returncode != 0:
        raise Failure(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done


def _text(output) -> str:
    return "" if output is None else output.decode(errors="replace") if isinstance(output, bytes) else output


class Process:
    """A program of ours in the background, with its output in a file; ended with all that it started."""

    def __init__(self, arguments: list, log: pathlib.Path, **more):
        self.arguments = [str(argument) for argument in arguments]
        self.log = log
        with open(log, "wb") as output:
            self.popen = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                          start_new_session=True, **more)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def alive(self) -> bool:
        return self.popen.poll() is None

    def wait_output(self, text: str, seconds: float = 20) -> None:
        def seen():
            if text in self.output():
                return True
            if not self.alive():
                raise Failure(f"{self.arguments[0]} ended with {self.popen.returncode} before it said '{text}':\n{self.output()[-2000:]}")
            return False

        wait_for(f"'{text}' of {self.arguments[0]}", seen, seconds)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.popen.pid, number)

    def wait(self, seconds: float = 20) -> int:
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.arguments[0]} did not end in {seconds:g} s:\n{self.output()[-2000:]}") from None

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


def summary(results: list[Result]) -> int:
    counts = {status: sum(result.status == status for result in results) for status in ("passed", "failed", "skipped")}
    for status in ("skipped", "failed"):
        for result in results:
            if result.status == status:
                print(f"{status}: {result.name}: {(result.reason.strip().splitlines() or ['?'])[0]}")
    for result in results:
        if result.second_try:
            print(f"passed only at the second try: {result.name}: {result.second_try.strip().splitlines()[0]}")
    sys.stderr.flush()
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", flush=True)
    return 1 if counts["failed"] or not counts["passed"] else 0
