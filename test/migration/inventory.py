"""What stands on a node, and how many of each: taken before and after, it tells what was left behind."""

from __future__ import annotations

from collections.abc import Iterable

from harness import Failure, wait_for
from migration.cluster import Cluster

# What may be more at the end, whatever the number of moves: arenas of threads that come and go (KiB), and connections to the store that are kept open, each with
# a thread that serves it.
ALLOWED = {"memory": 16 * 1024, "descriptors:socket": 4, "threads": 4}
# What stands on a node, and how many of each. Run there, by a shell: name and number in each line.
COUNT = r"""
daemon=$(pgrep -xo 'godwitd(-faults)?')
for fd in /proc/$daemon/fd/*; do readlink $fd; done | sed 's/:\[[0-9]*\]//; s/ /_/g; s/^/descriptors:/' | sort | uniq -c
echo threads $(ls /proc/$daemon/task | wc -l)
echo memory $(grep VmRSS /proc/$daemon/status | tr -dc 0-9)
for comm in /proc/[0-9]*/comm; do cat $comm 2>/dev/null; done | grep -vx 'cat\|sed\|grep\|sort\|uniq' | sed 's/ /_/g; s/^/processes:/' | sort | uniq -c
echo mounts $(wc -l < /proc/self/mounts)
echo devices $(ls /sys/class/net | wc -l)
echo neighbours $(ip neigh | grep -c PERMANENT)
echo files $(find /var/lib/godwit/pods /run/godwit -xdev -path '*/log/*' -prune -o -print 2>/dev/null | wc -l)
echo cgroups $(find $(grep cgroup2 /proc/self/mounts | cut -d' ' -f2 | head -1) -type d 2>/dev/null | wc -l)
"""

Inventory = dict[str, dict[str, int]]  # of each node: what, and how many


def take(cluster: Cluster, nodes: Iterable[str]) -> Inventory:
    found = {}
    for node in nodes:
        # uniq says the number first.
        words = (line.split() for line in cluster.exec(node, "sh", "-c", COUNT).stdout.splitlines())
        found[node] = {one if two.isdigit() else two: int(two if two.isdigit() else one) for one, two in words}
    return found


def grown(before: Inventory, after: Inventory, allowed: dict[str, int], without: tuple) -> list[str]:
    """What there is more of. All else is to be what it was, to the last descriptor."""
    return [f"{node}: {name} {before[node].get(name, 0)} -> {count}" for node, counts in after.items() for name, count in counts.items()
            if name not in without and count > before[node].get(name, 0) + allowed.get(name, 0)]


def wait_same(cluster: Cluster, before: Inventory, seconds: float, allowed: dict[str, int] = ALLOWED, without: tuple = ()) -> None:
    """What is on its way out is given this time."""
    more: list[str] = []

    def same():
        more[:] = grown(before, take(cluster, before), allowed, without)
        return not more

    try:
        wait_for("everything to be as before", same, seconds, step=0.5)
    except Failure as failure:
        raise Failure(f"{failure}: {'; '.join(more)}") from None
