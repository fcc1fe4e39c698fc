"""People, animals and machines to cut scenes from, drawn from the animated models of a game: limbs in any pose.

Models are G3D files of version 4, MegaGlest's: meshes whose places are listed frame by frame.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

FINER = 3  # times as large as it will be, a figure is drawn: soft edges
BELOW, ABOVE = -0.05, 0.45  # radians: from how far above a figure is seen
AMBIENT, DIFFUSE = 0.55, 0.6  # of the light that falls on it
FILE, MESH = struct.Struct("<3sBHB"), struct.Struct("<64s3I8f2I")
TEXTURES, NAME = 5, 64  # kinds that a mesh may have, and bytes of a name; the first kind holds its colours


@dataclass(frozen=True)
class Mesh:
    """places, normals: [frames, V, 3], y is up; corners: int [K, 3], triangles; on_texture: [V, 2], from 0 to 1.

    texture: uint8 [h, w, 4], RGB and how opaque that lies on the colour of its party, or None; colour: RGB, if so.
    """

    places: np.ndarray
    normals: np.ndarray
    corners: np.ndarray
    on_texture: np.ndarray
    texture: np.ndarray | None
    colour: np.ndarray


def read_model(path: Path) -> list[Mesh] | None:
    """The meshes of a G3D file, with the textures beside it; None when it is damaged, empty, or of another version."""
    data = path.read_bytes()
    try:
        kind, version, count, _ = FILE.unpack_from(data)
        if (kind, version) != (b"G3D", 4):
            return None
        meshes, at = [], FILE.size
        for _ in range(count):
            mesh, at = _read_mesh(data, at, path.parent)
            meshes.append(mesh)
    except (struct.error, ValueError):
        return None
    return meshes if any(len(mesh.corners) for mesh in meshes) else None


def _read_mesh(data: bytes, at: int, folder: Path) -> tuple[Mesh, int]:
    """The mesh that begins at a byte, and the byte after it."""
    _, frames, vertices, corners, *numbers = MESH.unpack_from(data, at)
    at += MESH.size
    names = []
    for _ in range((numbers[-1] & 2**TEXTURES - 1).bit_count()):
        names.append(data[at : at + NAME].split(b"\0")[0].decode("latin-1"))
        at += NAME

    def array(kind: str, *shape: int) -> np.ndarray:
        nonlocal at
        found = np.frombuffer(data, kind, int(np.prod(shape)), at).reshape(shape)
        at += found.nbytes
        return found

    places, normals = (array("<f4", frames, vertices, 3) for _ in range(2))
    on_texture = array("<f4", vertices, 2) if names else np.zeros((vertices, 2), np.float32)
    triangles = array("<u4", corners // 3, 3).astype(int)
    if not places.size or triangles.max(initial=0) >= vertices or not np.isfinite(places).all():
        raise ValueError("a mesh without places, or with corners that have none")
    texture = _read_texture(folder / Path(names[0]).name) if numbers[-1] & 1 else None
    normals, on_texture = (np.nan_to_num(x, posinf=0, neginf=0) for x in (normals, on_texture))  # some say nothing
    return Mesh(places, normals, triangles, on_texture, texture, 255 * np.array(numbers[:3])), at


def _read_texture(path: Path) -> np.ndarray | None:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if image is None or image.dtype != np.uint8 or image.ndim != 3:
        return None
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGBA)


def draw(meshes: list[Mesh], rng: np.random.Generator, side: int) -> np.ndarray:
    """A figure at a moment of its motion, from any side, in any light: uint8 RGBA, its longer side about `side` pixels.

    Each pixel is coloured by the nearest triangle that lies there.
    """
    moment, towards = rng.random(), _turned(rng.uniform(0, 2 * np.pi), rng.uniform(BELOW, ABOVE))
    frames = [int(moment * len(mesh.places)) for mesh in meshes]
    places, normals = (
        np.concatenate([part[frame] @ towards.T for part, frame in zip(parts, frames, strict=True)])
        for parts in ([mesh.places for mesh in meshes], [mesh.normals for mesh in meshes])
    )
    begins = np.cumsum([0, *(mesh.places.shape[1] for mesh in meshes)])
    corners = np.concatenate([mesh.corners + begin for mesh, begin in zip(meshes, begins, strict=False)])
    of_mesh = np.repeat(np.arange(len(meshes)), [len(mesh.corners) for mesh in meshes])
    at, size = _on_paper(places, corners, FINER * side)
    shown, shares = _seen(at, places[:, 2], corners, size)
    rows, columns = (shown >= 0).nonzero()
    triangle, shares = shown[rows, columns], shares[rows, columns]

    def between(values: np.ndarray) -> np.ndarray:
        return (values[corners[triangle]] * shares[..., None]).sum(1)

    normal, light = between(normals), rng.normal((0, 0.6, 0.7), 1)
    slope = normal @ light / np.maximum(np.linalg.norm(normal, axis=1) * np.linalg.norm(light), 1e-6)
    on_texture, party = between(np.concatenate([mesh.on_texture for mesh in meshes])), rng.uniform(0, 255, 3)
    drawn = np.zeros((*size[::-1], 4), np.float32)
    for number, mesh in enumerate(meshes):
        here = of_mesh[triangle] == number
        lit = AMBIENT + DIFFUSE * np.clip(slope[here], 0, 1)[:, None]
        drawn[rows[here], columns[here], :3] = np.clip(_colours(mesh, on_texture[here], party) * lit, 0, 255)
        drawn[rows[here], columns[here], 3] = 255
    small = cv2.resize(drawn, tuple(max(1, n // FINER) for n in size), interpolation=cv2.INTER_AREA)
    small[..., :3] *= 255 / np.maximum(small[..., 3:], 1)  # colours as they are where the figure is opaque
    return np.clip(small, 0, 255).round().astype(np.uint8)


def _turned(yaw: float, pitch: float) -> np.ndarray:
    """Rotation [3, 3] about the vertical, then towards the viewer."""
    about = cv2.Rodrigues(np.array([0, yaw, 0.0]))[0]
    return cv2.Rodrigues(np.array([pitch, 0, 0.0]))[0] @ about


def _on_paper(places: np.ndarray, corners: np.ndarray, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Where places [V, 3] are seen, [V, 2] pixels, on a picture (columns, rows) that all corners just fit on."""
    used = places[np.unique(corners), :2] * (1, -1)
    least, most = used.min(0), used.max(0)
    scale = side / max(*(most - least), 1e-6)
    return (places[:, :2] * (1, -1) - least) * scale, tuple(np.ceil((most - least) * scale).astype(int).clip(1))


