"""Whether a pod could ever run in two places: its processes are looked at on all nodes, all the time."""

from __future__ import annotations

import contextlib
import pathlib
import threading
import time

from harness import Failure
from migration.cluster import Cluster

PERIOD_S = 0.01
SIGKILL_BIT = 1 << 8
PF_EXITING = 0x4


def _cgroup2() -> pathlib.Path:
    for line in pathlib.Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return pathlib.Path(where)
    raise Failure("no cgroup2 is mounted")


class NeverTwice:
    """While it is entered. A copy can run when no freezer holds it, nobody traces it, and it isn't dying; before it is what it was at the source it bears
    another name. Two that could at one moment are a failure, whether they did anything or not."""

    def __init__(self, cluster: Cluster, pod: str, name: str):
        self._name, self._looks, self._seen = name, 0, ""
        self._works = {}
        for node in cluster.nodes:
            group = next(line for line in open(f"/proc/{cluster.host_pid(node)}/cgroup", encoding="utf-8") if line.startswith("0::"))
            top = _cgroup2() / group.strip()[3:].lstrip("/").removesuffix("/init")
            self._works[node] = top / "godwit" / node / "pods" / pod / "work"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        if not any(self._running(node) for node in self._works):
            raise Failure(f"nobody named {self._name} is seen to run: nothing could be found here")
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def looks(self) -> int:
        """How often it has looked. Fails when two copies could run at one of these moments."""
        if self._seen:
            raise Failure(f"two copies could run: {self._seen}")
        return self._looks

    def _watch(self) -> None:
        while not self._over.wait(PERIOD_S) and not self._seen:
            self._looks += 1
            found: dict[int, str] = {}
            for node in self._works:
                for inner, pid in self._running(node).items():
                    other = found.setdefault(inner, node)
                    # The other one was looked at a moment ago: it counts if it still could.
                    if other != node and inner in self._running(other):
                        self._seen = f"process {inner} on {other} and on {node} (pid {pid}) at {time.strftime('%H:%M:%S')}"

    def _running(self, node: str) -> dict[int, int]:
        """Pids in the pod, and here, of those that could run."""
        work, found = self._works[node], {}
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile, which isn't running
            if "frozen 1" in (work / "cgroup.events").read_text():
                return {}
            for pid in (work / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError, ValueError):
                    if (inner := self._inner(int(pid))) is not None:
                        found[inner] = int(pid)
        return found

    def _inner(self, pid: int) -> int | None:
        fields = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        killed = (int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)) & SIGKILL_BIT
        if fields["Name"] != self._name or fields["TracerPid"] != "0" or fields["State"][0] in "ZX" or killed:
            return None
        flags = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
        return None if flags & PF_EXITING else int(fields["NSpid"].split()[-1])
