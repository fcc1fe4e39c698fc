"""New views of a scene from one photograph, against the real ones (the paper's section 4.2, Table 2 and appendix E).

    python -m motionstream eval camera LLFF_DIR [--json]

LLFF_DIR is a scene in LLFF's layout, or a folder of such scenes: `images/` and `poses_bounds.npy`, float64 [N, 17], one
row a picture in the order of their names: 3x5 [R | t | height, width, focal] with R's columns down, right and back,
then nearest and farthest depth. It is never unpickled.

Input is the view nearest to the middle of all; targets are every eighth view, as LLFF itself holds them out. From the
input's monocular depth, times the one factor that agrees best with points of the scene, tracks are drawn while the
camera goes straight from the input's to the target's place; the last frame is compared with the target, at 512x288
after resizing, whatever size a method works at. The folder has no points of COLMAP's, so they are made the same way:
SIFT matches between the input and its neighbours, triangulated with the given poses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from motionstream.controls.depth import Depth, DepthAnything, MoGe
from motionstream.controls.paths import Keyframes
from motionstream.controls.pinhole import Camera, Surface
from motionstream.controls.planes import Standing, guess_planes
from motionstream.errors import InputError
from motionstream.evaluation import baselines, metrics
from motionstream.evaluation.lpips import Lpips
from motionstream.evaluation.motion import add_common, mean_over, report, resized, sheet_place, student
from motionstream.evaluation.sheets import check_place, draw_tracks
from motionstream.machine import parse_resolution, size_for
from motionstream.model.checkpoint import Model, load_model
from motionstream.model.presets import sharp_times
from motionstream.tracks import MAX_TRACKS, Tracks, draw_ids
from motionstream.video import fit_image, pictures_in, read_image

SIZE = (512, 288)  # pixels, of everything that is compared
PROMPT = "static scene, only camera motion, no object is moving, {}"
HELD_OUT = 8  # every eighth view is a target
NEIGHBOURS = 5  # views that the input is matched with
RATIO = 0.75  # of a match's distance to the second best one's, at most (Lowe 2004)
ERROR = 1.5  # pixels by which a triangulated point may miss the two places that it was found at
ENOUGH = 20  # points that make a median; with fewer, the bounds of poses_bounds.npy say how deep the scene is
MAX_VIEWS = 1_000
MAX_BYTES = 2**20  # of poses_bounds.npy
DEPTHS = ("auto", "planes", "depth-anything", "moge")


@dataclass(frozen=True)
class Scene:
    """Pictures at SIZE, uint8 [288, 512, 3], by number; cameras for it, OpenCV axes; bounds: [N, 2] depths."""

    name: str
    files: list[Path]
    cameras: list[Camera]
    bounds: np.ndarray

    def picture(self, index: int) -> np.ndarray:
        return fit_image(read_image(self.files[index]), *SIZE)

    def split(self) -> tuple[int, list[int]]:
        """The input view, and the targets."""
        places = np.stack([camera.pose[:3, 3] for camera in self.cameras])
        source = int(np.linalg.norm(places - places.mean(axis=0), axis=1).argmin())
        return source, [index for index in range(0, len(places), HELD_OUT) if index != source]

    def near(self, index: int) -> list[int]:
        """The views whose cameras are nearest to that of `index`."""
        places = np.stack([camera.pose[:3, 3] for camera in self.cameras])
        return np.linalg.norm(places - places[index], axis=1).argsort()[1 : NEIGHBOURS + 1].tolist()


def scenes(folder: Path) -> Iterator[Scene]:
    """The scene that `folder` is, or all that it holds. Raises `InputError`."""
    found = [folder] if (folder / "poses_bounds.npy").is_file() else sorted(folder.glob("*/poses_bounds.npy"))
    if not found:
        raise InputError(f"{folder} has no poses_bounds.npy; expected a scene in LLFF's layout, or a folder of them")
    for path in found:
        yield read_scene(path if path.is_dir() else path.parent)


def read_scene(folder: Path) -> Scene:
    """One scene. Raises `InputError` naming what is wrong with it."""
    path, pictures = folder / "poses_bounds.npy", folder / "images"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 10} KB: it can be no file of poses")
        rows = np.load(path, allow_pickle=False)
        files = pictures_in(pictures)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder} is no scene in LLFF's layout: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or rows.dtype.kind != "f" or not np.isfinite(rows).all():
        raise InputError(f"{path} holds {rows.dtype} {list(rows.shape)}; expected finite numbers, [views, 17]")
    if not 2 <= len(rows) == len(files) <= MAX_VIEWS:
        raise InputError(f"{path} has {len(rows)} poses, {pictures} {len(files)} pictures; expected 2 to {MAX_VIEWS} "
                         "of each, as many")
    if (rows[:, 15:] <= 0).any():
        raise InputError(f"{path} has depths that are not above 0")
    return Scene(folder.name, files, [_camera(row[:15].reshape(3, 5)) for row in rows], rows[:, 15:])


def _camera(pose: np.ndarray) -> Camera:
    """LLFF's [R | t | h, w, f], axes down, right, back -> OpenCV's right, down, forward, for a frame of SIZE."""
    down, right, back, place, (height, width, focal) = pose.T
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, down, -back, place], axis=1)
    if not (height >= 1 and width >= 1):
        raise InputError(f"poses_bounds.npy has pictures of {width}x{height} pixels")
    camera = Camera.facing(width, height, focal)
    return Camera(camera.scaled((width, height), SIZE).intrinsics, matrix)


def scene_points(scene: Scene, index: int) -> np.ndarray:
    """Points of the scene that view `index` sees: [M, 3], pixel x, y of SIZE and depth."""
    sift = cv2.SIFT_create()
    views = {i: sift.detectAndCompute(cv2.cvtColor(scene.picture(i), cv2.COLOR_RGB2GRAY), None)
             for i in (index, *scene.near(index))}
    found = [np.zeros((0, 3))]
    for other in scene.near(index):
        (here, mine), (there, theirs) = views[index], views[other]
        if mine is None or theirs is None or len(theirs) < 2:
            continue
        pairs = cv2.BFMatcher().knnMatch(mine, theirs, k=2)
        good = [first for first, second in pairs if first.distance < RATIO * second.distance]
        if good:
            a = np.array([here[match.queryIdx].pt for match in good])
            b = np.array([there[match.trainIdx].pt for match in good])
            found.append(_triangulate(scene.cameras[index], scene.cameras[other], a + 0.5, b + 0.5))
    return np.concatenate(found)


def _triangulate(one: Camera, other: Camera, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixels [M, 2] of the same things in two views -> [K, 3], pixel in the first and depth, where both agree."""
    matrices = [camera.intrinsics @ np.linalg.inv(camera.pose)[:3] for camera in (one, other)]
    points = cv2.triangulatePoints(*matrices, a.T, b.T).T
    points = points[:, :3] / np.where(points[:, 3:] == 0, 1e-12, points[:, 3:])
    (at, z), (at_other, z_other) = one.project(points), other.project(points)
    misses = np.maximum(np.linalg.norm(at - a, axis=1), np.linalg.norm(at_other - b, axis=1))
    kept = (z > 0) & (z_other > 0) & (misses < ERROR)
    return np.concatenate([a[kept], z[kept, None]], axis=1)


