"""The paper's ablations (tables 3 and 4, figures 5 and 6) on held-out clips: one command, a table, plots and sheets.

    python -m motionstream eval ablations --synthetic 4 --library DIR --teacher DIR --json
    python -m motionstream eval ablations CLIP_DIR --teacher DIR

**context**: the student with its own sink and window (c3s1w1), without sink, with one latent frame a chunk, with a
window of six chunks that slides, and one that grows for ever; on clips of 241 frames. Quality in the first and in the
last second of a stream and what is kept of it (drift), EPE, mean and spread of a chunk's latency. The composite is off:
the network's own pixels are measured; "as shipped" has it on, where a preset has one.
**guidance**: the teacher unguided, guided by text alone, motion alone and both, as the paper weighs them and as its
recipe does, beside the student and a motionless video. On clips of the teacher's length with prompts: the captions of
real ones; synthetic ones turn to a light that is asked for.
**tracks**: what a chunk's track head costs against drawing the tracks as RGB and encoding them with the VAE, and with
`--teacher` and `--rgb-teacher`, trained alike but for that, the EPE of both. **decoders**: tiny against full VAE, where
a model has both. **long**: streams of `--long` frames with and without sink, the clip's tracks going to and fro: what
is left of the sharpness, the PSNR of the last frame in which the tracks are back at the image, and a contact sheet.

Files: ablations.png (table of moments), ablations-drift.png (plot), ablations-long.png.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from motionstream.cli import parse_seed
from motionstream.errors import InputError, make_folder, writing
from motionstream.evaluation import metrics
from motionstream.evaluation.lpips import Lpips
from motionstream.evaluation.motion import Clip, Fit, check_clip_options, mean_over, real_clips, synthetic_clips
from motionstream.evaluation.plot import line_plot
from motionstream.evaluation.sheets import check_place, contact_sheet, save_png, table
from motionstream.machine import fit_pictures, parse_resolution
from motionstream.model.checkpoint import Model, load_model
from motionstream.model.presets import Preset
from motionstream.model.track_head import track_map
from motionstream.streaming import inference, stream
from motionstream.tracks import StaticTracks, Tracks

CONTEXT_FRAMES = 241
LEAST_FRAMES = 9  # a first chunk; with fewer there is no drift to speak of either
MOMENTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of a long stream, on its sheet
REPEATS = 5  # of what is timed
HEAD, RGB = "track head", "RGB through the VAE"
OWN = "teacher, both, its recipe's"


def contexts(model: Model, frames: int) -> dict[str, Model]:
    """The student in the paper's configurations; "window grows" keeps all chunks of `frames` frames.

    c3s0w6 is the sliding window of Self Forcing. There rotary positions count from the stream's start; without a sink
    all that attention sees of them is differences, which are those of places in the cache.
    """
    plain = replace(model.preset, composite=False)
    all_chunks = math.ceil(frames / plain.chunk_frames(1)) + 1
    rows = {"as shipped": model.preset} if model.preset.composite else {}
    rows |= {
        name_of(plain): plain,
        name_of(replace(plain, sink=0)): replace(plain, sink=0),
        name_of(replace(plain, chunk_size=1)): replace(plain, chunk_size=1),
        name_of(replace(plain, sink=0, window=6)): replace(plain, sink=0, window=6),
        "window grows": replace(plain, sink=0, window=all_chunks),
    }
    return {name: replace(model, preset=preset) for name, preset in rows.items()}


def name_of(preset: Preset) -> str:
    """As in the paper: c3s1w1."""
    return f"c{preset.chunk_size}s{preset.sink}w{preset.window}"


def streamed(
    model: Model, image: np.ndarray, tracks: Tracks, seed: int, prompt: str = ""
) -> tuple[np.ndarray, list[float]]:
    """A video of tracks.T frames, and seconds a chunk (without the first, which sets things up)."""
    frames, seconds, count = [], [], 0
    with contextlib.closing(stream(model, image, StaticTracks(tracks), seed=seed, prompt=prompt)) as chunks:
        while count < tracks.T:
            chunk = next(chunks)
            frames.append(chunk.frames)
            seconds.append(chunk.timings["total"])
            count += len(chunk.frames)
    return np.concatenate(frames)[: tracks.T], seconds[1:] or seconds


def score(
    video: np.ndarray, clip: Clip, fps: float, lpips: Lpips | None, seconds: list[float] | None = None
) -> dict[str, float]:
    """Figures of one video.

    psnr, sharp (Laplacian energy over the first frame's) and lpips, in the first second and in the last; kept: what
    share of sharpness is left; epe in pixels; latency: mean seconds a chunk, spread: their standard deviation.
    """
    part = min(round(fps), (len(video) - 1) // 2)
    spans = {"first": slice(1, 1 + part), "last": slice(len(video) - part, None)}
    found: dict[str, float] = {}
    for when, span in spans.items():
        found[f"psnr {when}"] = metrics.psnr(video[span], clip.frames[span])
        found[f"sharp {when}"] = metrics.sharpness(video[span], clip.frames[0])
        if lpips is not None:
            found[f"lpips {when}"] = lpips.video(video[span], clip.frames[span])
    found["kept"] = found["sharp last"] / max(found["sharp first"], 1e-6)
    found["epe"] = track_epe(video, clip)
    if seconds is not None:
        found |= {"latency": float(np.mean(seconds)), "spread": float(np.std(seconds))}
    return found


def track_epe(video: np.ndarray, clip: Clip) -> float:
    return metrics.track_error(video, clip.tracks, metrics.lucas_kanade).epe


def context_table(model: Model, clips: Iterator[Clip], seed: int, lpips: Lpips | None) -> tuple[dict, dict, list]:
    """-> ({clip: {configuration: figures}}, sharpness by second for the plot, rows of the sheet)."""
    figures, curves, rows = {}, {}, []
    for clip in clips:
        figures[clip.name], shown = {}, [clip.frames[0], clip.frames[-1]]
        for name, one in contexts(model, len(clip.frames)).items():
            video, seconds = streamed(one, clip.frames[0], clip.tracks, seed, clip.prompt)
            figures[clip.name][name] = score(video, clip, model.preset.fps, lpips, seconds)
            curves.setdefault(name, []).append(by_second(video, model.preset.fps))
            shown.append(video[-1].copy())
        rows.append((f"{clip.name}, last frame", shown))
    return figures, {name: mean_curve(runs) for name, runs in curves.items()}, rows


def by_second(video: np.ndarray, fps: float) -> list[float]:
    """Laplacian energy of every whole second over the first frame's."""
    step = round(fps)
    return [metrics.sharpness(video[s : s + step], video[0]) for s in range(0, len(video) - step + 1, step)]


def mean_curve(runs: list[list[float]]) -> list[tuple[int, float]]:
    """(second, mean over the runs that last so long)."""
    reached = ([energy for energy in second if energy is not None] for second in itertools.zip_longest(*runs))
    return [(second, float(np.mean(energies))) for second, energies in enumerate(reached)]


def teacher_frames(preset: Preset) -> int:
    """Frames of the clips that the teacher makes."""
    from motionstream.training.clips import chunk_bounds
    from motionstream.training.settings import RECIPES

    return chunk_bounds(preset, RECIPES[preset.name]["teacher-a"].chunks)[-1][1]


def teacher_methods(folder: Path, model: Model, seed: int, rgb: bool = False) -> dict[str, Callable]:
    """The teacher under text, motion and joint guidance: (image, tracks of `teacher_frames`, prompt) -> video.

    rgb: whether it was trained with tracks as RGB.
    """
    from motionstream.training.clips import ClipBatch, Encoders
    from motionstream.training.guidance import Guidance
    from motionstream.training.network import load_network, model_folder
    from motionstream.training.parallel import World
    from motionstream.training.settings import RECIPES
    from motionstream.training.teacher import sample_teacher, to_frames
    from motionstream.training.trainer import Draws

    preset, recipe = model.preset, RECIPES[model.preset.name]["teacher-a"]
    world = World(device=model.device, dtype=model.dtype)
    network = load_network(model_folder(folder, preset), preset, world, skip=True, rgb=rgb)
    encoders = Encoders(preset, model.vae, model.text_encoder, model.motion_prior, model.image_encoder)

    def made(weights: Guidance, image: np.ndarray, tracks: Tracks, prompt: str) -> np.ndarray:
        record = encoders.record(np.repeat(image[None], tracks.T, axis=0), tracks, prompt, world, tracks.N)
        known = {name: value[None].to(world.device) for name, value in record.items()}
        batch = ClipBatch(
            tracks=[tracks],
            draws=Draws(seed, 0, [0], world.device),
            **{name: value for name, value in known.items() if name not in ("points", "visible")},
        )
        with torch.no_grad():
            return to_frames(model.vae, sample_teacher(network, batch, recipe, weights))[0]

    paper = Guidance()
    choices = {
        "teacher": Guidance(0, 1),  # weights that sum to 1 guide nothing
        "teacher, text": Guidance(paper.text, 0),
        "teacher, motion": Guidance(0, paper.motion),
        "teacher, both": paper,
        OWN: recipe.guidance,
    }
    return {name: partial(made, weights) for name, weights in choices.items()}


def under_light(clips: list[Clip]) -> list[Clip]:
    """Each clip turning to a light of its own, just after frame 0, which its prompt asks for."""
    from motionstream.model.text import FALLING
    from motionstream.training.effects import EFFECTS, Effect

    lights = [Effect((name,)) for name in EFFECTS if name not in FALLING]
    pairs = zip(clips, itertools.cycle(lights), strict=False)
    return [replace(clip, frames=light.begin(clip.frames), prompt=light.prompt) for clip, light in pairs]


def guidance_table(
    model: Model, teacher: Path, clips: list[Clip], seed: int, lpips: Lpips | None
) -> tuple[dict, list]:
    """Of clips of `teacher_frames` -> ({clip: {method: figures}}, rows of the sheet: the last frame).

    For EPE the videos are evenly lit: prompts ask for the light to change.
    """
    makers = teacher_methods(teacher, model, seed)
    plain = replace(model, preset=replace(model.preset, composite=False))
    makers["student"] = lambda image, tracks, prompt: streamed(plain, image, tracks, seed, prompt)[0]
    makers["motionless"] = lambda image, tracks, prompt: np.repeat(image[None], tracks.T, axis=0)
    figures, rows = {}, []
    for clip in clips:
        videos = {name: make(clip.frames[0], clip.tracks, clip.prompt) for name, make in makers.items()}
        figures[clip.name] = {
            name: score(video, clip, model.preset.fps, lpips) | {"epe": track_epe(metrics.evenly_lit(video), clip)}
            for name, video in videos.items()
        }
        rows.append((clip.name, [clip.frames[0], clip.frames[-1], *(video[-1] for video in videos.values())]))
    return figures, rows


def tracks_table(
    model: Model, clips: list[Clip], teachers: Mapping[str, Path | None], seed: int
) -> dict[str, dict[str, float]]:
    """Milliseconds that one chunk's tracks cost by the track head, and as RGB through the VAE (table 3).

    teachers: by the same names; of those that are there also the EPE and PSNR under joint guidance, on these clips,
    which then have `teacher_frames`.
    """
    from motionstream.training.rgb_tracks import RgbTracks

    preset, (height, width) = model.preset, clips[0].frames.shape[1:3]
    tracks = clips[0].tracks.rows(0, preset.chunk_frames(0))
    heads = {HEAD: model.track_head, RGB: RgbTracks(model.vae, preset.spatial_stride)}
    found: dict[str, dict[str, float]] = {}
    for name, head in heads.items():

        def work(head=head) -> None:
            maps = track_map(tracks, width, height, preset.spatial_stride, preset.track_dim, model.device)
            head(maps[None], True)

        found[name] = {"ms": 1000 * timed(model, work)}
        if teachers.get(name) is None:
            continue
        make, scores = teacher_methods(teachers[name], model, seed, rgb=name == RGB)[OWN], {}
        for clip in clips:
            video = make(clip.frames[0], clip.tracks, clip.prompt)
            psnr = metrics.psnr(video[1:], clip.frames[1:])
            scores[clip.name] = {name: {"epe": track_epe(video, clip), "psnr": psnr}}
        found[name] |= mean_over(scores)[name]
    return found


def decoder_table(model: Model, clip: Clip) -> dict[str, dict[str, float]]:
    """Tiny and full VAE on the same latents, where the model has both: PSNR and milliseconds a chunk's frame."""
    if model.tiny_vae is None:
        return {}
    preset, found = model.preset, {}
    frames = clip.frames[: preset.chunk_frames(0)]
    with inference(model):
        video = torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None].to(model.device)
        latents = model.vae.encode(video)
    for name, vae in (("full VAE", model.vae), ("tiny VAE", model.tiny_vae)):
        seconds = timed(model, lambda vae=vae: vae.decode(latents))
        with inference(model):
            made = vae.decode(latents)[0].float()
        pixels = ((made + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).cpu().numpy()
        found[name] = {"ms a frame": 1000 * seconds / len(frames), "psnr": metrics.psnr(pixels, frames)}
    return found


def timed(model: Model, work: Callable[[], object]) -> float:
    """Median seconds, after one run that sets things up."""
    seconds = []
    with inference(model):
        for _ in range(1 + REPEATS):
            begun = time.perf_counter()
            work()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds[1:]))


