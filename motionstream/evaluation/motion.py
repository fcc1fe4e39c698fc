"""Does the picture move as it was told to? Two tables, each with the baselines beside the model.

    python -m motionstream eval motion CLIP_DIR [--json]     # driven by a dense grid of a clip's own tracks
    python -m motionstream eval motion --library DIR --synthetic 24 [--json]
    python -m motionstream eval drags DRAGS_DIR [--json]     # photographs driven by one to five drags

**motion**: first frame of the clip as image, tracks of a grid over it, and the generated video against the clip itself.
A real clip's tracks come from Lucas-Kanade with a forward-backward check, which stands in for the paper's CoTracker3;
a synthetic clip's are exact. Methods that show the first frame's own pixels get it as sharp as the app would. As in the
paper (appendix E), longer clips are sampled evenly to 81 frames, first and last kept, and both videos are resized to
832x480 before they are compared; synthetic clips are compared as generated.

**drags**: DRAGS_DIR holds JSON files like those in `examples/`, one a run: {"image": path from the file, "paths":
[{"points": [[x, y], ...], "seconds": 2}], "pins": [[x, y], ...], "grid": {"spacing": px, "size": n}}, all in pixels of
the image; "seconds", "pins" and "grid" may be left out. Every path is gone through once at even speed from frame 0 and
then held. The stream runs to chunk 20.

Methods are callables behind one dictionary (`methods`), so a component is measured by adding an entry without it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch

from motionstream.cli import parse_seed, parse_size
from motionstream.errors import InputError, writing
from motionstream.evaluation import baselines, metrics
from motionstream.evaluation.lpips import Lpips
from motionstream.evaluation.sheets import check_place, contact_sheet, draw_tracks, save_png, table
from motionstream.machine import fit_pictures, parse_resolution
from motionstream.model.checkpoint import Model, load_model
from motionstream.model.presets import PRESETS, Preset
from motionstream.streaming import stream
from motionstream.tracks import MAX_TRACKS, StaticTracks, Tracks, draw_ids
from motionstream.video import VIDEO, fit_image, pictures_in, read_image
from motionstream.video import Clip as ClipFile

# (image uint8 [H, W, 3], tracks of T frames in its pixels, seed[, a sharper copy of the image, prompt; see `stream`])
# -> video uint8 [T, H, W, 3], or as large as that copy; frame 0 the image
Method = Callable[..., np.ndarray]
Fit = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]  # `fit_pictures` for a model and a size

FRAMES, COMPARED = 81, (832, 480)  # the paper's: frames a clip, (width, height) in which real clips are compared
LAST_CHUNK = 20
COUNTED = (16, 16)  # size at which frames are counted
SCENE = (832, 480)  # aspect of the synthetic scenes


# --- methods -------------------------------------------------------------------------------------------------------


def methods(model: Model | None, drags: bool = False) -> dict[str, Method]:
    """Everything that is compared, by name; without a model the baselines alone.

    drags: adds the warp as one would set it up by hand for a few drags, with the border pinned.
    """
    found: dict[str, Method] = {}
    if model is not None:
        found["student"] = partial(student, model)
        if model.preset.composite:
            plain = replace(model, preset=replace(model.preset, composite=False))
            found["student, no composite"] = lambda image, tracks, seed, sharp=None, prompt="": student(
                plain, image, tracks, seed, prompt=prompt
            )
        if model.motion_prior is not None:
            found["motion prior alone"] = lambda image, tracks, *_: prior_alone(model, image, tracks)
    found["warp"] = warp
    if drags:
        found["warp, border pinned"] = partial(warp, pinned_border=True)
    found["motionless"] = lambda image, tracks, seed, sharp=None, *_: baselines.motionless(
        largest(image, sharp), tracks
    )
    return found


def student(
    model: Model, image: np.ndarray, tracks: Tracks, seed: int, sharp: np.ndarray | None = None, prompt: str = ""
) -> np.ndarray:
    """The model as every visitor gets it: a `Method` with the model in front."""
    frames, count, source = [], 0, StaticTracks(tracks)
    with contextlib.closing(stream(model, image, source, prompt=prompt, seed=seed, sharp=sharp)) as chunks:
        while count < tracks.T:
            frames.append(next(chunks).frames)
            count += len(frames[-1])
    return np.concatenate(frames)[: tracks.T]


def warp(
    image: np.ndarray,
    tracks: Tracks,
    seed: int,
    sharp: np.ndarray | None = None,
    prompt: str = "",
    pinned_border: bool = False,
) -> np.ndarray:
    """`baselines.warp` as a `Method`."""
    large = largest(image, sharp)
    return baselines.warp(large, tracks.scale(image.shape[1::-1], large.shape[1::-1]), pinned_border)


def largest(image: np.ndarray, sharp: np.ndarray | None) -> np.ndarray:
    return image if sharp is None else sharp


def prior_alone(model: Model, image: np.ndarray, tracks: Tracks) -> np.ndarray:
    """What the motion prior gives the network to start from: the first frame, moved."""
    state = model.motion_prior.start(torch.tensor(image, device=model.device).permute(2, 0, 1) / 127.5 - 1)
    frames, chunk = [], 0
    while (rows := chunk_span(model.preset, chunk)).start < tracks.T:
        moved = model.motion_prior.step(state, tracks.rows(rows.start, min(rows.stop, tracks.T))).picture
        frames.append(((moved[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).cpu().numpy())
        chunk += 1
    return np.concatenate(frames)


def chunk_span(preset: Preset, index: int) -> range:
    """Stream indices of the frames of chunk `index`."""
    start = sum(preset.chunk_frames(i) for i in range(index))
    return range(start, start + preset.chunk_frames(index))


# --- clips, a dense grid -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """frames: uint8 [T, H, W, 3], the truth at the generated size; tracks: of a grid over frame 0, `spacing` px apart.

    judged: the same at the size in which videos are compared; None: at the generated one. sharp, prompt: see `stream`.
    """

    name: str
    frames: np.ndarray
    tracks: Tracks
    spacing: float
    judged: Clip | None = None
    sharp: np.ndarray | None = None
    prompt: str = ""


def real_clips(
    folder: Path, frames: int, spacing: float, fit: Fit, compare: tuple[int, int] | None = None
) -> Iterator[Clip]:
    """Every clip in `folder`, or the one that it is: video files and folders of pictures, with captions beside them.

    One of several that cannot be read is named on stderr and left out; `InputError` where no other is.
    fit: (a clip's first frame) -> that frame at generation size, and sharper or None. compare: (width, height) that
    videos are resized to before they are compared, as the paper does.
    """
    found = [folder] if _is_clip(folder) else sorted(path for path in folder.glob("*") if _is_clip(path))
    if not found:
        raise InputError(f"{folder} has no clips; expected video files or folders of pictures")
    read = 0
    for path in found:
        try:
            clip = _real_clip(path, frames, spacing, fit, compare)
        except InputError as error:  # of many clips, which one
            if len(found) == 1:
                raise InputError(f"{path}: {error}") from error
            print(f"motionstream: left out {path}: {error}", file=sys.stderr)
            continue
        read += 1
        yield clip
    if not read:
        raise InputError(f"none of the clips in {folder} could be used")


def _real_clip(path: Path, most: int, spacing: float, fit: Fit, compare: tuple[int, int] | None) -> Clip:
    """One of `real_clips`, of at most so many frames."""
    from motionstream.training.folder import caption

    source = _sampled(path, most)
    first = next(source)
    image, sharp = fit(first)
    size, video, large = image.shape[1::-1], [], []
    times = math.ceil(max(np.divide(compare, size))) if compare else 1
    for frame in chain([first], source):
        video.append(fit_image(frame, *size))
        if compare:
            large.append(resized(fit_image(frame, times * size[0], times * size[1])[None], compare)[0])
    video, points = np.stack(video), grid(*size, spacing)
    following = metrics.lucas_kanade(video, points)
    tracks, judged = Tracks(following.points, following.visible, _ids(len(points))), None
    if compare:
        wide = spacing * max(np.divide(compare, size))
        judged = Clip(path.name, np.stack(large), tracks.scale(size, compare), wide)
    return Clip(path.name, video, tracks, spacing, judged, sharp, caption(path))


def synthetic_clips(
    library: Path, count: int, frames: int, spacing: float, fit: Fit, seed: int
) -> Iterator[Clip]:
    """Scenes like those of the training, with exact tracks; held out if the library is."""
    from motionstream.training.photos import load_library
    from motionstream.training.scenes import random_scene, render_clip, track_points

    pictures = load_library(library)
    size = fit(np.zeros((*SCENE[::-1], 3), np.uint8))[0].shape[1::-1]
    for index in range(count):
        scene = random_scene(np.random.default_rng([seed, index]), pictures, *size, frames)
        clip = render_clip(scene)
        points = grid(*size, spacing)
        tracks = track_points(scene, clip.owner, range(frames), points, _ids(len(points)))
        yield Clip(f"scene {index}", clip.frames, tracks, spacing)


def resized(video: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every frame at `size` (width, height), whatever its shape."""
    height, width = video.shape[1:3]
    if (width, height) == size:
        return video
    smaller = size[0] <= width and size[1] <= height
    return np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC) for f in video])


