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
from typing import Literal, Protocol

import cv2
import numpy as np

from motionstream.tracks import Tracks, draw_ids

MARGIN = 0.3  # of the frame, on every side: what a moving camera may uncover
MAX_LAYERS = 4
OWNED = 90  # opacity, of 255, from which on a pixel is of the layer: a shadow's core is, its rim is not
SPACINGS = 0.07, 0.16  # between dense tracks, least and most, as a share of the frame's shorter side
SLIDE, SLIDE_FRAMES = 4, 8  # most steps each way of a sliding photograph, and for how many frames it slides

TrackMode = Literal["drags", "sparse", "dense"]


class Library(Protocol):
    """Pictures to cut scenes from; any list may be empty (procedural textures and blobs stand in)."""

    photos: list[np.ndarray]  # uint8 [h, w, 3]
    cutouts: list[np.ndarray]  # uint8 [h, w, 4], an object trimmed to its alpha
    objects: list[tuple[int, np.ndarray]]  # index of a photograph, uint8 [h, w] mask of one object in it


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


# --- textures and shapes -------------------------------------------------------------------------------------------


def noise_texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A smooth random colour texture, uint8 [height, width, 3]: where no photograph is at hand."""
    picture = np.zeros((height, width, 3), np.float32) + rng.uniform(40, 215, 3).astype(np.float32)
    for cells in (2, 5, 11, 23, 47):
        coarse = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32) @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        amplitude = rng.uniform(5, 60) * (2 / cells) ** rng.uniform(0.2, 0.9)
        picture += amplitude * cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture, 0, 255).astype(np.uint8)


def blob_alpha(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random star-shaped outline with lobes, uint8 [size, size]."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radius = np.ones_like(angle)
    for lobes in range(1, 7):
        radius += rng.uniform(0, 0.45) / lobes * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.15, None) / radius.max() * 0.48 * size
    stretch = np.array([1, rng.uniform(0.4, 1)])[rng.permutation(2)]
    outline = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] * stretch + size / 2
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return mask


def photo_crop(rng: np.random.Generator, library: Library, width: int, height: int) -> np.ndarray:
    """A random crop of a random photograph with random light, uint8 [height, width, 3]."""
    if not library.photos or rng.random() < 0.03:
        return noise_texture(rng, width, height)
    photo = library.photos[rng.integers(len(library.photos))]
    crop, _ = _random_crop(rng, photo, width, height)
    return _relight(rng, crop)


def _random_crop(
    rng: np.random.Generator, picture: np.ndarray, width: int, height: int, smallest: float = 0.45
) -> tuple[np.ndarray, float]:
    rows, columns = picture.shape[:2]
    scale = min(columns / width, rows / height) * rng.uniform(smallest, 1)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    x, y = rng.integers(columns - size[0] + 1), rng.integers(rows - size[1] + 1)
    crop = cv2.resize(
        picture[y : y + size[1], x : x + size[0]],
        (width, height),
        interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC,
    )
    return (crop[:, ::-1] if rng.random() < 0.5 else crop), scale


def _relight(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3)
    curve = np.clip(((np.arange(256) / 255) ** rng.uniform(0.75, 1.3))[:, None] * gain * 255, 0, 255).astype(np.uint8)
    return np.stack([curve[picture[..., c], c] for c in range(3)], -1)


# --- layers --------------------------------------------------------------------------------------------------------


def _premultiply(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.uint16)
    return np.concatenate([(rgba[..., :3] * alpha + 127) // 255, alpha], -1).astype(np.uint8)


def _object_picture(rng: np.random.Generator, library: Library) -> np.ndarray:
    """One object to paste, RGBA: a cut-out, an object of a photograph, or a blob with a photograph's texture."""
    if library.objects and rng.random() < 0.4:
        photo, mask = library.objects[rng.integers(len(library.objects))]
        x, y, width, height = cv2.boundingRect((mask > 127).astype(np.uint8))
        box = np.s_[y : y + height, x : x + width]
        flip = np.s_[:, ::-1] if rng.random() < 0.5 else np.s_[:]
        return np.dstack([_relight(rng, library.photos[photo][box]), mask[box]])[flip]
    if library.cutouts and rng.random() < 0.7:
        cutout = library.cutouts[rng.integers(len(library.cutouts))]
        cutout = cutout[:, ::-1] if rng.random() < 0.5 else cutout
        return np.dstack([_relight(rng, cutout[..., :3]), cutout[..., 3]])
    return np.dstack([photo_crop(rng, library, 128, 128), blob_alpha(rng, 128)])