def to_and_fro(tracks: Tracks, frames: int) -> Tracks:
    """The tracks forwards, backwards, forwards, ... for `frames` frames."""
    period = np.concatenate([np.arange(tracks.T), np.arange(tracks.T - 2, 0, -1)])
    rows = np.resize(period, frames)
    return Tracks(tracks.points[rows], tracks.visible[rows], tracks.ids)


def long_streams(model: Model, clip: Clip, frames: int, seed: int) -> tuple[dict[str, dict[str, float]], list]:
    """-> (sharpness at the start and at the end, and PSNR of the last return, by configuration; rows of the sheet)."""
    plain, tracks = replace(model.preset, composite=False), to_and_fro(clip.tracks, frames)
    period = 2 * (clip.tracks.T - 1)
    back = (frames - 1) // period * period
    figures, rows = {}, []
    for preset in (plain, replace(plain, sink=0)):
        video, _ = streamed(replace(model, preset=preset), clip.frames[0], tracks, seed, clip.prompt)
        energy = by_second(video, plain.fps)
        figures[name_of(preset)] = {"sharp first": energy[0], "sharp last": energy[-1], "kept": energy[-1] / energy[0]}
        if back:
            returned = metrics.psnr(video[back : back + 1], clip.frames[:1])
            figures[name_of(preset)] |= {"returned": back, "psnr returned": returned}
        rows.append((name_of(preset), [video[round(share * (frames - 1))].copy() for share in MOMENTS]))
    return figures, rows


