"""Line plots as pictures, drawn with OpenCV: the loss of a run, quality over the seconds of a stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

WIDTH, HEIGHT = 860, 420  # px
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 16, 44  # px around the axes; the names of the curves are on the right
COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (90, 90, 90))
TICKS = 5


def line_plot(curves: Mapping[str, Sequence[tuple[float, float]]], x_name: str, log: bool = False) -> np.ndarray:
    """Curves by name, each a list of (x, y) -> uint8 RGB [H, W, 3]. Points that are not finite are left out.

    log: logarithmic y axis if all values are above 0.
    """
    points = {
        name: np.array([p for p in curve if all(map(math.isfinite, p))], float).reshape(-1, 2)
        for name, curve in curves.items()
    }
    every = np.concatenate([*points.values(), np.zeros((0, 2))])
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    if not len(every):
        return picture
    log = log and bool((every[:, 1] > 0).all())
    low, high = every.min(0), every.max(0)
    if log:
        low[1], high[1] = np.log10(low[1]), np.log10(high[1])
    high = np.where(high - low < 1e-9, low + 1, high)

    def place(at: np.ndarray) -> np.ndarray:
        at = np.stack([at[:, 0], np.log10(at[:, 1]) if log else at[:, 1]], 1)
        share = (at - low) / (high - low)
        x = LEFT + share[:, 0] * (WIDTH - LEFT - RIGHT)
        return np.stack([x, HEIGHT - BOTTOM - share[:, 1] * (HEIGHT - TOP - BOTTOM)], 1).round().astype(np.int32)

    _axes(picture, low, high, x_name, log)
    for number, (name, curve) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        if len(curve) == 1:
            cv2.circle(picture, place(curve)[0].tolist(), 4, colour, -1, cv2.LINE_AA)
        elif len(curve):
            cv2.polylines(picture, [place(curve).reshape(-1, 1, 2)], False, colour, 2, cv2.LINE_AA)
        cv2.putText(
            picture,
            name,
            (WIDTH - RIGHT + 10, TOP + 16 + 20 * number),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.45,
            colour,
            1,
            cv2.LINE_AA,
        )
    return picture


def _axes(picture: np.ndarray, low: np.ndarray, high: np.ndarray, x_name: str, log: bool) -> None:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for share in np.linspace(0, 1, TICKS):
        x, y = round(LEFT + share * (right - LEFT)), round(bottom - share * (bottom - TOP))
        cv2.line(picture, (LEFT, y), (right, y), (225, 225, 225), 1)
        cv2.line(picture, (x, TOP), (x, bottom), (240, 240, 240), 1)
        values = low + share * (high - low)
        y_value = 10 ** values[1] if log else values[1]
        _text(picture, f"{y_value:.4g}", (4, y + 4))
        _text(picture, f"{values[0]:.4g}", (x - 14, bottom + 16))
    cv2.rectangle(picture, (LEFT, TOP), (right, bottom), (120, 120, 120), 1)
    _text(picture, x_name, ((LEFT + right) // 2 - 16, HEIGHT - 8))


def _text(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (60, 60, 60), 1, cv2.LINE_AA)
