#!/usr/bin/env python3
"""Runs the fuzz targets. What they find is kept: inputs that reach something new in build/fuzz-corpus/TARGET, those that end a target in
build/fuzz-found. Or moves pods from and to a node that lies (--migrations)."""

from __future__ import annotations

import argparse
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from harness import BUILD, ROOT, Failure, command, run_suite, summary  # noqa: E402

CORPUS = ROOT / "test/fuzz/corpus"
FOUND = BUILD / "fuzz-found"
LARGEST = 16384  # bytes of an input


def targets() -> list[str]:
    return sorted(path.stem for path in (ROOT / "test/fuzz").glob("*.cpp"))


def options() -> list[str]:
    FOUND.mkdir(parents=True, exist_ok=True)
    return [f"-max_len={LARGEST}", "-timeout=20", "-rss_limit_mb=2048", "-malloc_limit_mb=512", "-print_final_stats=1"]


def run(target: str, seconds: int, grown: pathlib.Path) -> dict:
    """A target for so long, beginning with what is in the repository and in `grown`, where what is new goes."""
    prefix = FOUND / f"{target}-"
    arguments = [BUILD / "fuzz" / f"fuzz-{target}", *options(), f"-max_total_time={seconds}", f"-artifact_prefix={prefix}", grown, CORPUS / target]
    done = command(arguments, seconds=seconds * 3 + 120, check=False)
    if done.returncode != 0:
        kept = re.search(r"Test unit written to (\S+)", done.stderr)
        said = [line for line in done.stderr.splitlines() if not line.startswith(("#", "\tNEW_FUNC"))]
        where = f"repeat it: {arguments[0]} {kept.group(1)}" if kept else "it has left no input"
        raise Failure(f"{target} ended with {done.returncode}; {where}\n" + "\n".join(said[-60:]))
    runs = int(re.search(r"number_of_executed_units: (\d+)", done.stderr).group(1))
    if runs <= len(list((CORPUS / target).iterdir())):
        raise Failure(f"{target}: {runs} inputs only")
    return {"inputs": runs}


def keep(target: str, grown: pathlib.Path) -> None:
    """Adds to the repository's corpus what reaches something that it doesn't, as long as it is small."""
    for path in grown.iterdir():
        if path.stat().st_size > 2048:
            path.unlink()
    command([BUILD / "fuzz" / f"fuzz-{target}", "-merge=1", *options(), CORPUS / target, grown], seconds=3600)


def migrations(asked) -> int:
    # Only here: what runs the targets needs no cluster.
    from migration.mutated import Mutated

    return summary(run_suite(Mutated(asked), None))


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help=f"one of {', '.join(targets())}; all of them without")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (600)")
    parser.add_argument("--keep", action="store_true", help="add what is new and small to test/fuzz/corpus")
    parser.add_argument("--migrations", type=int, metavar="N", help="instead: until N moves were lied in (test/migration/mutated.py)")
    parser.add_argument("--seed", type=int, default=1, help="which lies (1)")
    parser.add_argument("--life", type=int, metavar="N", help="only the moves of pod N: to repeat what was found")
    parser.add_argument("--liars", type=int, default=6, help="nodes that lie, each in one move at a time (6)")
    parser.add_argument("--godwitd", help="the daemon of the honest nodes: built with sanitizers, say")
    asked = parser.parse_args()
    if asked.migrations:
        return migrations(asked)
    failed = 0
    for target in asked.target or targets():
        if target not in targets():
            parser.error(f"no target '{target}'; there are: {', '.join(targets())}")
        grown = BUILD / "fuzz-corpus" / target
        grown.mkdir(parents=True, exist_ok=True)
        try:
            print(f"{target}: {run(target, asked.seconds, grown)['inputs']} inputs, nothing found", flush=True)
            if asked.keep:
                keep(target, grown)
        except Failure as failure:
            print(f"{target}: {failure}", flush=True)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
