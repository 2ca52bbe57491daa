"""A playground, and the command on its nodes, as a user has them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import socket
import subprocess
import threading
import zlib

from harness import BUILD, ROOT, Failure, Skip, command, wait_for
from migration import proc

GODWIT = BUILD / "godwit"
STRATEGIES = ("freeze", "precopy", "postcopy", "hybrid", "eager-dirty", "auto")


class CommandError(Failure):
    """The command refused or failed; `code` is its exit code and `text` what it said."""

    def __init__(self, arguments, done):
        self.code, self.text = done.returncode, (done.stdout + done.stderr).strip()
        said = self.text
        with contextlib.suppress(Failure, AttributeError):  # of a report only what matters here
            report = json_in(done.stdout)
            error = report.get("error", "")
            # A report says why in a word; a request that came to no report has an object as the API gives it.
            error = error.get("message", "") if isinstance(error, dict) else error
            said = "\n".join([error or done.stderr.strip(), *report.get("refusals", [])])
        super().__init__(f"exit code {self.code}: {' '.join(str(one)[:100] for one in arguments)}: {said[-4000:]}")


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


class _Api(http.client.HTTPConnection):
    """HTTP over a Unix socket, of which only a path through /proc is known."""

    def __init__(self, path: str, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Cluster:
    def __init__(self, name: str, nodes: int = 3, options: tuple = ()):
        # Of this checkout: another one's tests may run beside it.
        self.name = f"{name}-{zlib.crc32(str(ROOT).encode()) & 0xFFFF:04x}"
        self.count, self.options = nodes, options
        self.nodes = [chr(ord("a") + number) for number in range(nodes)]
        self._lock = threading.Lock()
        self._pids: dict[str, int] = {}

    # ---- the machines

    def playground(self, *words, seconds: float = 60, check: bool = True):
        action, *rest = words
        return command([GODWIT, "playground", action, "--name", self.name, *rest], seconds=seconds, check=check)

    def up(self) -> None:
        for binary in (GODWIT, BUILD / "godwitd"):
            if not binary.exists():
                raise Failure(f"{binary} was not built")
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

    def api(self, node: str, method: str, path: str, body: dict | None = None, seconds: float = 30) -> http.client.HTTPResponse:
        """Asks a node's daemon directly: for what is asked often, and for what the command doesn't show."""
        connection = _Api(f"/proc/{self.host_pid(node)}/root/run/godwit/godwit.sock", seconds)
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body), headers={"Content-Type": "application/json"})
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"{method} {path} on {node}: {error}") from None

    def host_pid(self, node: str) -> int:
        if node not in self._pids:
            self._pids = {host["name"]: host["pid"] for host in self.status()["hosts"]}
        return self._pids[node]

    def daemon_pid(self, node: str) -> int:
        return next(host["daemon"]["pid"] for host in self.status()["hosts"] if host["name"] == node)

    def daemon_state(self, node: str) -> str:
        return next(host["daemon"]["state"] for host in self.status()["hosts"] if host["name"] == node)

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

    def pods(self, node: str = "a") -> dict[str, dict]:
        response = self.api(node, "GET", "/v1/pods")
        answer = json.loads(response.read())
        if response.status != 200:
            raise Failure(f"GET /v1/pods on {node}: {answer}")
        return {pod["name"]: pod for pod in answer["pods"]}

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
        return proc.pod_processes(self.name, pod)

    def alone(self, pod: str) -> bool:
        """Whether each of the pod's processes exists once only, and there are some."""
        inner = []
        for pid in self.processes(pod):
            with contextlib.suppress(proc.Gone):
                inner.append(proc.inner_pid(pid))
        return bool(inner) and len(inner) == len(set(inner))

    def traces(self, node: str, pod: str) -> list[str]:
        """What a node has of a pod: directory, socket, cgroups with what is in them, network ports (of any pod: their names don't tell whose)."""
        root = f"/proc/{self.host_pid(node)}/root"
        found = [place for place in (f"/var/lib/godwit/pods/{pod}", f"/run/godwit/pods/{pod}.sock") if os.path.lexists(root + place)]
        script = f"find /sys/fs/cgroup -path '*/godwit/{node}/pods/{pod}*' -type d -o -name 'godwit-{node}-{pod}-*' -type d; ls /sys/class/net | grep '^gw-'"
        return found + self.exec(node, "sh", "-c", script, check=False).stdout.split()

    def drained(self, pod: str, node: str, seconds: float = 60) -> None:
        """Waits until a pod is in one place only, and thawed there."""

        def settled():
            state = self.pod(pod)
            if state["state"] == "exited":
                raise Failure(f"{pod} has ended with {state.get('exit_code')}")
            return self.alone(pod) and state["node"] == node

        wait_for(f"{pod} to be on {node} only", settled, seconds, step=0.05)


class Migration:
    """A migration on its way, with its progress as it comes; for those who interfere."""

    def __init__(self, cluster: Cluster, pod: str, to: str, strategy: str, node: str = "a"):
        self.phases: list[str] = []
        self.last: dict = {}
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._read, args=(cluster, pod, to, strategy, node), daemon=True)
        self._thread.start()

    def _read(self, cluster: Cluster, pod: str, to: str, strategy: str, node: str) -> None:
        try:
            response = cluster.api(node, "POST", f"/v1/pods/{pod}/migrate", {"destination": to, "strategy": strategy}, seconds=180)
            while line := response.readline():
                self._take(json.loads(line))
            if not self.last:
                raise OSError("it said no last word")
        except (OSError, http.client.HTTPException, ValueError, Failure) as error:
            self._take({"error": {"message": f"the daemon went away: {error}"}})
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _take(self, line: dict) -> None:
        with self._changed:
            if "progress" in line:
                self.phases.append(line["progress"]["phase"])
            else:
                self.last |= line
            self._changed.notify_all()

    def wait_phase(self, phase: str, seconds: float = 30) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._over or phase in self.phases, seconds):
                raise Failure(f"waited {seconds} s for phase {phase}; had {sorted(set(self.phases))}")
            if phase not in self.phases and "error" in self.last:
                raise Failure(f"the migration failed before phase {phase}: {json.dumps(self.last)[:2000]}")
            if phase not in self.phases:
                raise Skip(f"the migration was over without being seen in phase {phase}; it said {json.dumps(self.last)[:300]}")

    def over(self) -> bool:
        return self._over

    def finish(self, seconds: float = 60) -> dict:
        """The last that it said: `report`, and `error` if it didn't go well."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise Failure(f"the migration has no end after {seconds} s; phases {sorted(set(self.phases))}")
        return self.last
