#!/usr/bin/env python3
"""The promises, measured: a table, a timeline of what clients saw during a move, and where the time of a freeze goes."""

import argparse
import json
import os
import pathlib
import platform
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "test"), str(ROOT / "bench")]

import measure  # noqa: E402
from migration.cluster import Cluster  # noqa: E402
from table import ms, table  # noqa: E402


def where_it_goes(reports: dict[str, list[dict]]) -> str:
    """The median move of each kind, its freeze by cause."""
    lines = []
    for name, found in reports.items():
        middle = sorted(found, key=lambda report: report["freeze_us"])[len(found) // 2]
        causes = ", ".join(f"{span['name']} {ms(span['us'])}" for span in middle["freeze"])
        lines.append(f"{name} ({middle['strategy']}): {ms(middle['freeze_us'])} of {ms(middle['total_us'])}: {causes or 'not itemised'}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=10, help="moves for each figure (default: 10)")
    parser.add_argument("--only", default="", help=f"sections: {','.join(measure.SECTIONS)}")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench-results", help="for the pictures and the JSON")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("The benchmarks need root.", file=sys.stderr)
        return 2
    sections = [name for name in options.only.split(",") if name] or measure.SECTIONS
    if unknown := [name for name in sections if name not in measure.SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; there are: {', '.join(measure.SECTIONS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    cluster = Cluster("bench")
    bench = measure.Bench(cluster, options.moves, options.out)
    rows: list[measure.Row] = []
    begin = time.monotonic()
    try:
        cluster.up()
        for section in sections:
            print(f"… {section}", flush=True)
            for row in measure.run(bench, section):
                rows.append(row)
                print(f"  {row.what}: {row.show} {row.note}", flush=True)
            cluster.heal()
    finally:
        cluster.down()
    mark = {True: "kept", False: "NOT KEPT", None: ""}
    print()
    print(table(["", "found", "promised", "", "note"], [[row.what, row.show, row.show_bound, mark[row.kept], row.note] for row in rows]))
    print(f"\nMedians of {options.moves} moves on {os.cpu_count()} processors, Linux {platform.release()}, {time.monotonic() - begin:.0f} s in all.")
    print("\nWhere the time goes (the median move of each):\n" + where_it_goes(bench.reports))
    (options.out / "bench.json").write_text(json.dumps({"rows": [vars(row) | {"kept": row.kept} for row in rows], "reports": bench.reports}, indent=1))
    print(f"\nTimelines and all figures: {os.path.relpath(options.out)}")
    return 1 if any(row.kept is False or row.show == "failed" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