def main(argv: list[str]) -> int:
    """`motionstream eval ablations ...`: prints tables, with --json a JSON line last; writes sheets and a plot."""
    from motionstream.training.network import model_folder

    args = _parser().parse_args(argv)
    check_clip_options(args, LEAST_FRAMES)
    make_folder(args.out)
    check_place(args.out / "ablations.png")
    model = load_model(args.model, args.device)
    if args.long and args.long < round(model.preset.fps):
        raise InputError(f"--long {args.long} is less than a second; at least {model.preset.fps:g} frames")
    lpips = Lpips.load(args.lpips) if args.lpips else None
    choice = parse_resolution(args.resolution, model.preset)
    fit = partial(fit_pictures, model.preset, choice)
    clips = _at_least(model.preset.chunk_frames(0), _clips(args, args.frames, fit))
    short = clips
    if args.teacher or args.rgb_teacher:
        length = teacher_frames(model.preset)
        short = _at_least(length, _clips(args, length, fit))
    for teacher in filter(None, (args.teacher, args.rgb_teacher)):
        model_folder(teacher, model.preset)  # before the long part
    result: dict[str, dict] = {}
    pictures: dict[str, np.ndarray] = {}  # written when the tables have been told
    figures, curves, rows = context_table(model, iter(clips), args.seed, lpips)
    result["context"] = mean_over(figures)
    pictures["ablations.png"] = contact_sheet(["image", "clip", *result["context"]], rows)
    pictures["ablations-drift.png"] = line_plot(curves, "second of the stream: sharpness over the first frame's")
    if args.teacher is not None:
        lit = under_light(short) if args.synthetic else short
        figures, rows = guidance_table(model, args.teacher, lit, args.seed, lpips)
        result["guidance"] = mean_over(figures)
        pictures["ablations-guidance.png"] = contact_sheet(["image", "clip", *result["guidance"]], rows)
    teachers = {HEAD: args.teacher, RGB: args.rgb_teacher}
    result |= {"tracks": tracks_table(model, short, teachers, args.seed), "decoders": decoder_table(model, clips[0])}
    if args.long:
        result["long"], rows = long_streams(model, clips[0], args.long, args.seed)
        captions = [f"frame {round(share * (args.long - 1))}" for share in MOMENTS]
        pictures["ablations-long.png"] = contact_sheet(captions, rows)
    _tell(result, args.json)
    for name, picture in pictures.items():
        with writing(args.out / name):
            save_png(args.out / name, picture)
    return 0