def _seen(
    at: np.ndarray, near: np.ndarray, corners: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The triangle that each pixel shows, int [rows, columns], -1 where none; and the shares of its corners, [..., 3].

    at: places [V, 2], pixels; near: [V], the nearer to the viewer the more.
    """
    shown, nearest = np.full(size[::-1], -1), np.full(size[::-1], -np.inf)
    shares = np.zeros((*size[::-1], 3))
    for number, triangle in enumerate(corners):
        (x, y), others = at[triangle[0]], at[triangle[1:]] - at[triangle[0]]
        area = np.linalg.det(others)
        left, top = np.floor(at[triangle].min(0)).astype(int)
        right, bottom = np.ceil(at[triangle].max(0)).astype(int)
        if abs(area) < 1e-9:  # seen from its edge
            continue
        columns, rows = np.arange(left, right) + 0.5 - x, np.arange(top, bottom)[:, None] + 0.5 - y
        (ax, ay), (bx, by) = others / area
        second, third = columns * by - rows * bx, rows * ax - columns * ay
        of_corners = np.stack([1 - second - third, second, third], -1)
        depth, box = of_corners @ near[triangle], np.s_[top:bottom, left:right]
        here = (of_corners >= 0).all(-1) & (depth > nearest[box])
        shown[box][here], nearest[box][here], shares[box][here] = number, depth[here], of_corners[here]
    return shown, shares


def _colours(mesh: Mesh, on_texture: np.ndarray, party: np.ndarray) -> np.ndarray:
    """RGB [N, 3] of a mesh at places [N, 2] of its texture, which repeats; where that lets through, its party's."""
    if mesh.texture is None:
        return np.tile(mesh.colour, (len(on_texture), 1))
    size = mesh.texture.shape[1::-1]
    columns, rows = (on_texture * (1, -1) * size % size).astype(int).T % np.array(size)[:, None]
    found = mesh.texture[rows, columns].astype(np.float32)
    opaque = found[:, 3:] / 255
    return found[:, :3] * opaque + party * (1 - opaque)
