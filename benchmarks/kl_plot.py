"""A picture of KL against bytes, as an SVG: one colored line for each series, KL on a log scale.

In: series of (file bytes, KL). Out: the text of the SVG. Refuses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Line = Sequence[tuple[int, float]]
"""(file bytes, KL in nats) of each file of a series."""

COLORS = ("#06c", "#2a2", "#c80", "#999", "#a3c", "#c33", "#088", "#642")
WIDTH, HEIGHT, MARGIN = 720, 420, 60
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Axes:
    """Where bytes and KL lie on the picture."""

    def __init__(self, series: Mapping[str, Line]) -> None:
        sizes, levels = zip(*(point for line in series.values() for point in line), strict=True)
        self.left, self.right = min(sizes) / 1e6 - 2, max(sizes) / 1e6 + 2
        self.low, self.high = math.log(min(levels)) - 0.2, math.log(max(levels)) + 0.2

    def place(self, megabytes: float, level: float) -> tuple[float, float]:
        x = MARGIN + (megabytes - self.left) / (self.right - self.left) * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - (level - self.low) / (self.high - self.low) * (HEIGHT - 2 * MARGIN)
        return round(x, 1), round(y, 1)

    def parts(self) -> list[str]:
        """Title, ticks and their lines."""
        parts = [
            f'<text x="{WIDTH / 2}" y="{HEIGHT - 15}" text-anchor="middle">MB of the file</text>',
            f'<text x="{MARGIN}" y="30">mean KL from the float model, nats</text>',
        ]
        for tick in TICKS:
            if self.low < math.log(tick) < self.high:
                x, y = self.place(self.left, math.log(tick))
                parts.append(f'<path d="M{x} {y}H{WIDTH - MARGIN}" stroke="#ddd"/>')
                parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
        for size in range(int(self.left) // 10 * 10 + 10, int(self.right) + 1, 10):
            x, y = self.place(size, self.low)
            parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{size}</text>')
        return parts


def kl_plot(series: Mapping[str, Line]) -> str:
    """The picture; each series is named at its largest file."""
    axes = Axes(series)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *axes.parts(),
    ]
    for number, (name, line) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        places = [axes.place(size / 1e6, math.log(kl)) for size, kl in sorted(line)]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="{color}"/>' for x, y in places]
        x, y = places[-1]
        beyond = x > WIDTH - MARGIN - 90
        anchor, dx = ("end", -8) if beyond else ("start", 8)
        parts.append(
            f'<text x="{x + dx}" y="{y - 8}" text-anchor="{anchor}" fill="{color}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
