"""The command line.

    python -m motionstream generate photo.jpg -o out.mp4 --tracks tracks.json --prompt fog --seconds 5
    python -m motionstream bench --chunks 40 --json
    python -m motionstream eval drags examples --json           # see motionstream/evaluation/motion.py

Exit codes: 0 done; 2 bad input, named in a sentence on stderr; 130 stopped by Ctrl-C. With --json the last line on
stdout is one JSON object. An output file is complete or not there. Each command imports what it needs when it runs, so
that --help is instant.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from motionstream.errors import InputError

if TYPE_CHECKING:
    from motionstream.streaming import Chunk

DEFAULT_SECONDS = 5.0
MAX_SECONDS = 3_600.0
MAX_SEED = 2**63 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command -> its exit code; argv without the program's name, None for the process's own."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if argv[:1] == ["eval"]:  # has a command line of its own, whose imports --help need not wait for
            from motionstream.evaluation.motion import main as evaluate

            return evaluate(argv[1:])
        args = _parser().parse_args(argv)
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
    from motionstream.video import Mp4Writer, fit_image, read_image

    if args.out.suffix.lower() != ".mp4":
        raise InputError(f"cannot write {args.out}: only .mp4 is known")
    picture = read_image(args.image)  # before the imports that take seconds: a wrong name is told at once

    from motionstream.machine import Choice, parse_resolution, pick_device, pick_dtype, size_for
    from motionstream.model.checkpoint import load_model
    from motionstream.session import check_prompt, recipe_head
    from motionstream.streaming import stream
    from motionstream.tracks import StaticTracks, Tracks, load_tracks

    check_prompt(args.prompt)
    device = pick_device()
    model = load_model(args.model, device, pick_dtype(device))
    preset, picture_size = model.preset, (picture.shape[1], picture.shape[0])
    choice = parse_resolution(args.resolution, preset) if args.resolution else Choice(max(preset.budgets))
    size = size_for(preset, choice, *picture_size)
    image = fit_image(picture, *size)
    recipe, tracks = recipe_head(model, image, args.prompt, args.seed), Tracks.empty(0)
    if args.tracks is not None:
        tracks = load_tracks(args.tracks, picture_size, size, preset.fps)
        recipe["tracks"] = {"sha256": hashlib.sha256(args.tracks.read_bytes()).hexdigest()}
    frames = tracks.T or round(DEFAULT_SECONDS * preset.fps)
    if args.seconds is not None:
        frames = max(1, round(args.seconds * preset.fps))
    seconds, made = [], 0
    with (
        Mp4Writer(args.out, *size, preset.fps, recipe) as writer,
        closing(stream(model, image, StaticTracks(tracks), prompt=args.prompt, seed=args.seed)) as chunks,
    ):
        for chunk, wanted, spent in _take(chunks, frames):
            writer.write(chunk.frames[:wanted])
            seconds.append(spent)
            made += len(chunk.frames)
    figures = {"frames": frames, "width": size[0], "height": size[1], "fps_playback": preset.fps}
    figures |= {"fps_generated": made / sum(seconds), "first_chunk_s": seconds[0]}
    if not args.json:
        print(
            f"{args.out}: {frames} frames of {size[0]}x{size[1]} at {preset.fps:g} fps, "
            f"generated at {figures['fps_generated']:.1f} fps, the first after {seconds[0]:.2f} s"
        )
    return {"out": str(args.out), **figures}


def bench(args: argparse.Namespace) -> dict[str, float | int | str]:
    """The `bench` command: see `motionstream.evaluation.speed.bench`, which also prints the table."""
    from motionstream.evaluation.speed import bench as measure
    from motionstream.machine import pick_device, pick_dtype

    device = pick_device()
    return measure(args.model, args.chunks, args.random_weights, device, pick_dtype(device))


def _take(chunks: Iterator[Chunk], frames: int) -> Iterator[tuple[Chunk, int, float]]:
    """Chunks until there are `frames` frames, with a progress bar on a terminal -> (chunk, frames wanted, seconds)."""
    from tqdm import tqdm

    with tqdm(total=frames, unit="frame", disable=None) as bar:  # None: on a terminal only
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
    one.add_argument("--tracks", type=Path, metavar="FILE.json", help="point tracks, see motionstream/tracks.py")
    one.add_argument("--prompt", default="", metavar="TEXT")
    one.add_argument("--seconds", type=_seconds, metavar="S", help="length (default: that of the tracks, else 5)")
    one.add_argument("--seed", type=_seed, default=0, metavar="N")
    one.add_argument("--resolution", metavar="BUDGET|WxH", help="tokens per latent frame, or a size in pixels")
    two = commands.add_parser("bench", help="measure how fast the model streams on this machine")
    two.set_defaults(command=bench)
    two.add_argument("--chunks", type=int, default=40, metavar="N")
    two.add_argument("--random-weights", action="store_true", help="measure a preset that has no weights here")
    commands.add_parser("eval", help="measure motion and quality against clips or drags", add_help=False)
    for command in (one, two):
        command.add_argument("--model", default="embedded", metavar="NAME_OR_PATH", help="default: %(default)s")
        command.add_argument("--json", action="store_true", help="last line on stdout: one JSON object")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {MAX_SECONDS:g}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {MAX_SEED}")
    return value
