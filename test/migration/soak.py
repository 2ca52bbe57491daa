"""Round and round three nodes under load: no client sees an error, and nothing on any node grows."""

from __future__ import annotations

import itertools

import servers
from harness import Case, Failure, Suite
from migration import inventory, load
from migration.cluster import STRATEGIES, Cluster

SHORT, LONG = 54, 1008  # moves; all strategies in turn, and back to the first node
WARM_UP = 18            # moves after which caches, pools and arenas have what they need


class Soak(Suite):
    name = "soak"

    def cases(self):
        return [Case("redis", self._redis)]

    def setup(self):
        self.cluster = Cluster("soak")
        self.cluster.up()

    def teardown(self):
        self.cluster.down()

    def _redis(self) -> dict:
        cluster, pod = self.cluster, "soaked"
        moves = LONG if self.options.long else SHORT
        client = None
        try:
            server = servers.redis(fill_mib=16)
            client = load.Load(cluster, server, load.start(cluster, server, pod), "--rate", 1000, "--connections", 16)
            strategies = itertools.cycle(STRATEGIES)
            freezes, before = [], {}

            def go(count: int) -> None:
                for _ in range(count):
                    here = cluster.pod(pod)["node"]
                    there = cluster.nodes[(cluster.nodes.index(here) + 1) % 3]
                    freezes.append(cluster.migrate(pod, there, next(strategies), node=here)["freeze_us"])
                    cluster.drained(pod, there)
                    if len(freezes) % 100 == 0:
                        print(f"     soak: {len(freezes)} moves", flush=True)

            go(WARM_UP)
            before = inventory.take(cluster, cluster.nodes)
            go(moves // 18 * 18)
            # What is on its way out is given a moment.
            inventory.wait_same(cluster, before, 30)
            summary = client.finish()
            if summary["errors"]:
                raise Failure(f"{summary['errors']} errors in {summary['requests']} requests: " + "; ".join(summary["messages"]))
            after = inventory.take(cluster, cluster.nodes)
            memory = {node: [before[node]["memory"], after[node]["memory"]] for node in cluster.nodes}
            print(f"     soak: {len(freezes)} moves, {summary['requests']} requests, 0 errors; the daemons' memory {memory} KiB", flush=True)
            return {"moves": len(freezes), "requests": summary["requests"], "daemon_kib": memory}
        finally:
            if client:
                client.end()
            cluster.remove(pod)
