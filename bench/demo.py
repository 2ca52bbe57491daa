#!/usr/bin/env python3
"""A redis under load moves round three nodes, once with each strategy, and its clients are asked what they noticed."""

import argparse
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "test"), str(ROOT / "bench")]

import servers  # noqa: E402
from harness import Failure  # noqa: E402
from migration import load  # noqa: E402
from migration.cluster import STRATEGIES, Cluster, CommandError  # noqa: E402
from table import mib, ms, table  # noqa: E402

MEANING = {
    "freeze": "stop, copy everything, go on",
    "precopy": "copy while it runs, then what has changed since, then stop for the rest",
    "eager-dirty": "stop, copy what it has written, fetch the rest when it is touched",
    "postcopy": "stop, move the threads, fetch memory when it is touched",
    "hybrid": "a few rounds while it runs, then fetch what is left when it is touched",
    "auto": "begins as pre-copy and changes over if that doesn't converge",
}


def step(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def store_member_dies(cluster: Cluster, node: str) -> None:
    """Two of three members are enough: nobody has to notice."""
    cluster.playground("store", "kill", node)
    print(f"  {'':<12} etcd on {node} has been killed; the others go on", flush=True)


def moves(cluster: Cluster, pod: str, rounds: int, kill_member: bool) -> list[dict]:
    done = []
    for number in range(rounds * len(STRATEGIES)):
        strategy = STRATEGIES[number % len(STRATEGIES)]
        if kill_member and number == rounds * len(STRATEGIES) // 2:
            store_member_dies(cluster, cluster.nodes[1])
        here, there = cluster.nodes[number % len(cluster.nodes)], cluster.nodes[(number + 1) % len(cluster.nodes)]
        print(f"  {strategy:<12} {here} → {there}   {MEANING[strategy]}", flush=True)
        begin = time.time_ns() // 1000
        report = cluster.migrate(pod, there, strategy, node=here)
        cluster.drained(pod, there)
        print(f"  {'':<12} froze for {ms(report['freeze_us'])}, took {ms(report['total_us'])}, sent {mib(report['bytes_sent'])}", flush=True)
        done.append({"strategy": strategy, "way": f"{here} → {there}", "begin": begin, "end": time.time_ns() // 1000, "report": report})
        time.sleep(0.5)
    return done


def results(done: list[dict], summary: dict, quiet: int) -> str:
    rows = [["(no move)", "", "", "", "", ms(quiet)]]
    for move in done:
        report = move["report"]
        rows.append([move["strategy"], move["way"], ms(report["freeze_us"]), ms(report["total_us"]), mib(report["bytes_sent"]),
                     ms(load.longest(summary, move["begin"], move["end"]))])
    return table(["strategy", "way", "freeze", "in all", "sent", "longest wait of a client"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="size of the redis (default: 256)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each strategy is used")
    parser.add_argument("--rate", type=int, default=3000, help="requests per second")
    parser.add_argument("--store", choices=["sqlite", "etcd"], default="sqlite",
                        help="etcd: who owns a pod stands in a cluster of three, and one of them is killed under way")
    parser.add_argument("--keep", action="store_true", help="leave the playground up for a look around")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("The demo makes namespaces, bridges and cgroups: it needs root.", file=sys.stderr)
        return 2
    cluster = Cluster("demo", options=("--store", options.store))
    client = None
    try:
        step("1. Three nodes and a client, as near to four machines as one machine allows")
        cluster.up()
        for host in cluster.status()["hosts"]:
            print(f"  {host['name']:<8} {host['address']:<12} {'godwitd ' + host['daemon']['state'] if 'daemon' in host else 'no godwit here'}"
                  f"{', etcd ' + host['store']['state'] if 'store' in host else ''}")
        step(f"2. An unmodified redis as a pod on node a, and {options.mib} MiB put into it by the client")
        server = servers.redis(fill_mib=options.mib)
        address = load.start(cluster, server, "redis")
        print(f"  $ godwit run --detach --name redis -- redis-server …    it answers on {address}")
        client = load.Load(cluster, server, address, "--rate", options.rate, "--connections", 16)
        print("  16 connections that are never made anew, one request at a time on each: SET, GET and INCR, every answer compared")
        step("3. Three seconds of load without a move, to compare with")
        begin = time.time_ns() // 1000
        time.sleep(3)
        quiet = (begin, time.time_ns() // 1000)
        step("4. Round the three nodes, once with each strategy")
        done = moves(cluster, "redis", options.rounds, options.store == "etcd")
        step("5. What happened")
        summary = client.finish()
        print(results(done, summary, load.longest(summary, *quiet)))
        print(f"\n{summary['requests']} requests on {summary['connections']} connections, {summary['errors']} errors"
              + (":" if summary["errors"] else ", no connection lost, no answer lost, doubled or wrong."))
        for message in summary["messages"]:
            print(f"  {message}")
        print("\n$ godwit history redis\n" + cluster.godwit("c", "history", "redis").stdout.rstrip())
        return 1 if summary["errors"] else 0
    except (Failure, CommandError) as failure:
        print(f"\nThe demo did not work out: {failure}", file=sys.stderr)
        return 1
    finally:
        if client:
            client.end()
        if options.keep:
            print(f"\nThe playground is left up: build/godwit playground exec --name {cluster.name} a -- godwit ps")
        else:
            cluster.down()


if __name__ == "__main__":
    sys.exit(main())
