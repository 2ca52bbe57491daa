"""Two daemons on this machine's loopback, without networks for pods: all that commands do short of a migration."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import pty
import select
import shutil
import signal
import socket
import struct
import tempfile
import termios
import time

from harness import BUILD, Case, Failure, Process, Skip, Suite, command, expect, wait_for

GODWIT, GODWITD = BUILD / "godwit", BUILD / "godwitd"
KEY = "a key for tests only"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Terminal:
    """A command on a pseudo-terminal of ours."""

    def __init__(self, arguments: list, environment: dict, rows: int, columns: int):
        self.output = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(str(arguments[0]), [str(word) for word in arguments], environment)
        self.resize(rows, columns)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while text.encode() not in self.output:
            if time.monotonic() > end:
                raise Failure(f"waited for {text!r}; had {self.output[-1000:]!r}")
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self.fd, 65536)
                except OSError:
                    raise Failure(f"the terminal ended before {text!r}; had {self.output[-1000:]!r}") from None
        self.output = self.output.split(text.encode(), 1)[1]

    def finish(self) -> int:
        """The exit code, with what is still written read away."""
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code

    def kill(self) -> None:
        """Whoever sits there is gone from one moment to the next, and the terminal with them."""
        os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        os.waitpid(self.pid, 0)


class Daemons(Suite):
    name = "daemons"

    def cases(self):
        plain = {
            "run_exit_codes": self._run_exit_codes,
            "streams_stay_apart": self._streams,
            "input_arrives_whole": self._input,
            "lists_on_both_nodes": self._lists,
            "exec": self._exec,
            "stop_kill_wait_rm": self._stop_kill_wait_rm,
            "signals_reach_the_program": self._signals,
            "logs_follow": self._logs_follow,
            "terminal": self._terminal,
            "error_exit_codes": self._errors,
            "config_errors": self._config_errors,
            "wrong_key": self._wrong_key,
            "second_daemon_is_refused": self._second_daemon,
            "killed_daemon_loses_no_pod": self._killed_daemon,
            "store_away": self._store_away,
            "sigterm_ends_it_cleanly": self._sigterm,
        }
        return [Case(name, run) for name, run in plain.items()]

    def setup(self):
        if not GODWITD.exists() or not GODWIT.exists():
            raise Skip("there is no build/godwitd")
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="godwit-daemons-", dir="/var/lib"))
        self.ports = {"a": free_port(), "b": free_port()}
        self.processes: dict[str, Process] = {}
        for node in "ab":
            self._write_config(node, KEY)
            self._start(node)

    def teardown(self):
        if not hasattr(self, "directory"):
            return
        for node in "ab":
            if node not in self.processes or not self.processes[node].alive():
                self._start(node)
        pods = self._godwit("a", "ps", "--quiet", check=False).stdout.split()
        if pods:
            self._godwit("a", "rm", "--force", *pods, check=False)
        for node in "ab":
            self._end(node, signal.SIGTERM)
        left = [path for path in pathlib.Path("/sys/fs/cgroup").glob("**/godwit/*-daemons-test*")]
        shutil.rmtree(self.directory, ignore_errors=True)
        if left:
            raise Failure(f"cgroups are left: {left}")

    # ---- the daemons

    def _name(self, node: str) -> str:
        return f"{node}-daemons-test"

    def _write_config(self, node: str, key: str) -> None:
        other = "b" if node == "a" else "a"
        store = "sqlite" if node == "a" else f"peer:{self._name('a')}"
        (self.directory / f"{node}.toml").write_text(
            f'node = "{self._name(node)}"\nlisten = "127.0.0.1"\nport = {self.ports[node]}\nplain = true\nkey = "{key}"\n'
            f'state_dir = "{self.directory}/{node}"\nrun_dir = "{self.directory}/{node}.run"\nstore = "{store}"\n'
            f'peers = [{{name = "{self._name(other)}", address = "127.0.0.1:{self.ports[other]}"}}]\n')

    def _start(self, node: str) -> None:
        number = len(list(self.directory.glob(f"{node}.*.log")))
        daemon = Process([GODWITD, "--config", self.directory / f"{node}.toml"], self.directory / f"{node}.{number}.log")
        self.processes[node] = daemon
        daemon.wait_output("is up")

    def _end(self, node: str, number: int) -> int:
        daemon = self.processes[node]
        os.kill(daemon.popen.pid, number)
        return daemon.popen.wait(40)

    def _environment(self, node: str) -> dict:
        return os.environ | {"GODWIT_SOCKET": f"{self.directory}/{node}.run/godwit.sock", "TERM": "xterm"}

    def _godwit(self, node: str, *words, check: bool = True, input: str | None = None, seconds: float = 60):
        return command([GODWIT, *words], env=self._environment(node), check=check, input=input, seconds=seconds)

    def _code(self, node: str, *words) -> int:
        return self._godwit(node, *words, check=False).returncode

    # ---- cases

    def _run_exit_codes(self):
        for node in "ab":
            expect("exit code", self._code(node, "run", "--", "sh", "-c", "exit 7"), 7)
            expect("end by a signal", self._code(node, "run", "--", "sh", "-c", "kill -SEGV $$"), 139)
            expect("no program", self._code(node, "run", "--", "/bin/nothing-here"), 127)
            expect("no executable", self._code(node, "run", "--", "/etc/passwd"), 126)
            expect("usage", self._code(node, "run"), 2)
            expect("a limit that is none", self._code(node, "run", "--memory", "much", "--", "true"), 2)
        expect("on the other node", self._code("a", "run", "--node", self._name("b"), "--", "sh", "-c", "exit 9"), 9)
        expect("what is left", json.loads(self._godwit("a", "ps", "--json").stdout), [])

    def _streams(self):
        done = self._godwit("b", "run", "--", "sh", "-c", "echo out; echo err >&2; echo more")
        expect("stdout", done.stdout, "out\nmore\n")
        expect("stderr", done.stderr, "err\n")
        done = self._godwit("a", "run", "--env", "GREETING=hello world", "--hostname", "other", "-w", "/tmp", "--", "sh", "-c",
                            'echo "$GREETING"; hostname; pwd')
        expect("environment, host name, directory", done.stdout, "hello world\nother\n/tmp\n")

    def _input(self):
        text = "".join(f"line {number}\n" for number in range(300000))
        expect("bytes", self._godwit("a", "run", "-i", "--", "cat", input=text).stdout == text, True)
        expect("bytes by way of another node",
               self._godwit("a", "run", "-i", "--node", self._name("b"), "--", "cat", input=text).stdout == text, True)
        expect("end of input", self._godwit("b", "run", "-i", "--", "wc", "-c", input="four").stdout.strip(), "4")

    def _lists(self):
        self._godwit("b", "run", "--detach", "--name", "listed", "--", "sleep", "1000")
        for node in "ab":
            pods = {pod["name"]: pod for pod in json.loads(self._godwit(node, "ps", "--json").stdout)}
            expect("node", pods["listed"]["node"], self._name("b"))
            expect("state", pods["listed"]["state"], "running")
            expect("address", pods["listed"]["address"], "")
            nodes = {one["name"]: one["state"] for one in json.loads(self._godwit(node, "nodes", "--json").stdout)}
            expect("nodes", nodes, {self._name("a"): "ok", self._name("b"): "ok"})
            shown = json.loads(self._godwit(node, "inspect", "listed").stdout)
            expect("epoch", shown["epoch"], 1)
            expect("command", shown["command"], ["sleep", "1000"])
            expect("processes", [one["name"] for one in shown["processes"]], ["sleep"])
        expect("the name is taken", self._code("a", "run", "--name", "listed", "--", "true"), 125)
        self._godwit("a", "rm", "--force", "listed")

    def _exec(self):
        self._godwit("b", "run", "--detach", "--name", "host", "--env", "A=1", "--", "sleep", "1000")
        for node in "ab":
            done = self._godwit(node, "exec", "host", "--", "sh", "-c", "echo $A; echo err >&2; exit 5", check=False)
            expect("exec", (done.returncode, done.stdout, done.stderr), (5, "1\n", "err\n"))
            expect("no program", self._code(node, "exec", "host", "--", "/bin/nothing-here"), 127)
            text = "x" * 2_000_000
            expect("input", self._godwit(node, "exec", "-i", "host", "--", "cat", input=text).stdout == text, True)
            expect("a quick end", [self._code(node, "exec", "host", "--", "true") for _ in range(20)], [0] * 20)
            # Something left behind holds the streams open: not a reason to wait.
            expect("daemons", self._code(node, "exec", "host", "--", "sh", "-c", "sleep 1000 & exit 3"), 3)
        self._godwit("a", "rm", "--force", "host")
        expect("gone", self._code("a", "exec", "host", "--", "true"), 4)

    def _stop_kill_wait_rm(self):
        for node, other in ("ab", "ba"):
            self._godwit(node, "run", "--detach", "--name", "polite", "--", "sh", "-c", 'trap "exit 3" TERM; while :; do sleep 0.05; done')
            self._godwit(node, "run", "--detach", "--name", "stubborn", "--", "sh", "-c", 'trap "" TERM; echo deaf; while :; do sleep 0.05; done')
            wait_for("deaf", lambda: "deaf" in self._godwit(other, "logs", "stubborn").stdout)
            expect("rm of a running one is refused", self._code(other, "rm", "polite"), 3)
            self._godwit(other, "stop", "--time", "20", "polite")
            self._godwit(other, "stop", "--time", "0.2", "stubborn")
            expect("exit codes", [self._code(other, "wait", pod) for pod in ("polite", "stubborn")], [3, 137])
            self._godwit(other, "rm", "polite", "stubborn")
            expect("all gone", self._godwit(node, "ps", "--quiet").stdout, "")

    def _signals(self):
        for node in "ab":
            log = self.directory / f"signals.{node}.log"
            run = Process([GODWIT, "run", "--name", f"signals-{node}", "--", "sh", "-c",
                           'trap "exit 4" INT; trap "echo usr1" USR1; echo ready; while :; do sleep 0.05; done'], log, env=self._environment(node))
            run.wait_output("ready")
            self._godwit("a", "kill", "-s", "USR1", f"signals-{node}")
            run.wait_output("usr1")
            os.kill(run.popen.pid, signal.SIGINT)
            expect("exit code after SIGINT", run.popen.wait(20), 4)
        expect("no such signal", self._code("a", "kill", "-s", "NOTHING", "x"), 2)

    def _logs_follow(self):
        self._godwit("b", "run", "--detach", "--name", "counter", "--", "sh", "-c",
                     "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo $i; sleep 0.01; done")
        wanted = "".join(f"{number}\n" for number in range(1, 101))
        for node in "ab":
            expect(f"logs -f on {node}", self._godwit(node, "logs", "-f", "counter").stdout, wanted)
            expect(f"logs on {node}", self._godwit(node, "logs", "counter").stdout, wanted)
        lines = [json.loads(line) for line in self._godwit("a", "logs", "--json", "counter").stdout.splitlines()]
        expect("logs --json", "".join(line["text"] for line in lines), wanted)
        self._godwit("a", "rm", "counter")

    def _terminal(self):
        for node in "ab":
            where, pod = ["--node", self._name(node)], f"shell-{node}"
            shell = Terminal([GODWIT, "run", "-it", "--name", pod, *where, "--", "bash", "--norc"], self._environment("a"), 33, 101)
            shell.type("echo ready-$((1+1))\n")
            shell.until("ready-2")
            shell.type("stty size\n")
            shell.until("33 101")
            shell.resize(40, 90)
            shell.type("while [ \"$(stty size)\" != '40 90' ]; do :; done; echo resized-$((3+3)); tty\n")
            shell.until("resized-6")
            shell.until("/dev/pts/")
            shell.type("echo in-$((4+4)); sleep 1000\n")
            shell.until("in-8")
            wait_for("sleep", lambda: any(one["name"] == "sleep" for one in json.loads(self._godwit("a", "inspect", pod).stdout)["processes"]))
            shell.type("\x03")
            shell.type("echo code-$?\n")
            shell.until("code-130")
            shell.type("\x10\x11")
            shell.until("goes on")
            expect("detached", shell.finish(), 0)
            back = Terminal([GODWIT, "attach", pod], self._environment("b"), 24, 80)
            back.type("echo back-$((5+5))\n")
            back.until("back-10")
            back.type("exit 6\n")
            expect("exit code", back.finish(), 6)
            self._godwit("a", "rm", pod)
        expect("-t without one", self._code("a", "run", "-t", "--", "true"), 2)

    def _errors(self):
        expect("no such pod", self._code("a", "stop", "nobody"), 4)
        expect("no such pod", self._code("b", "logs", "nobody"), 4)
        expect("no such node", self._code("a", "run", "--node", "nowhere", "--", "true"), 125)
        expect("no daemon", self._code("a", "--socket", "/nowhere/godwit.sock", "ps"), 5)
        expect("no such command", self._code("a", "fly"), 2)
        expect("no such option", self._code("a", "ps", "--fast"), 2)
        self._godwit("a", "run", "--detach", "--name", "staying", "--", "sleep", "1000")
        expect("no such destination", self._code("b", "migrate", "staying", "nowhere"), 4)
        expect("where it is", self._code("b", "migrate", "staying", self._name("a")), 3)
        expect("no such strategy", self._code("a", "migrate", "--strategy", "magic", "staying", self._name("b")), 2)
        expect("no migration to cancel", self._code("a", "migrate", "--cancel", "staying"), 4)
        done = self._godwit("a", "stop", "nobody", "--json", check=False)
        expect("the error as JSON", json.loads(done.stdout)[0]["error"]["kind"], "not_found")
        expect("one line", len(done.stderr.strip().splitlines()), 1)
        self._godwit("a", "rm", "--force", "staying")

    def _config_errors(self):
        config = self.directory / "wrong.toml"
        config.write_text('node = "x"\nspeed = 9\n')
        done = command([GODWITD, "--config", config], check=False, seconds=10)
        expect("exit code", done.returncode, 2)
        if f"{config}:2: unknown key 'speed'" not in done.stderr:
            raise Failure(f"the line is not named: {done.stderr}")
        expect("no such file", command([GODWITD, "--config", "/nowhere.toml"], check=False, seconds=10).returncode, 2)

    def _wrong_key(self):
        expect("end", self._end("b", signal.SIGTERM), 0)
        self._write_config("b", "quite another key")
        try:
            self._start("b")
            states = {one["name"]: one["state"] for one in json.loads(self._godwit("a", "nodes", "--json").stdout)}
            expect("node b, as a sees it", states[self._name("b")], "refused")
            expect("its store is not to be had", self._code("b", "run", "--", "true"), 125)
            if "wrong key" not in self.processes["a"].output():
                raise Failure("a's log doesn't say who was turned away")
        finally:
            self._end("b", signal.SIGTERM)
            self._write_config("b", KEY)
            self._start("b")

    def _second_daemon(self):
        done = command([GODWITD, "--config", self.directory / "a.toml"], check=False, seconds=10)
        expect("exit code", done.returncode, 1)
        if "another godwitd uses" not in done.stderr:
            raise Failure(f"it doesn't say why: {done.stderr}")
        expect("the first goes on", self._code("a", "ps"), 0)

    def _killed_daemon(self):
        self._godwit("b", "run", "--detach", "--name", "survivor", "--", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done")
        self._godwit("b", "run", "--detach", "--name", "meanwhile", "--", "sh", "-c", "read x < /dev/zero; sleep 0.5; exit 5")
        log = self.directory / "survivor.log"
        follow = Process([GODWIT, "logs", "-f", "survivor"], log, env=self._environment("a"))
        follow.wait_output("5\n")
        before = json.loads(self._godwit("a", "inspect", "survivor").stdout)
        self._end("b", signal.SIGKILL)
        states = {pod["name"]: pod["state"] for pod in json.loads(self._godwit("a", "ps", "--json").stdout)}
        expect("state, as a sees it", states["survivor"], "unreachable")
        expect("exit code", self._code("a", "stop", "survivor"), 5)
        self._start("b")
        after = json.loads(self._godwit("a", "inspect", "survivor").stdout)
        expect("init and first program", (after["init"], after["processes"][0]["host_pid"]), (before["init"], before["processes"][0]["host_pid"]))
        lines = len(log.read_text().splitlines())
        wait_for("more output", lambda: len(log.read_text().splitlines()) > lines + 10)
        self._godwit("a", "kill", "-s", "KILL", "survivor", "meanwhile")
        expect("logs -f", follow.popen.wait(20), 0)
        numbers = [int(line) for line in log.read_text().split()]
        expect("the output is whole", numbers, list(range(1, len(numbers) + 1)))
        self._godwit("a", "wait", "survivor", "meanwhile", check=False)
        self._godwit("a", "rm", "survivor", "meanwhile")

    def _store_away(self):
        self._godwit("b", "run", "--detach", "--name", "alone", "--", "sleep", "1000")
        self._end("a", signal.SIGKILL)
        try:
            done = self._godwit("b", "ps", "--json", check=False)
            expect("exit code", done.returncode, 7)
            if "store" not in done.stderr:
                raise Failure(f"it doesn't say that the store is away: {done.stderr}")
            wanted = [("alone", "running", "away")]
            expect("its own pods", [(pod["name"], pod["state"], pod["store"]) for pod in json.loads(done.stdout)], wanted)
            done = self._godwit("b", "nodes", "--json", check=False)
            expect("exit code", done.returncode, 7)
            expect("nodes", {one["name"]: one["state"] for one in json.loads(done.stdout)}, {self._name("a"): "unreachable", self._name("b"): "ok"})
            expect("exec goes on", self._code("b", "exec", "alone", "--", "true"), 0)
            expect("nothing new begins", self._code("b", "run", "--", "true"), 125)
            # A daemon that starts now can't ask whose the pod is; it runs on, as it was running.
            self._end("b", signal.SIGKILL)
            self._start("b")
            pods = json.loads(self._godwit("b", "ps", "--json", check=False).stdout)
            expect("after a restart", [(pod["name"], pod["state"], pod["store"]) for pod in pods], wanted)
        finally:
            self._start("a")
        wait_for("the store", lambda: self._code("b", "rm", "--force", "alone") == 0, 20)

    def _sigterm(self):
        self._godwit("a", "run", "--detach", "--name", "staying", "--", "sleep", "1000")
        pid = json.loads(self._godwit("a", "inspect", "staying").stdout)["processes"][0]["host_pid"]
        expect("exit code", self._end("a", signal.SIGTERM), 0)
        os.kill(pid, 0)
        self._start("a")
        expect("state", json.loads(self._godwit("a", "inspect", "staying").stdout)["state"], "running")
        self._godwit("a", "rm", "--force", "staying")
