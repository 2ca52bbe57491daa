"""What the machine can do without godwit, measured in the same run."""

from __future__ import annotations

import json
import os
import subprocess

from harness import BUILD, Failure, command
from migration.cluster import Cluster

RAW = BUILD / "bench/rawspeed"


def _pair(cluster: Cluster, server: list, client: list) -> tuple[dict, dict]:
    """Runs a server on b and its client on a; what each says."""
    there = subprocess.Popen(cluster.exec_words("b", RAW, *server), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        if "listening" not in there.stderr.readline():
            raise Failure("rawspeed does not listen")
        here = json.loads(cluster.exec("a", RAW, *client, seconds=300).stdout)
        output, _ = there.communicate(timeout=60)
        return here, json.loads(output) if output.strip() else {}
    finally:
        if there.poll() is None:
            there.kill()
            there.wait()


def address_of(cluster: Cluster, node: str) -> str:
    return next(host["address"] for host in cluster.status()["hosts"] if host["name"] == node)


def tcp(cluster: Cluster, mib: int = 1024) -> dict:
    """One stream from a to b: bytes per second, and the processor seconds of both ends for each GiB."""
    sent, received = _pair(cluster, ["receive", 5201], ["send", address_of(cluster, "b"), 5201, mib])
    return {"bytes_per_second": sent["bytes"] / sent["seconds"], "processor_per_gib": (sent["processor"] + received["processor"]) * 1024 / mib}


def round_trip(cluster: Cluster) -> dict:
    return _pair(cluster, ["answer", 5202], ["ask", address_of(cluster, "b"), 5202, 5000])[0]


def pipeline(cluster: Cluster) -> dict:
    """Processor seconds that a GiB costs at least: read it, send and receive it, fill it in; and the shortest time that gives."""
    read = json.loads(command([RAW, "read", 1024], seconds=120).stdout)
    fill = json.loads(command([RAW, "fill", 1024], seconds=120).stdout)
    wire = tcp(cluster)
    total = read["processor"] + fill["processor"] + wire["processor_per_gib"]
    return {"read": read["processor"], "send_and_receive": wire["processor_per_gib"], "fill": fill["processor"], "total": total,
            "seconds": total / os.cpu_count(), "wire": wire}
