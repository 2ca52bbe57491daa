"""Tables and units for people."""

from __future__ import annotations


def ms(us: float | None) -> str:
    if us is None:
        return "–"
    return f"{us / 1000:.2f} ms" if us < 100_000 else f"{us / 1000:.0f} ms" if us < 10_000_000 else f"{us / 1e6:.1f} s"


def mib(count: float) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count < 10 << 30 else f"{count / (1 << 30):.1f} GiB"


def table(head: list[str], rows: list[list]) -> str:
    """Columns aligned; the first to the left, the others to the right."""
    cells = [head] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths)))
             for row in cells]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)