def depth_scale(depth: np.ndarray, points: np.ndarray, bounds: np.ndarray) -> float:
    """The one factor on `depth` [h, w] (of a frame of SIZE) that agrees best with the scene's points [M, 3]."""
    surface = Surface(Camera.facing(*SIZE, 1.0), depth, *SIZE)
    if len(points) >= ENOUGH:
        return float(np.median(points[:, 2] / surface.depth_at(points[:, :2])))
    own = np.quantile(depth, (0.001, 0.999))
    return float(np.exp(np.log(bounds / own).mean()))


def camera_tracks(surface: Surface, to: Camera, frames: int, count: int) -> Tracks:
    """Tracks of a grid of about `count` points while the camera goes straight from the surface's own to another."""
    way = Keyframes([surface.camera, to], np.array([0.0, 1.0]), SIZE)
    cameras = [way.at(share) for share in np.linspace(0, 1, frames)]
    places = surface.places(count)
    ids = draw_ids(len(places), np.random.default_rng(0))
    return surface.tracks(places, surface.lift(places), cameras, ids)


def pick_depth(name: str) -> Callable[[np.ndarray], Depth]:
    """A picture's source of depth, by a name of DEPTHS; "auto" is the best one whose weights are here."""
    learned = {"depth-anything": DepthAnything(), "moge": MoGe()}
    if name == "auto":
        name = next((name for name, model in learned.items() if model.ready()), "planes")
    return lambda image: learned[name] if name in learned else Standing(guess_planes(image))


