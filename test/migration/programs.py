"""Real programs under load: ten moves round three nodes with each strategy, and a client that forgives nothing."""

from __future__ import annotations

import re
import subprocess
import time

import servers
from harness import Case, Failure, Suite
from migration import load
from migration.cluster import STRATEGIES, Cluster

MOVES = 10


class Programs(Suite):
    name = "programs"

    def cases(self):
        long = self.options.long
        kinds = [
            ("redis", lambda: servers.redis(fill_mib=256 if long else 64)),
            ("memcached", lambda: servers.memcached(fill_mib=64 if long else 16)),
            ("nginx", servers.nginx),
            ("python", servers.python),
        ]
        if long:
            kinds.append(("redis-1GiB", lambda: servers.redis(fill_mib=1024)))
        return [Case(f"{name}/{strategy}", lambda m=make, n=name, s=strategy: self._round(n, m(), s)) for name, make in kinds for strategy in STRATEGIES]

    def setup(self):
        self.cluster = Cluster("programs")
        self.cluster.up()

    def teardown(self):
        self.cluster.down()

    def _round(self, name: str, server: servers.Server, strategy: str) -> dict:
        cluster, pod = self.cluster, f"{name.lower()}-{strategy}"
        client = wrk = None
        reports, gaps = [], []
        try:
            address = load.start(cluster, server, pod)
            client = load.Load(cluster, server, address, "--rate", 2000, "--connections", 16)
            if server.name == "nginx":
                words = cluster.exec_words("client", "wrk", "-t1", "-c16", "-d600s", "--timeout", "20s", f"http://{address}:{server.port}/")
                wrk = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            times = []
            for move in range(MOVES):
                here, there = cluster.nodes[move % 3], cluster.nodes[(move + 1) % 3]
                begin = time.time_ns() // 1000
                reports.append(cluster.migrate(pod, there, strategy, node=here))
                cluster.drained(pod, there)
                times.append((begin, time.time_ns() // 1000))
            if wrk:
                self._content_with_wrk(cluster, wrk)
                wrk = None
            summary = client.finish()
            if summary["errors"] or summary["requests"] < 100:
                raise Failure(f"{summary['errors']} connections broke after {summary['requests']} requests: " + "; ".join(summary["messages"]))
            gaps = [load.longest(summary, *between) for between in times]
            if cluster.pod(pod)["state"] != "running":
                raise Failure(f"{pod} does not run any more: {cluster.logs(pod)[-1000:]}")
        except Failure as failure:
            dead = cluster.heal()
            note = f"\ngodwitd died on {', '.join(dead)}:\n" + "\n".join(cluster.daemon_log(node) for node in dead) if dead else ""
            done = f"after {len(reports)} moves: "
            raise Failure(done + str(failure) + note + self._broken(client)) from None
        finally:
            if client:
                client.end()
            if wrk:
                wrk.kill()
                wrk.wait()
            cluster.remove(pod)
        return {"freeze_us": [report["freeze_us"] for report in reports], "gap_us": gaps}

    @staticmethod
    def _broken(client) -> str:
        if client is None or client.popen.poll() is None:
            return ""
        return f"\n{client._said()[-2000:]}"

    @staticmethod
    def _content_with_wrk(cluster: Cluster, wrk: subprocess.Popen) -> None:
        wrk.send_signal(2)
        output, _ = wrk.communicate(timeout=30)
        requests = re.search(r"(\d+) requests in", output)
        if not requests or int(requests[1]) < 100 or "Socket errors" in output or "Non-2xx" in output:
            raise Failure(f"wrk is not content: {output}")
