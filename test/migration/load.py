"""Load from the host `client`: the strict client, and what it says about each move."""

from __future__ import annotations

import json
import pathlib
import subprocess
import tempfile

import servers
from harness import BUILD, Failure, wait_for
from migration.cluster import Cluster


class Load:
    """A load client on the host `client`, with connections that are never made anew. Ends when told to."""

    def __init__(self, cluster: Cluster, server: servers.Server, address: str, *options):
        cluster.provide(BUILD / "loadclient")
        words = server.client(address, "--until-eof", "--bins", *options)
        self.errors = tempfile.TemporaryFile()
        self.popen = subprocess.Popen(cluster.exec_words("client", *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        wait_for("the load client", self._ready, 120)

    def _said(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def _ready(self) -> bool:
        if self.popen.poll() is not None:
            raise Failure(f"the load client ended at once: {self._said()}")
        return "ready\n" in self._said()

    def finish(self) -> dict:
        """What it has seen, when all that it has asked is answered."""
        output, _ = self.popen.communicate(timeout=100)
        try:
            return json.loads(output)
        except json.JSONDecodeError:
            raise Failure(f"the load client says nothing: {self._said()}") from None

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()


def longest(summary: dict, begin_us: int, end_us: int) -> int:
    """The longest request (µs) that was under way between two instants (CLOCK_REALTIME, µs)."""
    start = summary["started_us"]
    found = [took for at, _, took in summary["bins"] if start + at * 1000 <= end_us and start + (at + 1) * 1000 + took >= begin_us]
    return max(found, default=0)


def listening(cluster: Cluster, pod: str, address: str, port: int, seconds: float = 30) -> None:
    """Waits until the pod's server accepts connections from the client's side."""
    probe = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)"

    def accepts():
        if cluster.pod(pod)["state"] == "exited":
            raise Failure(f"{pod} has ended: {cluster.logs(pod)[-2000:]}")
        return cluster.exec("client", "python3", "-c", probe, address, port, check=False).returncode == 0

    wait_for(f"port {port} of {pod}", accepts, seconds, step=0.1)


def start(cluster: Cluster, server: servers.Server, pod: str, node: str = "a", *options) -> str:
    """Starts a server as a pod, waits until it serves, and gives its address."""
    cluster.run(node, pod, server.command, *options)
    address = cluster.address(pod)
    listening(cluster, pod, address, server.port)
    return address