def _tell(result: Mapping[str, dict], as_json: bool) -> None:
    for name, rows in result.items():
        if rows:
            print(f"{name}\n{table(rows)}\n")
    if as_json:
        print(json.dumps(json.loads(json.dumps(result), parse_constant=lambda constant: None)))  # JSON knows no NaN


def _at_least(frames: int, clips: Iterator[Clip]) -> list[Clip]:
    """All of them; `InputError` on one that is too short, before the work begins."""
    found = list(clips)
    for clip in found:
        if len(clip.frames) < frames:
            raise InputError(f"{clip.name} has {len(clip.frames)} frames; at least {frames} are needed: leave it out")
    return found


def _clips(args: argparse.Namespace, frames: int, fit: Fit) -> Iterator[Clip]:
    if args.synthetic and args.library is not None:
        return synthetic_clips(args.library, args.synthetic, frames, args.spacing, fit, args.seed)
    if args.folder is None or args.synthetic:
        raise InputError("name a folder of clips, or ask for --synthetic ones with their --library")
    return real_clips(args.folder, frames, args.spacing, fit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="motionstream eval ablations", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", metavar="CLIP_DIR", help="clips, or folders of frames")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="N synthetic clips instead")
    parser.add_argument("--library", type=Path, metavar="DIR", help="pictures for the synthetic clips")
    parser.add_argument("--frames", type=int, default=CONTEXT_FRAMES, help="frames a clip (default: %(default)s)")
    parser.add_argument("--spacing", type=float, default=16.0, help="px between tracks (default: %(default)s)")
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="model folder of the teacher, for the guidance")
    parser.add_argument("--rgb-teacher", type=Path, metavar="DIR", help="one that was trained with --rgb-tracks")
    parser.add_argument("--long", type=int, default=0, metavar="N", help="also streams of N frames")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="weights for LPIPS, see evaluation/lpips.py")
    parser.add_argument("--model", default="embedded", help="name or folder (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resolution", help="WIDTHxHEIGHT, or tokens per latent frame (default: the largest)")
    parser.add_argument("--seed", type=parse_seed, default=0)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for the pictures")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser
