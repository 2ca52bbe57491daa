#!/usr/bin/env python3
"""Runs the tests; its last line is `N passed, N failed, N skipped`."""

import argparse
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import daemons  # noqa: E402
import harness  # noqa: E402
import local  # noqa: E402
import simulator  # noqa: E402
from migration import faults, hostile, matrix, mutated, negotiation, playground, programs, recovery, refusals, sessions, soak, store, tracees, trust, users  # noqa: E402


KINDS = (local.Tidy, local.Unit, local.Sanitized, simulator.Simulator, local.Fuzz, local.Tracees, local.Clients, daemons.Daemons, playground.Playground, sessions.Sessions, tracees.Moved, programs.Programs, refusals.Refusals, negotiation.Negotiation, users.Users, hostile.Hostile, trust.Trust, store.Store, faults.Faults, matrix.Matrix, recovery.Recovery, mutated.Mutated, soak.Soak)


def suites(options) -> list[harness.Suite]:
    return [kind(options) for kind in KINDS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="SUITE[,SUITE]", help="only these suites")
    parser.add_argument("--case", metavar="PATTERN", help="only cases whose suite/name has this in it (* is a wildcard)")
    parser.add_argument("--long", action="store_true", help="the long forms: more moves, more memory, more time")
    parser.add_argument("--list", action="store_true", help="names only")
    parser.add_argument("--json", metavar="FILE", help="write all results there")
    options = parser.parse_args()
    wanted = [name for name in options.only.split(",") if name]
    known = suites(options)
    for name in wanted:
        if name not in [suite.name for suite in known]:
            parser.error(f"no suite '{name}'; there are: {', '.join(suite.name for suite in known)}")
    chosen = [suite for suite in known if not wanted or suite.name in wanted]
    if options.list:
        for suite in chosen:
            for case in suite.cases():
                print(f"{suite.name}/{case.name}")
        return 0
    if os.geteuid() != 0:
        print("the tests need root: namespaces, ptrace, cgroups", file=sys.stderr)
        return 2
    begin = time.monotonic()
    results = []
    for suite in chosen:
        results += harness.run_suite(suite, options.case)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps([vars(result) for result in results], indent=1))
    print(f"==== done in {time.monotonic() - begin:.0f} s")
    return harness.summary(results)


if __name__ == "__main__":
    sys.exit(main())