def grid(width: int, height: int, spacing: float) -> np.ndarray:
    """Points [N, 2] `spacing` px apart, half of that from the border. Raises `InputError` on none or too many."""
    least, most = math.sqrt(width * height / MAX_TRACKS), 2 * min(width, height)
    if not least <= spacing < most:
        raise InputError(
            f"tracks {spacing:g} px apart in frames of {width}x{height}; give a --spacing from {math.ceil(least)} on, "
            f"below {most}"
        )
    x, y = (np.arange(spacing / 2, side, spacing) for side in (width, height))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def score_clip(
    video: np.ndarray,
    clip: Clip,
    wanted: Tracks,
    lpips: Lpips | None = None,
    tracker: metrics.Tracker = metrics.lucas_kanade,
) -> dict[str, float]:
    """One video against the clip. Units as in `metrics`; sharp: Laplacian energy of all frames over the first's.

    wanted: those of the clip's tracks that can be measured; lpips: with it, the perceptual distance is among the
    figures.
    """
    seen = metrics.visible_region(clip.tracks, video.shape[2], video.shape[1], clip.spacing)[1:]
    made, real = video[1:], clip.frames[1:]
    return {
        "psnr": metrics.psnr(made, real),
        "psnr_visible": metrics.psnr(made, real, seen),
        "psnr_uncovered": metrics.psnr(made, real, ~seen),
        "ssim": metrics.ssim(made, real),
        **({"lpips": lpips.video(made, real)} if lpips else {}),
        **asdict(metrics.track_error(video, wanted, tracker)),
        "sharp": metrics.sharpness(made, clip.frames[0]),
    }


