"""A picture of free-response curves, as SVG: any browser opens it, and no library draws it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mmccd_cli.evaluation.free_response import Curve

WIDTH, HEIGHT, LEFT, TOP, LEGEND = 420, 300, 48, 16, 230
"""Of the plot and of the room around it, in pixels."""
MOST_FALSE_POSITIVES = 8.0
"""The right end of the plot, false positives a scan."""
COLORS = ("#1b6ca8", "#d1495b", "#2e8b57", "#c98a00", "#6a4c93", "#00838f", "#8d6e63", "#455a64")


def draw_curves(curves: Sequence[Curve]) -> str:
    """Draw sensitivity against false positives a scan; a dot is what the masks have.

    Args:
        curves: Those of healthy subjects, which have no sensitivity, are left out.

    Returns:
        An SVG document.
    """
    shown = [curve for curve in curves if curve.default.lesions]
    parts = [*_axes(), *(part for n, curve in enumerate(shown) for part in _curve(n, curve))]
    size = f'width="{LEFT + WIDTH + LEGEND}" height="{TOP + HEIGHT + 40}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, ground, *parts, "</svg>", ""])


def _axes() -> list[str]:
    parts = []
    for tick in range(5):
        _, y = _place(0.0, tick / 4)
        parts += [
            f'<path d="M{LEFT} {y}h{WIDTH}" stroke="#ddd"/>',
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick / 4:g}</text>',
        ]
    for rate in (0, 1, 2, 4, MOST_FALSE_POSITIVES):
        x, _ = _place(rate, 0.0)
        parts.append(f'<text x="{x}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{rate:g}</text>')
    x, y = LEFT + WIDTH / 2, TOP + HEIGHT / 2
    below = f'<text x="{x}" y="{TOP + HEIGHT + 34}" text-anchor="middle">false positives a scan'
    beside = f'<text transform="translate(13 {y}) rotate(-90)" text-anchor="middle">lesions found'
    return [*parts, f"{below}</text>", f"{beside}</text>"]


def _curve(number: int, curve: Curve) -> list[str]:
    """Steps of one curve, what its masks have, and its name."""
    color, x, y = COLORS[number % len(COLORS)], LEFT + WIDTH + 14, TOP + 10 + 20 * number
    inside = [p for p in curve.points if p.false_positives_per_scan <= MOST_FALSE_POSITIVES]
    steps = [_place(p.false_positives_per_scan, p.sensitivity) for p in inside]
    path = f"M{steps[0][0]} {steps[0][1]}" + "".join(f"H{x} V{y}" for x, y in steps[1:])
    parts = [
        f'<path d="{path}" fill="none" stroke="{color}" stroke-width="2"/>',
        f'<path d="M{x} {y}h16" stroke="{color}" stroke-width="3"/>',
        f'<text x="{x + 22}" y="{y + 4}">{escape(curve.method)}</text>',
    ]
    if curve.default.false_positives_per_scan <= MOST_FALSE_POSITIVES:
        cx, cy = _place(curve.default.false_positives_per_scan, curve.default.sensitivity)
        parts.append(f'<circle cx="{cx}" cy="{cy}" r="4" fill="{color}"/>')
    return parts


def _place(false_positives: float, sensitivity: float) -> tuple[float, float]:
    """Pixels of a point of the plot."""
    x = LEFT + WIDTH * false_positives / MOST_FALSE_POSITIVES
    return round(x, 1), round(TOP + HEIGHT * (1 - sensitivity), 1)
