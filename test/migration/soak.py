"""Round and round three nodes under load: no client sees an error, and nothing on any node grows."""

from __future__ import annotations

import itertools

import servers
from harness import Case, Failure, Suite, wait_for
from migration import load
from migration.cluster import STRATEGIES, Cluster

SHORT, LONG = 54, 1008  # moves; all strategies in turn, and back to the first node
WARM_UP = 18            # moves after which caches, pools and arenas have what they need
# What may be more at the end, whatever the number of moves: arenas of threads that come and go (KiB), and connections to the store that are kept open, each with
# a thread that serves it.
ALLOWED = {"memory": 16 * 1024, "descriptors:socket": 4, "threads": 4}
# What stands on a node, and how many of each. Run there, by a shell: name and number in each line.
COUNT = r"""
daemon=$(pgrep -xo godwitd)
for fd in /proc/$daemon/fd/*; do readlink $fd; done | sed 's/:\[[0-9]*\]//; s/ /_/g; s/^/descriptors:/' | sort | uniq -c
echo threads $(ls /proc/$daemon/task | wc -l)
echo memory $(grep VmRSS /proc/$daemon/status | tr -dc 0-9)
for comm in /proc/[0-9]*/comm; do cat $comm 2>/dev/null; done | sed 's/ /_/g; s/^/processes:/' | sort | uniq -c
echo mounts $(wc -l < /proc/self/mounts)
echo devices $(ls /sys/class/net | wc -l)
echo neighbours $(ip neigh | grep -c PERMANENT)
echo files $(find /var/lib/godwit/pods /run/godwit -xdev -path '*/log/*' -prune -o -print 2>/dev/null | wc -l)
echo cgroups $(find $(grep cgroup2 /proc/self/mounts | cut -d' ' -f2 | head -1) -type d 2>/dev/null | wc -l)
"""


class Soak(Suite):
    name = "soak"

    def cases(self):
        return [Case("redis", self._redis)]

    def setup(self):
        self.cluster = Cluster("soak")
        self.cluster.up()

    def teardown(self):
        self.cluster.down()

    def _counted(self) -> dict[str, dict[str, int]]:
        found = {}
        for node in self.cluster.nodes:
            lines = self.cluster.exec(node, "sh", "-c", COUNT).stdout.splitlines()
            # uniq says the number first.
            words = (line.split() for line in lines)
            found[node] = {one if two.isdigit() else two: int(two if two.isdigit() else one) for one, two in words}
        return found

    def _grown(self, before: dict, after: dict) -> list[str]:
        """What there is more of. All else is to be what it was, to the last descriptor."""
        return [f"{node}: {name} {before[node].get(name, 0)} -> {count}" for node, counts in after.items() for name, count in counts.items()
                if count > before[node].get(name, 0) + ALLOWED.get(name, 0)]

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
            before = self._counted()
            go(moves // 18 * 18)
            # What is on its way out is given a moment.
            wait_for("everything to be as before: " + "; ".join(self._grown(before, self._counted())), lambda: not self._grown(before, self._counted()), 30, step=1)
            summary = client.finish()
            if summary["errors"]:
                raise Failure(f"{summary['errors']} errors in {summary['requests']} requests: " + "; ".join(summary["messages"]))
            after = self._counted()
            memory = {node: [before[node]["memory"], after[node]["memory"]] for node in cluster.nodes}
            print(f"     soak: {len(freezes)} moves, {summary['requests']} requests, 0 errors; the daemons' memory {memory} KiB", flush=True)
            return {"moves": len(freezes), "requests": summary["requests"], "daemon_kib": memory}
        finally:
            if client:
                client.end()
            cluster.remove(pod)
