"""What scenes are cut from: backgrounds, and objects drawn on them, as cut-outs, photographs and chance provide them.

An object is one thing, however many pieces it is drawn of: parts stuck to it, limbs, patches of other colours, shadows.
"""

from typing import Protocol

import cv2
import numpy as np


class Library(Protocol):
    """Pictures to cut scenes from; any list may be empty (procedural textures and blobs stand in)."""

    photos: list[np.ndarray]  # uint8 [h, w, 3]
    cutouts: list[np.ndarray]  # uint8 [h, w, 4], an object trimmed to its alpha
    objects: list[tuple[int, np.ndarray]]  # index of a photograph, uint8 [h, w] mask of one object in it


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


# --- objects -------------------------------------------------------------------------------------------------------


def _premultiply(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.uint16)
    return np.concatenate([(rgba[..., :3] * alpha + 127) // 255, alpha], -1).astype(np.uint8)


def _object_picture(rng: np.random.Generator, library: Library) -> np.ndarray:
    """One object to paste, RGBA: a cut-out, an object of a photograph, or a blob with a photograph's texture."""
    if library.objects and rng.random() < 0.3:
        photo, mask = library.objects[rng.integers(len(library.objects))]
        x, y, width, height = cv2.boundingRect((mask > 127).astype(np.uint8))
        box = np.s_[y : y + height, x : x + width]
        flip = np.s_[:, ::-1] if rng.random() < 0.5 else np.s_[:]
        return np.dstack([_relight(rng, library.photos[photo][box]), mask[box]])[flip]
    if library.cutouts and rng.random() < 0.85:
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
    picture = _premultiply(picture)  # first of all, so that no hidden colours are mixed in
    if scale < 0.7:  # shrink first, so that the warp does not alias
        size = max(1, round(columns * scale)), max(1, round(rows * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        place[:, :2] *= np.divide((columns, rows), size)
    return cv2.warpAffine(picture, place, canvas, flags=cv2.INTER_LINEAR)


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
    return over(placed, part) if rng.random() < 0.6 else over(part, placed)


def _outline(placed: np.ndarray) -> np.ndarray | None:
    """Points [N, 2] of the longest outline of a drawn object; None where nothing is drawn."""
    outlines, _ = cv2.findContours((placed[..., 3] > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return max(outlines, key=len)[:, 0].astype(np.float64) if outlines else None


def _dressed(
    rng: np.random.Generator, library: Library, placed: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """A drawn object with patches of other colours within its outline, as clothes, hair and markings are: some of the
    colour of what is behind it."""
    rows, columns = np.nonzero(placed[..., 3] > 127)
    for _ in range(rng.integers(1, 4) if len(rows) else 0):
        size = int(np.sqrt(len(rows)) * rng.uniform(0.3, 1.4)) + 4
        patch = np.dstack([photo_crop(rng, library, size, size), blob_alpha(rng, size)])
        if rng.random() < 0.7:  # of one colour, nearly
            hidden = background[rows, columns].mean(0) + rng.normal(0, 12, 3)
            plain = rng.uniform(0, 255, 3) if rng.random() < 0.5 else hidden
            plain = plain + 0.25 * (patch[..., :3] - patch[..., :3].mean((0, 1)))
            patch[..., :3] = np.clip(plain, 0, 255)
        pick = rng.integers(len(rows))
        corner = np.array([columns[pick], rows[pick]]) - size / 2
        to = np.float64([[1, 0, corner[0]], [0, 1, corner[1]]])
        drawn = cv2.warpAffine(_premultiply(patch), to, placed.shape[1::-1], flags=cv2.INTER_LINEAR)
        within = (drawn.astype(np.uint16) * placed[..., 3:] + 127) // 255
        placed = np.dstack([over(placed, within.astype(np.uint8))[..., :3], placed[..., 3]])
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
    return over(placed, drawn)  # drawn on nothing, its soft edges are premultiplied


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
    return over(below.astype(np.uint8), placed)


def over(below: np.ndarray, above: np.ndarray) -> np.ndarray:
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


def background_and_objects(
    rng: np.random.Generator, library: Library, canvas: tuple[int, int], frame: tuple[int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A background, RGB, and what lies on it, back to front: objects, premultiplied RGBA."""
    objects = []
    if library.objects and rng.random() < 0.55:
        background, in_place = _in_place(rng, library, canvas)
        objects.append(in_place)
    else:
        background = photo_crop(rng, library, *canvas)
    for _ in range(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1]) + (not objects)):
        placed = _paste_apart(rng, _object_picture(rng, library), canvas, frame, objects)
        placed = _in_light(rng, placed, background) if rng.random() < 0.4 else placed
        placed = _dressed(rng, library, placed, background) if rng.random() < 0.4 else placed
        placed = _grown(rng, library, placed, canvas, frame) if rng.random() < 0.5 else placed
        placed = _limbed(rng, placed) if rng.random() < 0.35 else placed
        objects.append(_shaded(rng, placed) if rng.random() < 0.35 else placed)
    if rng.random() < 0.35:
        original = rng.integers(len(objects))
        twins = [_twin(rng, objects[original]) for _ in range(rng.choice([1, 2], p=[0.6, 0.4]))]
        objects[original:original] = twins
    return background, objects
