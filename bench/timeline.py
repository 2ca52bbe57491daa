"""What the clients saw during a migration, as a picture: for each millisecond the longest request that began in it."""

from __future__ import annotations

import html
import pathlib

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 300, 60, 40, 40


def draw(path: pathlib.Path, title: str, bins: list, started_us: int, begin_us: int, end_us: int, report: dict) -> None:
    """`bins` as the load client gives them; the migration lasted from begin to end (CLOCK_REALTIME, µs)."""
    margin = max(50_000, (end_us - begin_us) // 5)
    first, last = begin_us - margin, end_us + margin
    points = [(started_us + at * 1000, took) for at, _, took in bins if first <= started_us + at * 1000 <= last]
    top = max([took for _, took in points] + [2000]) * 1.1

    def x(us: float) -> float:
        return LEFT + (us - first) / (last - first) * (WIDTH - LEFT - 10)

    def y(us: float) -> float:
        return HEIGHT - BOTTOM - us / top * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="20" font-size="14">{html.escape(title)}</text>',
           f'<rect x="{x(begin_us):.1f}" y="{TOP}" width="{x(end_us) - x(begin_us):.1f}" height="{HEIGHT - TOP - BOTTOM}" fill="#e8f0fe"/>',
           f'<text x="{x(begin_us) + 4:.1f}" y="{TOP + 14}" fill="#5070a0">migration, froze for {report["freeze_us"] / 1000:.2f} ms</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = top * share
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value / 1000:.1f} ms</text>')
    for us, took in points:
        out.append(f'<line x1="{x(us):.1f}" x2="{x(us):.1f}" y1="{y(0):.1f}" y2="{y(took):.1f}" stroke="{"#c03030" if took > 2000 else "#3070b0"}"/>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        us = first + (last - first) * share
        out.append(f'<text x="{x(us):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{(us - begin_us) / 1000:.0f} ms</text>')
    out.append("</svg>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(out) + "\n")