def evaluate_clips(
    clips: Iterator[Clip], compared: Mapping[str, Method], seed: int, lpips: Lpips | None = None
) -> tuple[dict, list]:
    """-> ({clip: {method: figures}}, rows of the contact sheet: middle and last frame of every clip).

    The method "clip itself" is the truth at the generated size. Tracks that the tracker loses in the truth are not
    measured.
    """
    figures, rows = {}, []
    for clip in clips:
        videos = {"clip itself": clip.frames}
        given = clip.frames[0], clip.tracks, seed, clip.sharp, clip.prompt
        videos |= {name: method(*given) for name, method in compared.items()}
        truth = clip.judged or clip
        wanted, size = metrics.measurable(truth.frames, truth.tracks), truth.frames.shape[2:0:-1]
        figures[clip.name] = {
            name: score_clip(resized(video, size), truth, wanted, lpips) for name, video in videos.items()
        }
        for t in (len(clip.frames) // 2, len(clip.frames) - 1):
            moments = [clip.frames[0], *(resized(video[t, None], size)[0] for video in videos.values())]
            rows.append((f"{clip.name}, frame {t}", [moment.copy() for moment in moments]))  # not the whole videos
    return figures, rows


def _is_clip(path: Path) -> bool:
    if path.is_dir():
        return bool(pictures_in(path))
    return path.suffix.lower() in VIDEO


def _sampled(path: Path, most: int) -> Iterator[np.ndarray]:
    """A clip's frames, uint8 [H, W, 3], sampled evenly to at most so many, first and last kept; 2 at the least.

    Pictures are fitted to the size of the first.
    """
    if path.is_dir():
        files = pictures_in(path)
        size = read_image(files[0]).shape[1::-1]
        yield from (fit_image(read_image(files[number]), *size) for number in _evenly(len(files), most))
    else:
        clip = ClipFile.open(path)
        kept = _evenly(sum(1 for _ in clip.frames(clip.fps, COUNTED)), most)
        frames = enumerate(clip.frames(clip.fps, (clip.width, clip.height)))
        yield from (frame for number, frame in frames if number in kept)


def _evenly(count: int, most: int) -> list[int]:
    if count < 2:
        raise InputError(f"it has {count} frames; a clip needs at least 2")
    return np.round(np.linspace(0, count - 1, min(count, most))).astype(int).tolist()


def _ids(count: int) -> np.ndarray:
    return draw_ids(count, np.random.default_rng(0))


# --- photographs, a few drags --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DragRun:
    """image: uint8 [H, W, 3] at generation size; tracks: what drives it; paths: px, the middle of each drag's grid,
    [n, 2] from its start to its end; end: the frame in which the last drag ends."""

    name: str
    image: np.ndarray
    tracks: Tracks
    paths: list[np.ndarray]
    end: int


def drag_runs(folder: Path, preset: Preset, fit: Fit) -> Iterator[DragRun]:
    """Every JSON file of `folder`, or the one that it is, as the module's docstring describes."""
    files = [folder] if folder.suffix == ".json" else sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"{folder} has no JSON files with drags")
    for file in files:
        yield read_drags(file, preset, fit)


