"""What a person looks at: contact sheets of frames, and tables of figures as plain text."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from motionstream.errors import InputError, writing
from motionstream.tracks import Tracks

GREEN, RED = (0, 220, 0), (230, 30, 30)
GAP = 4  # px between cells
CAPTION = 18  # px of height


def draw_tracks(image: np.ndarray, tracks: Tracks) -> np.ndarray:
    """A copy of `image` uint8 [H, W, 3] with the visible part of every track: green where it moves, red where it
    stays; the dot is where it starts."""
    drawn = image.copy()
    for n in range(tracks.N):
        path = np.round(tracks.points[tracks.visible[:, n], n]).astype(np.int32)
        if len(path) == 0:
            continue
        colour = GREEN if np.abs(path - path[0]).max() > 1 else RED
        cv2.polylines(drawn, [path.reshape(-1, 1, 2)], False, colour, 1, cv2.LINE_AA)
        cv2.circle(drawn, path[0].tolist(), 2, colour, -1, cv2.LINE_AA)
    return drawn


def contact_sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]], width: int = 256):
    """Frames of any size in a grid -> uint8 [H, W, 3]. Each row is (caption, one frame per column).

    Cells are `width` px wide; a row is as high as its highest frame.
    """
    body = [_captions(columns, width)]
    for caption, frames in rows:
        cells = [cv2.resize(f, (width, round(f.shape[0] * width / f.shape[1])), interpolation=cv2.INTER_AREA)
                 for f in frames]
        height = max(len(cell) for cell in cells)
        padded = [np.pad(cell, ((0, height - len(cell)), (0, GAP), (0, 0))) for cell in cells]
        body += [_captions([caption] + [""] * (len(columns) - 1), width), np.concatenate(padded, axis=1)]
    return np.concatenate(body)


def check_place(path: str | Path) -> None:
    """Before the work whose outcome is to be written there: `InputError` if no file of that name can be."""
    path, remedy = Path(path), "name another place"
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; {remedy}")
    with writing(path, remedy), tempfile.TemporaryFile(dir=path.parent):
        pass


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes uint8 RGB [H, W, 3]; the file is complete or not there."""
    try:
        Image.fromarray(image).save(path, format="PNG")
    except OSError:
        Path(path).unlink(missing_ok=True)
        raise


def table(rows: Mapping[str, Mapping[str, float | int | str]]) -> str:
    """Figures as aligned text: one line per entry of `rows`, its name first; "-" where an entry lacks a column."""
    heads = list(dict.fromkeys(head for row in rows.values() for head in row))
    cells = [[name, *(_figure(row.get(head, math.nan)) for head in heads)] for name, row in rows.items()]
    lines = [["", *heads], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads) + 1)]
    return "\n".join(
        line[0].ljust(widths[0]) + "".join("  " + cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def _figure(value: float | int | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _captions(texts: Sequence[str], width: int) -> np.ndarray:
    strip = np.zeros((CAPTION, len(texts) * (width + GAP), 3), np.uint8)
    for i, text in enumerate(texts):
        place = (i * (width + GAP) + 2, CAPTION - 5)
        cv2.putText(strip, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return strip