def methods(model: Model | None, size: tuple[int, int], prompt: str) -> dict[str, Callable]:
    """What is compared, each (picture, tracks, seed) -> video at SIZE; the model works at `size` (width, height)."""
    def generate(image: np.ndarray, tracks: Tracks, seed: int) -> np.ndarray:
        times = sharp_times(model.preset, *size, *SIZE)
        small, sharp = (resized(image[None], (n * size[0], n * size[1]))[0] for n in (1, times))
        video = student(model, small, tracks.scale(SIZE, size), seed, sharp if times > 1 else None, prompt)
        return resized(video, SIZE)

    found: dict[str, Callable] = {} if model is None else {"student": generate}
    found["warp"] = lambda image, tracks, seed: baselines.warp(image, tracks)
    found["motionless"] = lambda image, tracks, seed: baselines.motionless(image, tracks)
    return found


def evaluate(scene: Scene, compared: dict[str, Callable], args: argparse.Namespace, lpips: Lpips | None):
    """-> ({"scene, view n": {method: figures}}, rows of the contact sheet)."""
    source, targets = scene.split()
    image, camera = scene.picture(source), scene.cameras[source]
    depth = pick_depth(args.depth)(image).estimate(image, camera, camera, None)
    scale = depth_scale(depth, scene_points(scene, source), scene.bounds[source])
    surface = Surface(camera, depth * scale, *SIZE)
    figures, rows = {}, []
    for target in targets:
        tracks, real = camera_tracks(surface, scene.cameras[target], args.frames, args.tracks), scene.picture(target)
        last = {name: method(image, tracks, args.seed)[-1].copy() for name, method in compared.items()}
        name = f"{scene.name}, view {target}"
        figures[name] = {method: _score(frame[None], real[None], lpips) for method, frame in last.items()}
        rows.append((name, [draw_tracks(image, tracks), real, *last.values()]))
    return figures, rows


def _score(made: np.ndarray, real: np.ndarray, lpips: Lpips | None) -> dict[str, float]:
    scores = {"psnr": metrics.psnr(made, real), "ssim": metrics.ssim(made, real)}
    return scores | ({"lpips": lpips.video(made, real)} if lpips else {})


def main(argv: list[str]) -> int:
    """`motionstream eval camera ...`: prints a table, writes a contact sheet, with --json one JSON line last -> 0."""
    args = _parser().parse_args(argv)
    if args.frames < 2 or not 1 <= args.tracks <= MAX_TRACKS:
        raise InputError(f"{args.frames} frames of {args.tracks} tracks; give at least 2, of 1 to {MAX_TRACKS}")
    check_place(sheet_place(args))
    model = None if args.model == "none" else load_model(args.model, args.device)
    lpips = Lpips.load(args.lpips) if args.lpips else None
    size, figures, rows = SIZE, {}, []
    if model is not None:
        preset = model.preset
        choice = parse_resolution(args.resolution, preset)
        size = size_for(preset, choice, *SIZE)
    for scene in scenes(args.folder):
        compared = methods(model, size, PROMPT.format(scene.name))
        of_scene, shown = evaluate(scene, compared, args, lpips)
        figures |= of_scene
        rows += shown
    if not figures:
        raise InputError(f"{args.folder} has no view to compare with; a scene needs more pictures")
    report(args, ["input and tracks", "target", *compared], rows, figures, mean_over(figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="motionstream eval camera", description=__doc__.split("\n")[0])
    parser.set_defaults(table="camera")
    parser.add_argument("folder", type=Path, metavar="LLFF_DIR", help="a scene in LLFF's layout, or a folder of them")
    parser.add_argument("--depth", choices=DEPTHS, default="auto", help="default: the best that is here")
    parser.add_argument("--frames", type=int, default=49, help="from input to target (default: %(default)s)")
    parser.add_argument("--tracks", type=int, default=240, help="about how many (default: %(default)s)")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="weights for LPIPS, see evaluation/lpips.py")
    add_common(parser)
    return parser