def read_drags(file: Path, preset: Preset, fit: Fit) -> DragRun:
    """One run, in pixels of the generated frame. Raises `InputError` where the file isn't what it should be."""
    frames = chunk_span(preset, LAST_CHUNK).stop
    try:
        data = json.loads(file.read_bytes())
        image = read_image(file.parent / data["image"])
        spacing, size = (data.get("grid", {}).get(key, default) for key, default in (("spacing", 0), ("size", 1)))
        drags = [(path["points"], round(path.get("seconds", 2.0) * preset.fps)) for path in data["paths"]]
        centres = [along(np.asarray(points, float), length, frames) for points, length in drags]
        pins = [np.repeat(np.asarray(pin, float)[None], frames, axis=0) for pin in data.get("pins", [])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{file} does not describe drags: {type(error).__name__}: {error}") from error
    if not centres:
        raise InputError(f"{file} has no drags; give at least one path")
    if min(length for _, length in drags) < 0:
        raise InputError(f"{file}: a path's \"seconds\" are below 0")
    if type(size) is not int or size < 1 or size * size * len(centres + pins) > MAX_TRACKS:
        raise InputError(
            f"{file}: the grid's size is {size!r}, for {len(centres + pins)} paths and pins; it is a whole number from "
            f"1 on, and all grids together have at most {MAX_TRACKS} tracks"
        )
    if type(spacing) not in (int, float) or not 0 <= spacing < math.inf:
        raise InputError(f"{file}: the grid's spacing is {spacing!r}; it is a number of pixels from 0 on")
    from_size, fitted = image.shape[1::-1], fit(image)[0]
    to_size = fitted.shape[1::-1]
    ids = _ids(size * size * len(centres + pins)).reshape(-1, size * size)
    grids = [Tracks.rigid_grid(path, spacing, size, i) for path, i in zip(centres + pins, ids, strict=True)]
    middle = Tracks(np.stack(centres, axis=1), np.ones((frames, len(centres)), bool), np.arange(len(centres)))
    middle = middle.fit(from_size, to_size)
    end = min(max(1, *(length for _, length in drags)), frames - 1)
    tracks = Tracks.concatenate(grids).fit(from_size, to_size)
    paths = list(middle.points[: end + 1].swapaxes(0, 1))
    return DragRun(file.stem, fitted, tracks, paths, end)


def along(points: np.ndarray, length: int, frames: int) -> np.ndarray:
    """The polyline `points` [n, 2] gone through at even speed in frames 0 to `length`, then held -> [frames, 2]."""
    far = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.minimum(np.arange(frames) / max(length, 1), 1) * far[-1]
    return np.stack([np.interp(at, far, points[:, axis]) for axis in (0, 1)], axis=-1)


def score_drags(video: np.ndarray, run: DragRun, preset: Preset) -> dict[str, float]:
    """One video of a run.

    arrived: share of the drags whose patch is within 4 px of its target when the drags end, stayed: at the end of the
    video; off: median distance of the patch from the target when the drags end, px; rest_changed: share of pixels
    farther than a quarter of the frame's shorter side from all drags that changed, at the end; sharp_1, sharp_20:
    Laplacian energy of these chunks over the first frame's. Drags that begin or end outside the frame don't count.
    """
    height, width = run.image.shape[:2]
    radius = max(round(min(width, height) / 20), 4)
    inside = [path for path in run.paths if ((path[[0, -1]] >= 0) & (path[[0, -1]] < (width, height))).all()]
    at_end, at_last = (
        [metrics.arrival(run.image, video[t], path[0], path[-1], radius) for path in inside] for t in (run.end, -1))
    late = chunk_span(preset, LAST_CHUNK)
    early = chunk_span(preset, 1)
    return {
        "drags": len(inside),
        "arrived": _mean([a.arrived for a in at_end]),
        "stayed": _mean([a.arrived for a in at_last]),
        "off": float(np.median([a.distance for a in at_end])) if at_end else math.nan,
        "rest_changed": metrics.rest_changed(run.image, video[-1], run.paths, min(width, height) / 4),
        "sharp_1": metrics.sharpness(video[early.start : early.stop], run.image),
        f"sharp_{LAST_CHUNK}": metrics.sharpness(video[late.start : late.stop], run.image),
    }


def evaluate_drags(
    runs: Iterator[DragRun], compared: Mapping[str, Method], preset: Preset, seed: int
) -> tuple[dict, list]:
    """-> ({run: {method: figures}}, rows of the contact sheet: the drags, each method at their end and at last)."""
    figures, rows = {}, []
    for run in runs:
        videos = {name: method(run.image, run.tracks, seed) for name, method in compared.items()}
        figures[run.name] = {name: score_drags(video, run, preset) for name, video in videos.items()}
        moments = [draw_tracks(run.image, run.tracks), *(video[t] for video in videos.values() for t in (run.end, -1))]
        rows.append((run.name, [moment.copy() for moment in moments]))  # not the whole videos
    return figures, rows


# --- tables --------------------------------------------------------------------------------------------------------


def mean_over(figures: Mapping[str, Mapping[str, Mapping[str, float]]], weight: str | None = None) -> dict[str, dict]:
    """{clip: {method: figures}} -> {method: mean figures}; NaN doesn't count.

    `weight` names a figure that weighs the others (drags: each drag counts the same) and is itself added up.
    """
    names = next(iter(figures.values()))
    means = {}
    for method in names:
        rows = [clip[method] for clip in figures.values()]
        means[method] = {key: _mean([row[key] for row in rows], [row[weight] if weight else 1.0 for row in rows])
                         for key in names[method]}
        if weight:
            means[method][weight] = sum(row[weight] for row in rows)
    return means


def _mean(values: list, weights: list | None = None) -> float:
    values = np.array(values, float)
    weights = np.where(np.isnan(values), 0, 1.0 if weights is None else weights)
    return float(np.nansum(values * weights) / weights.sum()) if weights.sum() > 0 else math.nan


def main(argv: list[str]) -> int:
    """`motionstream eval ...`: prints a table, writes a contact sheet, with --json prints one JSON line last -> 0."""
    args = _parser().parse_args(argv)
    check_place(sheet_place(args))
    if args.table == "motion":
        check_clip_options(args, 2)
    model = None if args.model == "none" else load_model(args.model, args.device)
    preset = PRESETS["embedded"] if model is None else model.preset
    choice = parse_resolution(args.resolution, preset)
    fit = partial(fit_pictures, preset, choice)
    compared = methods(model, drags=args.table == "drags")
    if args.table == "motion":
        lpips = Lpips.load(args.lpips) if args.lpips else None
        figures, rows = evaluate_clips(_clips(args, fit), compared, args.seed, lpips)
        means = mean_over(figures)
        columns = ["input", *next(iter(figures.values()))]
    else:
        figures, rows = evaluate_drags(drag_runs(args.folder, preset, fit), compared, preset, args.seed)
        means = mean_over(figures, weight="drags")
        columns = ["input", *(f"{name}, {when}" for name in compared for when in ("drags end", f"chunk {LAST_CHUNK}"))]
    report(args, columns, rows, figures, means)
    return 0


def report(args: argparse.Namespace, columns: list[str], rows: list, figures: dict, means: dict) -> None:
    """Prints the table, and with --json the figures as one line; then writes the contact sheet."""
    print(table(means))
    if args.json:
        result = {"table": args.table, "model": args.model, "runs": len(figures), "methods": means, "each": figures}
        print(json.dumps(_without_nan(result)))
    with writing(sheet_place(args)):
        save_png(sheet_place(args), contact_sheet(columns, rows))


def sheet_place(args: argparse.Namespace) -> str:
    return args.sheet or f"eval-{args.table}.png"


def check_clip_options(args: argparse.Namespace, least: int) -> None:
    """Before anything is loaded. least: frames that a clip must have."""
    if args.frames < least:
        raise InputError(f"{args.frames} frames a clip are too few; give --frames {least} or more")
    if not 0 < args.spacing < math.inf:
        raise InputError(f"tracks {args.spacing:g} px apart; give a --spacing above 0")
    if args.synthetic < 0:
        raise InputError(f"{args.synthetic} synthetic clips; give --synthetic 1 or more")


def _clips(args: argparse.Namespace, fit: Fit) -> Iterator[Clip]:
    if args.synthetic:
        if args.library is None:
            raise InputError("synthetic clips need pictures: name their folder with --library")
        return synthetic_clips(args.library, args.synthetic, args.frames, args.spacing, fit, args.seed)
    if args.folder is None:
        raise InputError("name a folder of clips, or ask for --synthetic ones")
    return real_clips(args.folder, args.frames, args.spacing, fit, args.compare)


def _without_nan(value):
    """NaN, which JSON doesn't know, as None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="motionstream eval", description="Tables of a model beside baselines.")
    tables = parser.add_subparsers(dest="table", required=True)
    motion = tables.add_parser("motion", help="clips driven by a dense grid of their own tracks")
    motion.add_argument("folder", type=Path, nargs="?", metavar="CLIP_DIR", help="clips, or folders of frames")
    motion.add_argument("--synthetic", type=int, default=0, metavar="N", help="N synthetic clips instead")
    motion.add_argument("--library", type=Path, metavar="DIR", help="pictures for the synthetic clips")
    motion.add_argument("--frames", type=int, default=FRAMES, help="frames a clip (default: %(default)s)")
    motion.add_argument("--spacing", type=float, default=8.0, help="px between tracks (default: %(default)s)")
    motion.add_argument("--compare", type=parse_size, default=COMPARED, metavar="WxH",
                        help="for real clips (default: the paper's 832x480)")
    motion.add_argument("--lpips", type=Path, metavar="FILE", help="weights for LPIPS, see evaluation/lpips.py")
    drags = tables.add_parser("drags", help="photographs driven by one to five drags")
    drags.add_argument("folder", type=Path, metavar="DRAGS_DIR", help="JSON files like those in examples/")
    tables.add_parser("things", add_help=False, help="what goes along with a drag (evaluation/things.py)")
    tables.add_parser("camera", add_help=False, help="photographs of a scene from known places (evaluation/camera.py)")
    tables.add_parser("ablations", add_help=False, help="the paper's ablations on clips (evaluation/ablations.py)")
    for command in (motion, drags):
        add_common(command)
    return parser


def add_common(command: argparse.ArgumentParser) -> None:
    """The options of every table."""
    command.add_argument("--model", default="embedded", help='name, folder, or "none" for the baselines alone')
    command.add_argument("--device", default="cpu")
    command.add_argument("--resolution", help="WIDTHxHEIGHT, or tokens per latent frame (default: the largest)")
    command.add_argument("--seed", type=parse_seed, default=0)
    command.add_argument("--sheet", metavar="PNG", help="contact sheet (default: eval-TABLE.png)")
    command.add_argument("--json", action="store_true", help="one JSON object as the last line")
