"""What needs no cluster: unit tests, the rules of the source, and the tracees and servers without any move."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import tempfile
import threading

import harness
import servers
from fuzz import fuzz
from harness import BUILD, ROOT, Case, Failure, Process, Result, Suite, command


class Tidy(Suite):
    """The rules of import."""

    name = "tidy"

    def cases(self):
        return [Case("source", lambda: command(["python3", ROOT / "test/tidy.py"]) and None)]


class Unit(Suite):
    """GoogleTest; each of its tests is a case, run in one go."""

    name = "unit"
    binary = BUILD / "unit-tests"
    arguments: list[str] = []

    def cases(self):
        if not self.binary.exists():
            return [Case("built", lambda: command([self.binary]))]
        listing = command([self.binary, "--gtest_list_tests", *self.arguments]).stdout
        names, group = [], ""
        for line in listing.splitlines():
            line = line.split("#")[0].rstrip()
            if line.endswith(".") and not line.startswith(" "):
                group = line
            elif line.startswith("  "):
                names.append(group + line.strip())
        self._names, self._results, self._asked = names, None, set()
        self._lock = threading.Lock()
        return [Case(name, lambda name=name: self._result_of(name)) for name in names]

    def _run(self, names: list[str]) -> dict[str, tuple[str, str]]:
        """Of each test its verdict and what it printed. One that takes the program down with it costs only itself."""
        results = {}
        while left := [name for name in names if name not in results]:
            with tempfile.TemporaryDirectory() as directory:
                done = command([self.binary, *self.arguments, f"--gtest_filter={':'.join(left)}"], seconds=600, check=False, cwd=directory)
            text = done.stdout + done.stderr
            ran = re.findall(r"^\[ RUN      \] (\S+)\n(.*?)(?:^\[ +(OK|FAILED|SKIPPED) +\] \1\b|\Z)", text, re.M | re.S)
            results |= {name: (verdict, printed) for name, printed, verdict in ran}
            if not ran:
                raise Failure(f"the tests ended with {done.returncode}, none was run:\n{text[-4000:]}")
            if not ran[-1][2]:
                results[ran[-1][0]] = (f"ended the whole program ({done.returncode})", ran[-1][1])
            elif done.returncode not in (0, 1):
                raise Failure(f"the tests ended with {done.returncode} after the last one:\n{text[-4000:]}")
        return results

    def _result_of(self, name: str) -> None:
        with self._lock:
            if self._results is None:
                self._results = self._run(self._names)
            elif name in self._asked:  # tried once more, alone
                self._results |= self._run([name])
            self._asked.add(name)
        verdict, printed = self._results[name]
        if verdict == "SKIPPED":
            raise harness.Skip("the test says that it can't run here")
        if verdict != "OK":
            raise Failure(printed[-4000:].strip() if verdict == "FAILED" else f"{verdict}:\n{printed[-4000:]}")


class Sanitized(Unit):
    """The part of the unit tests that neither traces nor clones, under AddressSanitizer and UndefinedBehaviorSanitizer."""

    name = "sanitized"
    binary = BUILD / "sanitized-tests"


def tracees() -> list[str]:
    return sorted(path.stem for path in (ROOT / "test/tracees").glob("*.c"))


def trait(tracee: str, name: str) -> list[str]:
    """Words after `// NAME:` at the top of a tracee's source: what the runner has to know about it."""
    for line in (ROOT / f"test/tracees/{tracee}.c").read_text().splitlines():
        if not line.startswith("//"):
            break
        found = re.match(rf"// {name}: (.*)", line)
        if found:
            return found.group(1).split()
    return []


