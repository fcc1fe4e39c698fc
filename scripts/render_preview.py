"""Renders the README's moving picture: `python -m scripts.render_preview -o docs/drag.webp`.

Examples side by side, as the bundled student moves them: their grips go along their paths and back the other way round,
so that it repeats without a jump. The dot is where a visitor's pointer would be.
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from motionstream import Tracks, load_model, stream
from motionstream.machine import Choice, fit_pictures
from motionstream.tracks import ChunkRequest
from motionstream.video import read_image

FOLDER = Path(__file__).parents[1] / "examples"
CHUNKS = 7
GAP = 8  # px between pictures
ROUND = 0.25  # how wide the way round is, of its length


class RoundTrip:
    """Everything that an example's paths take hold of, moved round an ellipse as long as they are; its pins."""

    def __init__(self, example: dict, scale: float, frames: int):
        grips = [path["points"] for path in example["paths"]]
        self.start = scale * np.array(grips[0][0], np.float64)
        self.way = scale * np.array(grips[0][-1], np.float64) - self.start
        self.held = [scale * np.array(grip[0], np.float64) - self.start for grip in grips]
        self.pins = scale * np.array(example["pins"], np.float64)
        self.spacing, self.size = scale * example["grid"]["spacing"], example["grid"]["size"]
        self.frames = frames

    def pointer(self, frames: np.ndarray) -> np.ndarray:
        """Where the first grip is in these frames: [T, 2], pixels."""
        angle = 2 * np.pi * frames[:, None] / self.frames
        across = self.way[::-1] * (1, -1)
        return self.start + (1 - np.cos(angle)) / 2 * self.way + ROUND * np.sin(angle) * across

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        pointer, each = self.pointer(request.start + np.arange(request.frames)), self.size**2
        grids = [
            Tracks.rigid_grid(pointer + offset, self.spacing, self.size, each * n + np.arange(each))
            for n, offset in enumerate(self.held)
        ]
        pins = np.repeat(self.pins[None], request.frames, 0)
        ids = each * len(grids) + np.arange(len(self.pins))
        return Tracks.concatenate([*grids, Tracks(pins, np.ones(pins.shape[:2], bool), ids)])


def moving(model, name: str, width: int) -> np.ndarray:
    """Frames of one example, uint8 [T, H, width, 3]."""
    example = json.loads((FOLDER / f"{name}.json").read_text())
    image, sharp = fit_pictures(model.preset, Choice(240), read_image(FOLDER / example["image"]))
    frames = sum(model.preset.chunk_frames(index) for index in range(CHUNKS))
    source = RoundTrip(example, image.shape[1] / example["width"], frames)
    made = np.concatenate([chunk.frames for chunk in islice(stream(model, image, source, sharp=sharp, seed=0), CHUNKS)])
    size = width, round(width * image.shape[0] / image.shape[1])
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in made]
    for frame, place in zip(small, source.pointer(np.arange(frames)) * width / image.shape[1], strict=True):
        for radius, colour in ((7, (255, 255, 255)), (5, (20, 150, 90))):
            cv2.circle(frame, np.round(16 * place).astype(int).tolist(), 16 * radius, colour, -1, cv2.LINE_AA, 4)
    return np.stack(small)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--examples", nargs="+", default=["balloon", "boat", "car"])
    parser.add_argument("--width", type=int, default=320, help="of each picture, pixels")
    args = parser.parse_args()
    model = load_model()
    parts = [np.pad(moving(model, name, args.width), ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
             for name in args.examples]
    first, *others = (Image.fromarray(frame) for frame in np.concatenate(parts, axis=2)[:, :, :-GAP])
    duration = round(1000 / model.preset.fps)
    first.save(args.out, save_all=True, append_images=others, duration=duration, loop=0, quality=60, method=6)
    print(f"{args.out}: {first.width}x{first.height}, {1 + len(others)} frames, {args.out.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main()
