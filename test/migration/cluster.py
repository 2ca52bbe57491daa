"""A playground, and the command on its nodes, as a user has them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import threading
import time

from harness import BUILD, Failure, Skip, command, say, wait_for
from migration import proc

GODWIT = BUILD / "godwit"
STRATEGIES = ("freeze", "precopy", "postcopy", "hybrid", "eager-dirty", "auto")


class CommandError(Failure):
    """The command refused or failed; `code` is its exit code and `text` what it said."""

    def __init__(self, arguments, done):
        self.code, self.text = done.returncode, (done.stdout + done.stderr).strip()
        super().__init__(f"{' '.join(str(one)[:200] for one in arguments)}: exit code {done.returncode}\n{self.text[-4000:]}")


def json_in(text: str):
    """The JSON in a command's output: the whole, or its last line that is an object."""
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(text)
    for line in reversed(text.splitlines()):
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
    raise Failure(f"no JSON in: {text[-2000:]!r}")


class Cluster:
    def __init__(self, name: str, nodes: int = 3, options: tuple = ()):
        self.name, self.count, self.options = name, nodes, options
        self.nodes = [chr(ord("a") + number) for number in range(nodes)]
        self._lock = threading.Lock()

    # ---- the machines

    def playground(self, *words, seconds: float = 60, check: bool = True):
        action, *rest = words
        return command([GODWIT, "playground", action, "--name", self.name, *rest], seconds=seconds, check=check)

    def up(self) -> None:
        if not GODWIT.exists():
            raise Skip("there is no build/godwit")
        self.playground("down", check=False)
        self.playground("up", "--nodes", self.count, *self.options, seconds=120)

    def down(self) -> None:
        self.playground("down", seconds=120)

    def status(self) -> dict:
        return json_in(self.playground("status", "--json").stdout)

    def heal(self) -> list[str]:
        """Starts daemons that have died, and says which: that is worth a failure of whoever was running."""
        with self._lock:
            dead = [host["name"] for host in self.status()["hosts"] if host.get("daemon", {}).get("state") == "stopped"]
            for node in dead:
                self.daemon("start", node)
            return dead

    def daemon(self, action: str, node: str) -> None:
        self.playground("daemon", action, node)

    def link(self, host: str, setting: str) -> None:
        self.playground("link", host, setting)

    def exec_words(self, host: str, *words) -> list[str]:
        return [str(word) for word in (GODWIT, "playground", "exec", "--name", self.name, host, "--", *words)]

    def exec(self, host: str, *words, seconds: float = 60, check: bool = True, input: str | None = None):
        done = command(self.exec_words(host, *words), seconds=seconds, check=False, input=input)
        if check and done.returncode != 0:
            raise CommandError(words, done)
        return done

    def provide(self, path: pathlib.Path) -> str:
        """Makes sure that a file of this machine is on every host under the same path."""
        for host in [*self.nodes, "client"]:
            if self.exec(host, "test", "-r", path, check=False).returncode != 0:
                with open(path, "rb") as content:
                    script = f"mkdir -p '{path.parent}' && cat > '{path}' && chmod 755 '{path}'"
                    subprocess.run(self.exec_words(host, "sh", "-c", script), stdin=content, check=True, timeout=60)
        return str(path)

    def daemon_log(self, node: str, lines: int = 40) -> str:
        return self.exec(node, "tail", "-n", lines, "/var/log/godwitd.log", check=False).stdout

    # ---- pods

    def godwit(self, node: str, *words, seconds: float = 60, check: bool = True):
        return self.exec(node, "godwit", *words, seconds=seconds, check=check)

    def run(self, node: str, pod: str, words: list, *options) -> None:
        self.godwit(node, "run", "--detach", "--name", pod, *options, "--", *words)

    def pods(self) -> dict[str, dict]:
        answer = json_in(self.godwit("a", "ps", "--all", "--json").stdout)
        return {pod["name"]: pod for pod in (answer if isinstance(answer, list) else answer.get("pods", []))}

    def pod(self, name: str) -> dict:
        pods = self.pods()
        if name not in pods:
            raise Failure(f"no pod {name}; there are {sorted(pods)}")
        return pods[name]

    def address(self, pod: str) -> str:
        return self.pod(pod)["address"]

    def logs(self, pod: str, node: str = "a") -> str:
        return self.godwit(node, "logs", pod).stdout

    def wait_logs(self, pod: str, text: str, node: str = "a", seconds: float = 30) -> None:
        def seen():
            output = self.logs(pod, node)
            if text in output:
                return True
            state = self.pod(pod)
            if state["state"] == "exited":
                raise Failure(f"{pod} has ended with {state.get('exit_code')} before it said {text!r}: {output[-2000:]}")
            return False

        wait_for(f"{text!r} of {pod}", seen, seconds, step=0.05)

    def migrate(self, pod: str, to: str, strategy: str = "auto", *options, node: str = "a", seconds: float = 120) -> dict:
        """Moves a pod and gives the report; CommandError if it didn't move."""
        done = self.godwit(node, "migrate", pod, to, "--strategy", strategy, "--json", *options, seconds=seconds)
        report = json_in(done.stdout)
        return report.get("report", report)

    def signal(self, pod: str, signal: str, node: str = "a") -> None:
        self.godwit(node, "kill", "-s", signal, pod)

    def wait_exit(self, pod: str, seconds: float = 30) -> int:
        return wait_for(f"the end of {pod}", lambda: (state := self.pod(pod))["state"] == "exited" and (state.get("exit_code", -1),), seconds,
                        step=0.05)[0]

    def remove(self, pod: str) -> None:
        self.godwit("a", "rm", "--force", pod, check=False, seconds=30)

    def processes(self, pod: str) -> list[int]:
        return proc.pod_processes(pod)

    def drained(self, pod: str, node: str, seconds: float = 60) -> None:
        """Waits until a pod is in one place only, and thawed there."""

        def settled():
            pids = [proc.inner_pid(pid) for pid in self.processes(pod)]
            return pids and len(pids) == len(set(pids)) and self.pod(pod)["node"] == node

        wait_for(f"{pod} to be on {node} only", settled, seconds, step=0.05)


class Migration:
    """A migration on its way, with its progress as it comes; for those who interfere."""

    def __init__(self, cluster: Cluster, pod: str, to: str, strategy: str, node: str = "a"):
        self.lines: list[dict] = []
        self._changed = threading.Condition()
        self._over = False
        words = cluster.exec_words(node, "godwit", "migrate", pod, to, "--strategy", strategy, "--json", "--progress")
        self.popen = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.popen.stdout:
            with contextlib.suppress(json.JSONDecodeError), self._changed:
                self.lines.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait_phase(self, phase: str, seconds: float = 30) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._over or any(line.get("phase") == phase for line in self.lines), seconds):
                raise Failure(f"waited {seconds} s for phase {phase}; had {[line.get('phase') for line in self.lines]}")
            if not any(line.get("phase") == phase for line in self.lines):
                raise Skip(f"the migration was over without being seen in phase {phase}")

    def finish(self, seconds: float = 60) -> tuple[int, str]:
        """Exit code, and all that it said."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise Failure(f"the migration command did not end in {seconds} s; it said {self.lines[-3:]}") from None
        self._reader.join(5)
        return code, "\n".join(json.dumps(line) for line in self.lines) + self.popen.stderr.read()


def alone(pod: str) -> bool:
    """Whether each of the pod's processes exists once only, and it runs."""
    inner = [proc.inner_pid(pid) for pid in proc.pod_processes(pod)]
    return bool(inner) and len(inner) == len(set(inner))