class Echo:
    """A peer that answers with what it gets, and ends where the other ends."""

    def __init__(self, address: str = "127.0.0.1"):
        self.listener = socket.create_server((address, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass

    def close(self) -> None:
        self.listener.close()


class Tracees(Suite):
    """Every tracee alone: without a move it must be content, or its word after one is worth nothing."""

    name = "tracees"
    jobs = 2

    def cases(self):
        return [Case(name, lambda name=name: self._alone(name)) for name in tracees()]

    def _alone(self, name: str) -> None:
        arguments, peer = [BUILD / "tracees" / name], None
        if "echo" in trait(name, "peer"):
            peer = Echo()
            arguments += ["127.0.0.1", peer.port]
        with tempfile.TemporaryDirectory() as directory:
            process = Process(arguments, pathlib.Path(directory) / "output", cwd=directory)
            try:
                process.wait_output("ready\n")
                process.signal(signal.SIGTERM)
                code = process.wait(30)
                words = process.output().split("\n")
                if code != 0 or words[-2:] != ["ok", ""] or words[0] != "ready":
                    raise Failure(f"exit code {code}: {process.output()}")
            finally:
                process.end()
                if peer:
                    peer.close()


LIAR = """
import socket, sys
kind, port = sys.argv[1], int(sys.argv[2])
listener = socket.create_server(("127.0.0.1", port))
print("serving", flush=True)
connection, _ = listener.accept()
lines = connection.makefile("rb")
count = 0
for line in lines:
    count += 1
    answer = line.rstrip(b"\\n") + b" %d\\n" % count
    if count == 300:
        if kind == "doubled": answer += answer
        if kind == "lost": count += 1
        if kind == "stale": answer = answer.replace(b" 300", b" 299")
        if kind == "closed": break
        if kind == "silent": continue
    connection.sendall(answer)
"""


class Clients(Suite):
    """The load client with servers that don't move: it must be content with the real ones, and find what a bad one does."""

    name = "clients"

    def cases(self):
        real = [servers.redis(17001, 8), servers.memcached(17002, 8), servers.nginx(17003), servers.python(17004)]
        return [Case(server.name, lambda server=server: self._real(server)) for server in real] + [
            Case(f"finds-{kind}", lambda kind=kind: self._liar(kind)) for kind in ("doubled", "lost", "stale", "closed", "silent")
        ]

    def _real(self, server: servers.Server) -> None:
        with tempfile.TemporaryDirectory() as directory:
            process = Process(server.command, pathlib.Path(directory) / "log", cwd=directory)
            try:
                listening(server.port, process)
                done = command(server.client("127.0.0.1", "--seconds", 1, "--connections", 20), seconds=60, check=False)
                if done.returncode != 0:
                    raise Failure(f"exit code {done.returncode}: {done.stderr}{done.stdout[:2000]}\n{process.output()}")
                if json.loads(done.stdout)["requests"] < 500:
                    raise Failure(f"only few requests: {done.stdout}")
            finally:
                process.end()

    def _liar(self, kind: str) -> None:
        with tempfile.TemporaryDirectory() as directory:
            process = Process(["python3", "-c", LIAR, kind, 17005], pathlib.Path(directory) / "log")
            try:
                process.wait_output("serving")
                arguments = [BUILD / "loadclient", "echo", "--host", "127.0.0.1", "--port", 17005, "--connections", 1, "--seconds", 5,
                             "--silence", 0.5]
                done = command(arguments, check=False)
                if done.returncode != 1 or json.loads(done.stdout)["errors"] != 1:
                    raise Failure(f"not found: exit code {done.returncode}: {done.stdout}")
            finally:
                process.end()


def listening(port: int, process: Process) -> None:
    def accepts():
        if not process.alive():
            raise Failure(f"{process.arguments[0]} ended: {process.output()[-2000:]}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    harness.wait_for(f"port {port}", accepts)


class Fuzz(Suite):
    """What parses bytes from outside (test/fuzz), under libFuzzer and the sanitizers, from its corpus on and for a bounded time."""

    name = "fuzz"
    jobs = 2

    def cases(self):
        return [Case(target, lambda target=target: self._fuzz(target)) for target in fuzz.targets()]

    def _fuzz(self, target: str) -> dict:
        with tempfile.TemporaryDirectory() as directory:
            return fuzz.run(target, 300 if self.options.long else 12, pathlib.Path(directory))
