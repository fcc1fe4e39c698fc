"""Synthetic clips with exact motion: layers cut from photographs move over a photograph, as a visitor would drag them.

A scene is a stack of layers, back to front. A layer's motion is an affine map per frame plus an optional smooth bend,
so the place of every point at every time is known exactly, and so is what hides it. Half of the scenes have a moving
camera.

    scene = random_scene(rng, library, width=192, height=128, frames=33)
    clip = render_clip(scene)                           # frames, and which layer owns each pixel
    tracks = choose_tracks(rng, scene, clip, "drags")   # what a visitor would have given to get this clip
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from motionstream.tracks import Tracks, draw_ids
from motionstream.training.pictures import Library, background_and_objects, over, photo_crop

MARGIN = 0.3  # of the frame, on every side: what a moving camera may uncover
MAX_LAYERS = 4
OWNED = 90  # opacity, of 255, from which on a pixel is of the layer: a shadow's core is, its rim is not
SPACINGS = 0.07, 0.16  # between dense tracks, least and most, as a share of the frame's shorter side
SLIDE, SLIDE_FRAMES = 4, 8  # most steps each way of a sliding photograph, and for how many frames it slides

TrackMode = Literal["drags", "sparse", "dense"]


@dataclass
class Layer:
    """`rgba` premultiplied uint8 [H + 2my, W + 2mx, 4], drawn where it is in frame 0; motion in frame pixels.

    A point p of frame 0 is at `affine[t] @ (p, 1) + sway[t] * bend(p)` in frame t.
    """

    rgba: np.ndarray
    affine: np.ndarray  # float64 [T, 2, 3]
    bend: np.ndarray | None  # float32 [H + 2my, W + 2mx, 2], at most 1 px long
    sway: np.ndarray  # float32 [T], pixels

    @property
    def moves(self) -> bool:
        return bool(np.abs(self.affine - self.affine[:1]).max() > 1e-6 or (self.bend is not None and self.sway.any()))


@dataclass
class Scene:
    layers: list[Layer]  # back to front; layers[0] covers everything
    width: int
    height: int
    frames: int

    @property
    def margin(self) -> tuple[int, int]:
        rows, columns = self.layers[0].rgba.shape[:2]
        return (columns - self.width) // 2, (rows - self.height) // 2

    def positions(self, layer: int, points: np.ndarray, frame: int) -> np.ndarray:
        """Where `points` [N, 2] of frame 0, all of one layer, are in `frame`: float64 [N, 2]."""
        moving = self.layers[layer]
        moved = points @ moving.affine[frame, :, :2].T + moving.affine[frame, :, 2]
        if moving.bend is not None:
            offset = (points + self.margin).astype(np.float32)[None]
            moved = (
                moved
                + moving.sway[frame]
                * cv2.remap(moving.bend, offset, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
            )
        return moved


@dataclass
class Clip:
    frames: np.ndarray  # uint8 [T, H, W, 3]
    owner: np.ndarray  # uint8 [T, H, W]: index of the layer seen at each pixel


# --- motion --------------------------------------------------------------------------------------------------------


def drag_path(rng: np.random.Generator, frames: int, reach: float) -> np.ndarray:
    """A pointer's way from (0, 0), float64 [frames, 2] in pixels, `reach` px long at the most."""
    time = np.linspace(0, 1, frames)
    start, stop = sorted(rng.uniform(0, 1, 2)) if rng.random() < 0.4 else (0.0, 1.0)
    pace = np.clip((time - start) / max(stop - start, 0.25), 0, 1)
    kind = rng.choice(["even", "ease", "return", "wave"], p=[0.35, 0.4, 0.15, 0.1])
    if kind == "ease":
        pace = pace * pace * (3 - 2 * pace)
    elif kind == "return":
        pace = np.sin(np.pi * pace)
    elif kind == "wave":
        pace = np.sin(rng.uniform(2, 7) * pace)
    heading = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(heading), np.sin(heading)])
    curve = rng.normal(0, 0.35) if rng.random() < 0.5 else 0.0
    return reach * (pace[:, None] * along + curve * (pace * (1 - pace))[:, None] * np.array([-along[1], along[0]]))


def _affine_motion(path: np.ndarray, centre: np.ndarray, turn: float, zoom: float) -> np.ndarray:
    """Affine maps [T, 2, 3]: turn (radians) and zoom (log) about `centre` grow with the way gone along `path`."""
    gone = np.linalg.norm(path, axis=1)
    share = gone / max(gone.max(), 1e-6) if gone.max() > 0 else np.linspace(0, 1, len(path))
    angle, scale = turn * share, np.exp(zoom * share)
    linear = scale[:, None, None] * np.stack(
        [np.stack([np.cos(angle), -np.sin(angle)], 1), np.stack([np.sin(angle), np.cos(angle)], 1)], 1
    )
    return np.concatenate([linear, (centre + path - linear @ centre)[..., None]], 2)


def _bend(rng: np.random.Generator, canvas: tuple[int, int]) -> np.ndarray:
    cells = rng.integers(2, 5)
    coarse = rng.normal(0, 1, (cells, cells, 2)).astype(np.float32)
    field = cv2.resize(coarse, canvas, interpolation=cv2.INTER_CUBIC)
    return field / max(1.0, float(np.linalg.norm(field, axis=-1).max()))


def _compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    linear = outer[:, :, :2] @ inner[:, :, :2]
    return np.concatenate([linear, outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]], 2)


def random_scene(rng: np.random.Generator, library: Library, width: int, height: int, frames: int) -> Scene:
    """A background with one to three objects; half of the time a moving camera, which gives each layer its parallax."""
    margin = round(MARGIN * width), round(MARGIN * height)
    canvas = (width + 2 * margin[0], height + 2 * margin[1])
    background, pictures = background_and_objects(rng, library, canvas, (width, height))
    size = min(width, height)
    still = np.zeros((frames, 2))
    middle = np.array([width, height]) / 2
    camera_moves = rng.random() < 0.5
    camera_path = drag_path(rng, frames, rng.uniform(0, 0.22) * size) if camera_moves else still
    turn, zoom = (rng.normal(0, 0.05), rng.normal(0, 0.12)) if camera_moves else (0.0, 0.0)

    def camera(parallax: float) -> np.ndarray:
        return _affine_motion(camera_path * parallax, middle, turn, zoom * parallax)

    sway = (np.linspace(0, 1, frames) * rng.uniform(0, 0.06) * size).astype(np.float32) if camera_moves else None
    layers = [
        Layer(
            np.dstack([background, np.full(background.shape[:2], 255, np.uint8)]),
            camera(1.0),
            _bend(rng, canvas) if camera_moves else None,
            sway if sway is not None else np.zeros(frames, np.float32),
        )
    ]
    nearness = 1.0
    for picture in pictures[-(MAX_LAYERS - 1) :]:
        nearness += abs(rng.normal(0, 0.35))
        rows, columns = np.nonzero(picture[..., 3] > 127)
        centre = np.array([columns.mean(), rows.mean()]) - margin if len(rows) else middle
        dragged = rng.random() < 0.8
        path = drag_path(rng, frames, rng.uniform(0.05, 0.5) * size) if dragged else still
        own = _affine_motion(
            path,
            centre,
            rng.normal(0, 0.25) * (dragged and rng.random() < 0.4),
            rng.normal(0, 0.15) * (dragged and rng.random() < 0.3),
        )
        bends = dragged and rng.random() < 0.25
        swing = np.sin(np.linspace(0, rng.uniform(1, 6), frames)) * rng.uniform(0.02, 0.1) * size * bends
        layers.append(
            Layer(
                picture,
                _compose(camera(nearness), own),
                _bend(rng, canvas) if bends else None,
                swing.astype(np.float32),
            )
        )
    return Scene(layers, width, height, frames)


def sliding_scene(
    rng: np.random.Generator, library: Library, width: int, height: int, frames: int, step: int
) -> Scene:
    """A photograph that soon after frame 0 slides by whole steps of `step` px each way, and then stands.

    With the side of a latent cell as step, what has slid has the very latents that it had before, elsewhere: the
    simplest clips in which a track's ID tells what is to be seen.
    """
    margin = SLIDE * step
    picture = photo_crop(rng, library, width + 2 * margin, height + 2 * margin)
    share = np.clip((np.arange(frames) - rng.integers(0, SLIDE_FRAMES + 1)) / SLIDE_FRAMES, 0, 1)
    path = share[:, None] * rng.integers(-SLIDE, SLIDE + 1, 2) * step
    rgba = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    affine = _affine_motion(path, np.zeros(2), turn=0.0, zoom=0.0)
    return Scene([Layer(rgba, affine, None, np.zeros(frames, np.float32))], width, height, frames)


# --- rendering -----------------------------------------------------------------------------------------------------


def _draw(scene: Scene, layer: Layer, frame: int, border: int) -> np.ndarray:
    margin = np.array(scene.margin, np.float64)
    linear, shift = layer.affine[frame, :, :2], layer.affine[frame, :, 2]
    back = np.linalg.inv(linear)
    to_canvas = np.concatenate([back, (margin - back @ shift)[:, None]], 1)
    if layer.bend is None or not layer.sway[frame]:
        return cv2.warpAffine(
            layer.rgba,
            to_canvas,
            (scene.width, scene.height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=border,
        )
    columns, rows = np.meshgrid(np.arange(scene.width, dtype=np.float32), np.arange(scene.height, dtype=np.float32))
    straight = (np.stack([columns, rows], -1) @ back.T + (margin - back @ shift)).astype(np.float32)
    source = straight
    for _ in range(4):  # the bend is a fraction of a pixel per pixel: its inverse converges at once
        bent = cv2.remap(layer.bend, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        source = straight - (layer.sway[frame] * bent @ back.T).astype(np.float32)
    return cv2.remap(layer.rgba, source, None, cv2.INTER_LINEAR, borderMode=border)


def render_frame(scene: Scene, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """One frame: uint8 RGB [H, W, 3], and the index of the layer seen at each pixel, uint8 [H, W]."""
    picture = _draw(scene, scene.layers[0], frame, cv2.BORDER_REFLECT_101)
    owner = np.zeros((scene.height, scene.width), np.uint8)
    for index, layer in enumerate(scene.layers[1:], 1):
        drawn = _draw(scene, layer, frame, cv2.BORDER_CONSTANT)
        picture = over(picture, drawn)
        owner[drawn[..., 3] > OWNED] = index
    return picture[..., :3], owner


def opacity(scene: Scene, frame: int) -> np.ndarray:
    """How much of each pixel of a frame is not the background, float32 [H, W] in [0, 1]."""
    clear = np.ones((scene.height, scene.width), np.float32)
    for layer in scene.layers[1:]:
        clear *= 1 - _draw(scene, layer, frame, cv2.BORDER_CONSTANT)[..., 3] / np.float32(255)
    return 1 - clear


def render_clip(scene: Scene) -> Clip:
    frames, owners = zip(*(render_frame(scene, t) for t in range(scene.frames)), strict=True)
    return Clip(np.stack(frames), np.stack(owners))


# --- tracks --------------------------------------------------------------------------------------------------------


def track_points(scene: Scene, owner: np.ndarray, times: Sequence[int], points: np.ndarray, ids: np.ndarray) -> Tracks:
    """Exact tracks at `times` (the first one 0) of `points` [N, 2] of frame 0, given the owners [T, H, W] at these.

    A track is visible while it is inside the frame and not hidden by another layer.
    """
    cells = np.clip(np.floor(points).astype(int), 0, (scene.width - 1, scene.height - 1))
    layers = owner[0, cells[:, 1], cells[:, 0]]
    positions = np.zeros((len(times), len(points), 2), np.float32)
    for layer in np.unique(layers):
        for row, time in enumerate(times):
            positions[row, layers == layer] = scene.positions(layer, points[layers == layer], time)
    seen = np.floor(positions).astype(int)
    inside = (seen >= 0).all(-1) & (seen[..., 0] < scene.width) & (seen[..., 1] < scene.height)
    seen = np.clip(seen, 0, (scene.width - 1, scene.height - 1))
    visible = inside & (owner[np.arange(len(times))[:, None], seen[..., 1], seen[..., 0]] == layers)
    return Tracks(positions, visible, ids)


def drag_points(rng: np.random.Generator, scene: Scene, owner: np.ndarray) -> np.ndarray:
    """Points [N, 2] that a visitor would give: clicks or small rigid grids on what moves, sometimes pins elsewhere."""
    points = []
    for layer in np.unique(owner):
        rows, columns = np.nonzero(owner == layer)
        if layer == 0:
            clicks = rng.integers(5, 13) if scene.layers[0].moves else (rng.integers(1, 6) if rng.random() < 0.4 else 0)
        else:
            clicks = rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]) if scene.layers[layer].moves else int(rng.random() < 0.3)
        for pick in rng.integers(len(rows), size=clicks):
            click = np.array([columns[pick], rows[pick]]) + rng.uniform(0, 1, 2)
            side, spacing = (rng.integers(2, 5), rng.uniform(5, 20)) if layer and rng.random() < 0.4 else (1, 0.0)
            offsets = (np.arange(side) - (side - 1) / 2) * spacing
            grid = click + np.stack(np.meshgrid(offsets, offsets), -1).reshape(-1, 2)
            cells = np.floor(grid).astype(int)
            inside = (cells >= 0).all(1) & (cells[:, 0] < scene.width) & (cells[:, 1] < scene.height)
            grid, cells = grid[inside], cells[inside]
            own = grid[owner[cells[:, 1], cells[:, 0]] == layer]
            points.append(own if len(own) else click[None])
    return np.concatenate(points) if points else np.zeros((0, 2))


def choose_points(
    rng: np.random.Generator,
    scene: Scene,
    owner: np.ndarray,
    mode: TrackMode,
    spacings: tuple[float, float] = SPACINGS,
) -> np.ndarray:
    """Points [N, 2] of frame 0 to track: a visitor's, some tens at random, or a jittered grid over the frame.

    spacings: of that grid, see `SPACINGS`.
    """
    size = np.array([scene.width, scene.height], np.float64)
    if mode == "drags":
        return drag_points(rng, scene, owner)
    if mode == "sparse":
        return rng.uniform(0, 1, (rng.integers(12, 100), 2)) * size
    spacing = rng.uniform(*spacings) * size.min()
    grid = np.stack(np.meshgrid(*(np.arange(spacing / 2, side, spacing) for side in size)), -1).reshape(-1, 2)
    # In no order: where there are too many, the first ones are kept.
    return rng.permutation(np.clip(grid + rng.normal(0, spacing / 8, grid.shape), 0, size - 1e-3))


def choose_tracks(
    rng: np.random.Generator, scene: Scene, clip: Clip, mode: TrackMode, spacings: tuple[float, float] = SPACINGS
) -> Tracks:
    points = choose_points(rng, scene, clip.owner[0], mode, spacings)
    return track_points(scene, clip.owner, range(scene.frames), points, draw_ids(len(points), rng))
