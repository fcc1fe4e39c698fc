"""The command line.

    python -m motionstream generate photo.jpg -o out.mp4 --tracks tracks.json --prompt fog --seconds 5
    python -m motionstream track clip.mp4 -o tracks.json --grid 30
    python -m motionstream bench --chunks 40 --json
    python -m motionstream convert Wan2.1-Fun-1.3B-InP taew2_1.safetensors -o my-model
    python -m motionstream train teacher --data SHARDS --out RUN  # see motionstream/training/command.py
    python -m motionstream eval drags examples --json           # see motionstream/evaluation/motion.py
    python -m motionstream eval things LIBRARY --json           # see motionstream/evaluation/things.py
    python -m motionstream eval camera LLFF_DIR --json          # see motionstream/evaluation/camera.py
    python -m motionstream eval ablations CLIPS --json          # see motionstream/evaluation/ablations.py

Exit codes: 0 done; 2 bad input, named in a sentence on stderr; 130 stopped by Ctrl-C or, but for `train` and `eval`,
which the system ends at once, by SIGTERM. With --json the last line on stdout is one JSON object. An output file is
complete or not there. Each command imports what it needs when it runs, so that --help is instant.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from motionstream.errors import InputError

if TYPE_CHECKING:
    from motionstream.streaming import Chunk
    from motionstream.tracks import Tracks
    from motionstream.video import Clip

DEFAULT_SECONDS = 5.0
MAX_SECONDS = 3_600.0
MAX_SEED = 2**63 - 1
OWN_TABLES = ("things", "camera", "ablations")  # modules of `evaluation`; the others are `motion`'s


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command -> its exit code; argv without the program's name, None for the process's own."""
    own_process, argv = argv is None, sys.argv[1:] if argv is None else list(argv)
    try:
        if argv[:1] == ["eval"]:  # tables have command lines of their own, whose imports --help need not wait for
            own = argv[1:2] and argv[1] in OWN_TABLES
            table = importlib.import_module(f"motionstream.evaluation.{argv[1] if own else 'motion'}")
            return table.main(argv[2:] if own else argv[1:])
        if argv[:1] == ["train"]:
            from motionstream.training.command import main as train

            return train(argv[1:])
        args = _parser().parse_args(argv)
        if own_process:  # what is half written is to be removed
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        result = args.command(args)
    except InputError as error:
        print(f"motionstream: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("motionstream: stopped", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(result))
    return 0


def generate(args: argparse.Namespace) -> dict[str, float | int | str]:
    """The `generate` command: a picture and tracks -> an MP4.

    Returns: out, frames, width, height, fps_playback, fps_generated (frames made over all seconds spent making them),
    first_chunk_s (from the call to the first frames).
    """
    from motionstream.video import Mp4Writer, read_image

    if args.out.suffix.lower() != ".mp4":
        raise InputError(f"cannot write {args.out}: only .mp4 is known")
    picture = read_image(args.image)  # before the imports that take seconds: a wrong name is told at once

    from motionstream.machine import fit_pictures, parse_resolution, pick_device, pick_dtype, shown_size, tune
    from motionstream.model.checkpoint import load_model
    from motionstream.session import check_prompt, recipe_head
    from motionstream.streaming import stream
    from motionstream.tracks import StaticTracks, Tracks
    from motionstream.trajectories import load_tracks

    check_prompt(args.prompt)
    device = pick_device()
    model = load_model(args.model, device, pick_dtype(device), low_memory=args.low_memory)
    tune(model)
    preset, picture_size = model.preset, (picture.shape[1], picture.shape[0])
    choice = parse_resolution(args.resolution, preset)
    image, sharp = fit_pictures(preset, choice, picture)
    size, shown = image.shape[1::-1], shown_size(image, sharp)
    recipe, tracks = recipe_head(model, image, args.prompt, args.seed, sharp=sharp), Tracks.empty(0)
    if args.tracks is not None:
        tracks = load_tracks(args.tracks, picture_size, size, preset.fps)
        recipe["tracks"] = {"sha256": hashlib.sha256(args.tracks.read_bytes()).hexdigest()}
    frames = tracks.T or round(DEFAULT_SECONDS * preset.fps)
    if args.seconds is not None:
        frames = max(1, round(args.seconds * preset.fps))
    seconds, made = [], 0
    with (
        Mp4Writer(args.out, *shown, preset.fps, recipe) as writer,
        closing(stream(model, image, StaticTracks(tracks), prompt=args.prompt, seed=args.seed, sharp=sharp)) as chunks,
    ):
        for chunk, wanted, spent in _take(chunks, frames):
            writer.write(chunk.frames[:wanted])
            seconds.append(spent)
            made += len(chunk.frames)
    figures = {"frames": frames, "width": shown[0], "height": shown[1], "fps_playback": preset.fps}
    figures |= {"fps_generated": made / sum(seconds), "first_chunk_s": seconds[0]}
    if not args.json:
        print(
            f"{args.out}: {frames} frames of {shown[0]}x{shown[1]} at {preset.fps:g} fps, "
            f"generated at {figures['fps_generated']:.1f} fps, the first after {seconds[0]:.2f} s"
        )
    return {"out": str(args.out), **figures}


def track(args: argparse.Namespace) -> dict[str, float | int | str | None]:
    """The `track` command: a clip -> its point tracks, or a trajectory file -> the same in another format.

    Returns: out, frames, tracks, width, height (None where nobody has said them), fps, tracker ("" for a trajectory
    file).
    """
    from motionstream.trajectories import ATI_FPS, ATI_FRAMES, RATES, pick_format, write_trajectories
    from motionstream.video import Clip

    kind = pick_format(args.out, args.format)  # before the work: a format that is not known is told at once
    drawn = args.clip.suffix.lower() in (".json", ".npy", ".pth", ".pt", ".txt")
    if drawn:
        (tracks, size, fps), name = _read_tracks(args), ""
    else:
        if args.size:
            raise InputError("--size is of trajectories that do not say theirs; a clip does: leave it out")
        clip = Clip.open(args.clip)
        size, fps = (clip.width, clip.height), args.fps or clip.fps
        tracks, name = _track(clip, args, fps)
    if kind in RATES and (drawn or not args.fps):  # else it would be played at another pace
        tracks, fps = tracks.retime(fps, RATES[kind]), RATES[kind]
    if kind == "ati" and tracks.T / fps > ATI_FRAMES / ATI_FPS:
        print(f"motionstream: ATI's files have room for {ATI_FRAMES} frames at {ATI_FPS:g} fps, "
              f"{ATI_FRAMES / ATI_FPS:.1f} s: what comes later is left out", file=sys.stderr)
    write_trajectories(args.out, tracks, size, fps, args.format)
    width, height = size or (None, None)
    figures = {"frames": tracks.T, "tracks": tracks.N, "width": width, "height": height, "fps": fps, "tracker": name}
    if not args.json:
        print(f"{args.out}: {tracks.N} tracks over {tracks.T} frames at {fps:g} fps" + (f", by {name}" if name else ""))
    return {"out": str(args.out), **figures}


def _read_tracks(args: argparse.Namespace) -> tuple[Tracks, tuple[float, float] | None, float]:
    """Tracks, size of their frame (None: of a picture that nobody has named) and rate of a trajectory file."""
    from motionstream.trajectories import read_trajectories

    for name in ("grid", "start", "seconds", "tracker"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name} is of videos; {args.clip} holds trajectories: leave it out")
    read = read_trajectories(args.clip)
    if read.size and args.size:
        raise InputError(f"{args.clip} says that its frames are {read.size[0]:g}x{read.size[1]:g}: leave out --size")
    return read.tracks, read.size or args.size, args.fps or read.fps


def _track(clip: Clip, args: argparse.Namespace, fps: float) -> tuple[Tracks, str]:
    """All tracks of a clip in its own pixels, with a progress bar on a terminal, and the tracker's name."""
    from motionstream.controls.trackers import LICENCES
    from motionstream.controls.transfer import Settings, track_clip, tracking_size
    from motionstream.progress import Progress
    from motionstream.tracks import join

    given = {name: getattr(args, name) for name in ("grid", "start", "seconds", "tracker")}
    settings = Settings(**{"seconds": 60.0} | {name: value for name, value in given.items() if value is not None})
    tracker, blocks = settings.open_tracker(live=False), []
    print(f"motionstream: {LICENCES[tracker.name]}", file=sys.stderr)
    most = round(min(clip.seconds or settings.seconds, settings.seconds) * fps)
    with Progress(total=most, unit="frame", disable=None) as bar:
        for frames, tracks in track_clip(clip, settings, fps, tracker):
            blocks.append(tracks)
            bar.update(len(frames))
    seen = tracking_size(clip.width, clip.height)
    return join(blocks).scale(seen, (clip.width, clip.height)), tracker.name


def bench(args: argparse.Namespace) -> dict[str, float | int | str]:
    """The `bench` command: see `motionstream.evaluation.speed.bench`, which also prints the table."""
    from motionstream.evaluation.speed import bench as measure
    from motionstream.machine import pick_device, pick_dtype

    device = args.device or pick_device()
    options = {name: getattr(args, name) for name in ("vae", "compile", "fp8", "low_memory")}
    return measure(args.model, args.chunks, args.random_weights, device, pick_dtype(device), args.resolution, **options)


def convert(args: argparse.Namespace) -> dict[str, int | str | list[str]]:
    """The `convert` command: see `motionstream.model.convert`."""
    from motionstream.model.convert import convert as write

    report = write(args.sources, args.out, loras=[_lora(text) for text in args.lora])
    if not args.json:
        print(f"{args.out}: {report}")
    return {"out": str(args.out), **vars(report)}


def _lora(text: str) -> tuple[str, float]:
    """FILE or FILE=STRENGTH -> (file, strength)."""
    path, _, strength = text.partition("=")
    value = _number(strength or "1")
    if not math.isfinite(value):
        raise InputError(f"--lora {text}: {strength!r} is no number; write FILE or, for example, {path}=0.8")
    return path, value


def _take(chunks: Iterator[Chunk], frames: int) -> Iterator[tuple[Chunk, int, float]]:
    """Chunks until there are `frames` frames, with a progress bar on a terminal -> (chunk, frames wanted, seconds)."""
    from motionstream.progress import Progress

    with Progress(total=frames, unit="frame", disable=None) as bar:  # None: on a terminal only
        while frames > 0:
            begun = time.perf_counter()
            chunk = next(chunks)
            yield chunk, frames, time.perf_counter() - begun
            bar.update(min(frames, len(chunk.frames)))
            frames -= len(chunk.frames)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="motionstream", description="Drag points of a picture and watch it move.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    one = commands.add_parser("generate", help="make an MP4 from a picture and tracks")
    one.set_defaults(command=generate)
    one.add_argument("image", type=Path, metavar="IMAGE")
    one.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.mp4")
    one.add_argument("--tracks", type=Path, metavar="FILE.json", help="point tracks, see motionstream/trajectories.py")
    one.add_argument("--prompt", default="", metavar="TEXT")
    one.add_argument("--seconds", type=_seconds, metavar="S", help="length (default: that of the tracks, else 5)")
    one.add_argument("--seed", type=parse_seed, default=0, metavar="N")
    one.add_argument("--resolution", metavar="BUDGET|WxH", help="what the student works at: tokens per latent"
                     " frame, or a size in pixels; a composite shows frames sharper, see the README")
    two = commands.add_parser("bench", help="measure how fast the model streams on this machine")
    two.set_defaults(command=bench)
    two.add_argument("--chunks", type=int, default=40, metavar="N")
    two.add_argument("--random-weights", action="store_true", help="measure a preset that has no weights here")
    two.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU, if there is one")
    two.add_argument("--resolution", metavar="BUDGET|WxH", help="tokens per latent frame, or a size in pixels"
                     " (default: the preset's most tokens)")
    two.add_argument("--vae", choices=("full", "tiny"), help="what decodes (default: the tiny VAE, if there is one)")
    two.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    two.add_argument("--fp8", action="store_true", help="linear layers in 8-bit floating point")
    three = commands.add_parser("convert", help="make a model folder of other people's checkpoints")
    three.set_defaults(command=convert)
    three.add_argument("sources", nargs="+", metavar="SOURCE", help="files and folders; later ones replace parts")
    three.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    three.add_argument("--lora", action="append", default=[], metavar="FILE[=STRENGTH]", help="adapter to merge")
    three.add_argument("--json", action="store_true", help="last line on stdout: one JSON object")
    _track_options(commands)
    commands.add_parser("train", help="train a model, stage by stage", add_help=False)
    commands.add_parser("eval", help="measure motion and quality against clips or drags", add_help=False)
    for command in (one, two):
        command.add_argument("--model", default="embedded", metavar="NAME_OR_PATH", help="default: %(default)s")
        command.add_argument("--low-memory", action="store_true", help="less GPU memory, slower")
        command.add_argument("--json", action="store_true", help="last line on stdout: one JSON object")
    return parser


def _track_options(commands: argparse._SubParsersAction) -> None:
    one = commands.add_parser("track", help="point tracks of a clip, or a trajectory file in another format")
    one.set_defaults(command=track)
    one.add_argument("clip", type=Path, metavar="CLIP", help="a video, or .json, .npy, .pth, .pt, .txt trajectories")
    one.add_argument("-o", "--out", type=Path, required=True, metavar="TRACKS.json", help="or .npy, .pth, .pt")
    one.add_argument("--format", metavar="NAME", help="motionstream, comfyui, spline, wan-move, ati (default: by name)")
    one.add_argument("--tracker", choices=("auto", "cotracker3", "lucas-kanade"))
    one.add_argument("--grid", type=int, metavar="N", help="points along the longer side, default 20")
    one.add_argument("--start", type=float, metavar="S", help="second of the clip to begin at")
    one.add_argument("--seconds", type=_seconds, metavar="S", help="at most, default 60")
    one.add_argument("--fps", type=_fps, metavar="N", help="of the tracks (default: as the clip or the file has it,"
                     " and for formats that do not say theirs 16, for ATI 24)")
    one.add_argument("--size", type=parse_size, metavar="WxH", help="of the picture that the trajectories were drawn"
                     " on, where they do not say it")
    one.add_argument("--json", action="store_true", help="last line on stdout: one JSON object")


def _number(text: str) -> float:
    """Not a number where the text is none: no limit lets that pass, and argparse would name our functions."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels, for argparse."""
    from motionstream.video import MAX_SIDE

    match = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxHEIGHT in pixels, such as 832x480")
    size = int(match[1]), int(match[2])
    if max(size) > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text} is too large; at most {MAX_SIDE} pixels a side, such as 832x480")
    return size


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {MAX_SECONDS:g}")
    return value


def _fps(text: str) -> float:
    value = _number(text)
    if not 1 <= value <= 120:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 120")
    return value


def parse_seed(text: str) -> int:
    """For argparse, of every command."""
    if not text.isdecimal() or len(text) > len(str(MAX_SEED)) or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {MAX_SEED}")
    return int(text)