def _paste(
    rng: np.random.Generator,
    picture: np.ndarray,
    canvas: tuple[int, int],
    frame: tuple[int, int],
    centre: np.ndarray | None = None,
    reach: float | None = None,
) -> np.ndarray:
    """`picture` drawn at an angle on a canvas (columns, rows); by default of any size, about a place in the frame."""
    rows, columns = picture.shape[:2]
    reach = rng.uniform(0.15, 1.1) * min(frame) if reach is None else reach
    scale = reach / np.sqrt(rows * columns)
    if centre is None:
        centre = np.array(canvas) / 2 + (rng.uniform(-0.42, 0.42, 2) * frame)
    angle = np.degrees(rng.normal(0, 0.25)) if rng.random() < 0.6 else 0.0
    place = cv2.getRotationMatrix2D((columns / 2, rows / 2), angle, scale)
    place[:, 2] += centre - (columns / 2, rows / 2)
    if scale < 0.7:  # shrink first, so that the warp does not alias
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        place[:, :2] /= scale
        picture = small
    return cv2.warpAffine(_premultiply(picture), place, canvas, flags=cv2.INTER_LINEAR)


def _paste_apart(
    rng: np.random.Generator,
    picture: np.ndarray,
    canvas: tuple[int, int],
    frame: tuple[int, int],
    others: list[np.ndarray],
) -> np.ndarray:
    """`picture` drawn where it mostly hides no other: in photographs, what touches mostly belongs together."""
    taken = np.zeros(canvas[::-1], bool)
    for other in others:
        taken |= other[..., 3] > 0
    for _ in range(4):
        placed = _paste(rng, picture, canvas, frame)
        if not (taken & (placed[..., 3] > 0)).any() or rng.random() < 0.15:
            break
    return placed


def _grown(
    rng: np.random.Generator, library: Library, placed: np.ndarray, canvas: tuple[int, int], frame: tuple[int, int]
) -> np.ndarray:
    """A drawn object with another one stuck to its outline or its inside: what belongs together need not look alike."""
    outline = _outline(placed)
    rows, columns = np.nonzero(placed[..., 3] > 127)
    if outline is None:
        return placed
    spots = outline if rng.random() < 0.6 else np.stack([columns, rows], 1)
    reach = np.sqrt(len(rows)) * rng.uniform(0.25, 1.1)
    part = _paste(rng, _object_picture(rng, library), canvas, frame, spots[rng.integers(len(spots))], reach)
    return _over(placed, part) if rng.random() < 0.6 else _over(part, placed)


def _outline(placed: np.ndarray) -> np.ndarray | None:
    """Points [N, 2] of the longest outline of a drawn object; None where nothing is drawn."""
    outlines, _ = cv2.findContours((placed[..., 3] > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return max(outlines, key=len)[:, 0].astype(np.float64) if outlines else None


def _dressed(rng: np.random.Generator, library: Library, placed: np.ndarray) -> np.ndarray:
    """A drawn object with patches of other colours within its outline, as clothes, hair and markings are."""
    rows, columns = np.nonzero(placed[..., 3] > 127)
    for _ in range(rng.integers(1, 4) if len(rows) else 0):
        size = int(np.sqrt(len(rows)) * rng.uniform(0.3, 1.4)) + 4
        patch = np.dstack([photo_crop(rng, library, size, size), blob_alpha(rng, size)])
        if rng.random() < 0.5:  # of one colour, nearly
            plain = rng.uniform(0, 255, 3) + 0.25 * (patch[..., :3] - patch[..., :3].mean((0, 1)))
            patch[..., :3] = np.clip(plain, 0, 255)
        pick = rng.integers(len(rows))
        corner = np.array([columns[pick], rows[pick]]) - size / 2
        to = np.float64([[1, 0, corner[0]], [0, 1, corner[1]]])
        drawn = cv2.warpAffine(_premultiply(patch), to, placed.shape[1::-1], flags=cv2.INTER_LINEAR)
        within = (drawn.astype(np.uint16) * placed[..., 3:] + 127) // 255
        placed = np.dstack([_over(placed, within.astype(np.uint8))[..., :3], placed[..., 3]])
    return placed


def _limbed(rng: np.random.Generator, placed: np.ndarray) -> np.ndarray:
    """A drawn object with legs, feelers or ropes: thin things of one colour that start at its outline."""
    outline = _outline(placed)
    if outline is None:
        return placed
    middle, size = outline.mean(0), np.sqrt((placed[..., 3] > 127).sum())
    colour = rng.uniform(0, 255, 3) * rng.choice([0.15, 1], p=[0.7, 0.3])
    drawn = np.zeros_like(placed)
    along = np.linspace(0, 1, 12)[:, None]
    for start in outline[rng.integers(len(outline), size=rng.integers(1, 9))]:
        outwards = (start - middle) / max(np.linalg.norm(start - middle), 1e-6)
        reach = size * rng.uniform(0.1, 0.6)
        aside = reach * rng.normal(0, 0.35) * np.array([-outwards[1], outwards[0]])
        line = start - 0.1 * size * outwards + along * reach * outwards + along**2 * aside
        width = max(1, round(size * rng.uniform(0.005, 0.045)))
        cv2.polylines(drawn, [np.round(line * 16).astype(np.int32)], False, (*colour, 255), width, cv2.LINE_AA, 4)
    return _over(placed, drawn)  # drawn on nothing, its soft edges are premultiplied


def _shaded(rng: np.random.Generator, placed: np.ndarray) -> np.ndarray:
    """A drawn object with what goes along with it on the ground: a shadow, fallen or cast behind, or a reflection."""
    rows, columns = np.nonzero(placed[..., 3] > 127)
    if not len(rows):
        return placed
    size, foot = np.sqrt(len(rows)), float(rows.max())
    kind = rng.choice(["fallen", "cast", "reflection"], p=[0.5, 0.25, 0.25])
    # Heights above the foot shrink, stay, or turn over.
    upright = {"fallen": rng.uniform(0.08, 0.5), "cast": 1.0, "reflection": -rng.uniform(0.5, 1)}[kind]
    slant = rng.normal(0, 0.6) if kind == "fallen" else 0.0
    aside, down = rng.normal(0, 0.12, 2) * size if kind == "cast" else (0.0, -rng.uniform(0, 0.1) * size)
    to = np.float64([[1, -slant, aside + slant * foot], [0, upright, down + (1 - upright) * foot]])
    below = cv2.warpAffine(placed, to, placed.shape[1::-1], flags=cv2.INTER_LINEAR)
    blur = size * (rng.uniform(0.005, 0.03) if kind == "reflection" else rng.uniform(0.01, 0.09))
    below = cv2.GaussianBlur(below, (0, 0), max(0.5, blur)).astype(np.float32) * rng.uniform(0.4, 0.85)
    if kind != "reflection":
        below[..., :3] *= rng.uniform(0, 0.15)
    return _over(below.astype(np.uint8), placed)


def _over(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """One premultiplied picture on another, uint8."""
    seen = below.astype(np.uint16) * (255 - above[..., 3:].astype(np.uint16))
    return np.minimum(above + (seen + 127) // 255, 255).astype(np.uint8)


def _in_light(rng: np.random.Generator, placed: np.ndarray, background: np.ndarray) -> np.ndarray:
    """A premultiplied object in colours nearer to those of what it hides: that it was pasted tells less."""
    alpha = placed[..., 3:] / np.float32(255)
    if alpha.sum() < 1:
        return placed
    own = placed[..., :3].sum((0, 1)) / alpha.sum()
    under = (background * alpha).sum((0, 1)) / alpha.sum()
    shifted = placed[..., :3] + alpha * rng.uniform(0, 0.8) * (under - own)
    return np.dstack([np.clip(shifted, 0, 255 * alpha).astype(np.uint8), placed[..., 3]])


def _twin(rng: np.random.Generator, placed: np.ndarray) -> np.ndarray:
    """The same object again beside itself, sometimes mirrored: what looks alike need not belong together."""
    size = np.sqrt((placed[..., 3] > 127).sum())
    heading, reach = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.8, 2.0)
    shift = np.float64([[1, 0, reach * np.cos(heading)], [0, 1, reach * np.sin(heading)]])
    if rng.random() < 0.4:
        middle = np.nonzero(placed[..., 3].any(0))[0].mean() if size else 0.0
        shift[0, 0], shift[0, 2] = -1, shift[0, 2] + 2 * middle
    return cv2.warpAffine(placed, shift, placed.shape[1::-1], flags=cv2.INTER_LINEAR)


def _in_place(rng: np.random.Generator, library: Library, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A photograph and one object of it: the background RGB with the object painted out, and the object RGBA."""
    photo, mask = library.objects[rng.integers(len(library.objects))]
    whole = np.dstack([library.photos[photo], mask])
    for _ in range(4):
        crop, _ = _random_crop(rng, whole, *canvas, smallest=0.7)
        if 0.01 < (crop[..., 3] > 127).mean() < 0.5:
            break
    lit = np.ascontiguousarray(_relight(rng, crop[..., :3]))
    hidden = cv2.dilate((crop[..., 3] > 20).astype(np.uint8), np.ones((5, 5), np.uint8))
    return cv2.inpaint(lit, hidden, 3, cv2.INPAINT_TELEA), _premultiply(np.dstack([lit, crop[..., 3]]))


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


def _pictures(
    rng: np.random.Generator, library: Library, canvas: tuple[int, int], frame: tuple[int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A background, RGB, and what lies on it, back to front: one to three objects, premultiplied RGBA."""
    objects = []
    if library.objects and rng.random() < 0.55:
        background, in_place = _in_place(rng, library, canvas)
        objects.append(in_place)
    else:
        background = photo_crop(rng, library, *canvas)
    for _ in range(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]) + (not objects)):
        placed = _paste_apart(rng, _object_picture(rng, library), canvas, frame, objects)
        placed = _dressed(rng, library, placed) if rng.random() < 0.3 else placed
        placed = _in_light(rng, placed, background) if rng.random() < 0.4 else placed
        placed = _grown(rng, library, placed, canvas, frame) if rng.random() < 0.5 else placed
        placed = _limbed(rng, placed) if rng.random() < 0.25 else placed
        objects.append(_shaded(rng, placed) if rng.random() < 0.35 else placed)
    if rng.random() < 0.35:
        original = rng.integers(len(objects))
        twins = [_twin(rng, objects[original]) for _ in range(rng.choice([1, 2], p=[0.6, 0.4]))]
        objects[original:original] = twins
    return background, objects[-(MAX_LAYERS - 1) :]


def random_scene(rng: np.random.Generator, library: Library, width: int, height: int, frames: int) -> Scene:
    """A background with one to three objects; half of the time a moving camera, which gives each layer its parallax."""
    margin = round(MARGIN * width), round(MARGIN * height)
    canvas = (width + 2 * margin[0], height + 2 * margin[1])
    background, pictures = _pictures(rng, library, canvas, (width, height))
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
    for picture in pictures:
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
        picture = _over(picture, drawn)
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
    return np.clip(grid + rng.normal(0, spacing / 8, grid.shape), 0, size - 1e-3)


def choose_tracks(
    rng: np.random.Generator, scene: Scene, clip: Clip, mode: TrackMode, spacings: tuple[float, float] = SPACINGS
) -> Tracks:
    points = choose_points(rng, scene, clip.owner[0], mode, spacings)
    return track_points(scene, clip.owner, range(scene.frames), points, draw_ids(len(points), rng))
