"""`python -m motionstream train STAGE ...`: every stage of the paper's pipeline, and of the embedded model's own.

    clips         write training clips as shards of latents: synthetic scenes, or a folder of real clips
    teacher       bidirectional flow matching, --stage a, then b
    trajectories  write the guided teacher's ODE trajectories as shards
    adapt         causal regression on the trajectories, or without a teacher on clips
    distil        Self Forcing with DMD
    tiny-vae      a small decoder (for the embedded preset: the autoencoder)
    motion-prior  the embedded preset's motion prior

A run lives in the folder --out and is continued with --resume, which needs nothing else: its settings are there.
Under `torchrun` the same command trains on many processes. Exit codes as in `motionstream.cli`.
"""

import argparse
import contextlib
import fcntl
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from motionstream.cli import parse_seed
from motionstream.controls.trackers import TRACKERS
from motionstream.errors import InputError, make_folder, writing
from motionstream.machine import keep_memory, keep_to_cores, parse_resolution, pick_device, pick_dtype, size_for
from motionstream.model.checkpoint import follow_umask, load_component, read_json
from motionstream.model.device import usable_device
from motionstream.model.matte import Matte
from motionstream.model.presets import PRESETS, Preset
from motionstream.model.tiny_vae import TinyVAE
from motionstream.model.vae import EmbeddedVAE
from motionstream.progress import Progress
from motionstream.training import matte, prior
from motionstream.training.adaptation import causal_loss, trajectory_records
from motionstream.training.clips import (
    SHARD,
    ClipBatch,
    Clips,
    Encoders,
    Record,
    claim_shards,
    folder_records,
    load_encoders,
    scene_records,
    weights_digest,
    write_shards,
    write_stream,
)
from motionstream.training.folder import RealClips
from motionstream.training.guidance import Guidance
from motionstream.training.network import (
    Network,
    load_network,
    model_folder,
    new_network,
    rgb_head,
    save_network,
    widened_network,
    with_rgb,
)
from motionstream.training.parallel import World, join_world, shard
from motionstream.training.photos import load_library
from motionstream.training.pictures import Library
from motionstream.training.self_forcing import Distillation, drawn_noise, roll_out
from motionstream.training.settings import MIXTURES, RECIPES, Recipe
from motionstream.training.teacher import Sampler, clip_sheet, flow_loss, sample_teacher
from motionstream.training.tiny_vae import (
    LatentDecoder,
    Losses,
    PatchDiscriminator,
    Pixels,
    load_lpips,
    normalise,
    start_from_pca,
    vae_optimisers,
    vae_sheet,
)
from motionstream.training.trainer import (
    Draws,
    Player,
    Schedule,
    Stage,
    Trainer,
    first_made,
    made_samples,
    optimisers_for,
    whole_folder,
    write_whole,
)

SHEET_CLIPS = 3
FEW = 12  # clips on which an autoencoder's start and the scale of its latents are measured
COUNT = 4000  # clips to write
VAE_CLIPS = {"EmbeddedVAE": (128, 9), "WanVAE": (144, 21)}  # pixels a side and frames; Wan's are the paper's
TINY_VAE_SIZE = (288, 160)  # what real clips are scaled to before a square is cut from them
SETTINGS = "run.json"
LOCK = "run.lock"
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
CHANGEABLE = {"steps", "minutes", "rate", "pieces", "workers", "device"}  # when a run is resumed


def main(argv: Sequence[str]) -> int:
    """Runs one stage -> 0."""
    args = _parser().parse_args(argv)
    if getattr(args, "resume", None):
        args = _resumed(args, argv)
    for name in args.needs:
        if getattr(args, name) is None:
            raise InputError(f"train {args.command} needs --{name}")
    world = join_world(str(usable_device(args.device or pick_device())), torch.float32)
    keep_to_cores()
    if world.device.type == "cpu":
        keep_memory()
    if args.precision is None:  # of all processes, and of the run when it is resumed
        reduced = world.agreed(pick_dtype(world.device.type) == torch.bfloat16)
        args.precision = "bf16" if reduced else "fp32"
    torch.manual_seed(args.seed)  # what begins from random weights: alike on every process
    with sole_run(args.out, world) if "resume" in args else contextlib.nullcontext():
        args.run(args, replace(world, dtype=PRECISIONS[args.precision]))
    return 0


@contextlib.contextmanager
def sole_run(folder: Path, world: World) -> Iterator[None]:
    """Nobody else trains in `folder` meanwhile, or `InputError`; where the file system knows no locks, nothing is sure.

    The system takes the lock from a process that dies, and a `lockf`'s is not inherited by workers that outlive it.
    """
    free = True
    with contextlib.ExitStack() as held:
        if world.leads:
            make_folder(folder)
            with writing(folder / LOCK, "name another folder with --out"):
                lock = held.enter_context(open(folder / LOCK, "w"))
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except OSError:
                pass
        if not world.agreed(free):
            raise InputError(f"another process trains in {folder}: stop it first, or name another folder")
        yield


def train_teacher(args: argparse.Namespace, world: World) -> None:
    recipe, preset = _recipe(args, f"teacher-{args.stage}"), PRESETS[args.preset]
    network, folder = start_network(args, preset, world)
    prepared(network, recipe, causal=False)
    clips = Clips(args.data, preset, recipe.chunks, recipe.tracks)
    schedule = _schedule(args, recipe, world)
    player = Player(
        "teacher", network, lambda batch: flow_loss(network, batch, recipe), network_optimisers(network, recipe)
    )
    sheet = sheet_maker(network, folder, clips, args.seed, {"teacher": lambda b: sample_teacher(network, b, recipe)})
    stage = Stage([player], clips.data(schedule, args.seed, world, args.workers), sheet)
    finish(Trainer(stage, args.out, schedule, world), network, folder)


def train_adapt(args: argparse.Namespace, world: World) -> None:
    recipe, preset = _recipe(args, "adapt"), PRESETS[args.preset]
    folder = model_folder(args.model or preset.name, preset)
    network = prepared(load_network(folder, preset, world), recipe, causal=True)
    clips = Clips(args.data, preset, recipe.chunks)
    schedule = _schedule(args, recipe, world)
    player = Player(
        "student", network, lambda batch: causal_loss(network, batch, recipe), network_optimisers(network, recipe)
    )
    sheet = sheet_maker(network, folder, clips, args.seed, {"student": student_sampler(network)})
    stage = Stage([player], clips.data(schedule, args.seed, world, args.workers), sheet)
    finish(Trainer(stage, args.out, schedule, world), network, folder)


def train_distil(args: argparse.Namespace, world: World) -> None:
    recipe, preset = _recipe(args, "distil"), PRESETS[args.preset]
    folder, taught = model_folder(args.model or preset.name, preset), model_folder(args.teacher, preset)
    student = prepared(load_network(folder, preset, world), recipe, causal=True)
    teacher = prepared(load_network(taught, preset, world, skip=True).requires_grad_(False), recipe, causal=False)
    critic = prepared(load_network(taught, preset, world, skip=True), recipe, causal=False)
    clips = Clips(args.data, preset, recipe.chunks, recipe.tracks)
    schedule = _schedule(args, recipe, world)
    known = min(recipe.chunks, RECIPES[preset.name]["teacher-a"].chunks)
    whole = known == recipe.chunks  # then no clip begins anew in its middle
    encoders = Encoders(preset, None, None) if whole else load_encoders(folder, preset, world, text=False)
    losses = Distillation(student, teacher, critic, encoders, recipe, known)
    players = [
        Player("critic", critic, losses.critic_loss, optimisers_for(critic, recipe.critic_rate), recipe.critic_turns),
        Player("student", student, losses.generator_loss, optimisers_for(student, recipe.rate)),
    ]
    sheet = sheet_maker(student, folder, clips, args.seed, {"student": student_sampler(student)})
    stage = Stage(players, clips.data(schedule, args.seed, world, args.workers), sheet)
    finish(Trainer(stage, args.out, schedule, world), student, folder)


def write_trajectories(args: argparse.Namespace, world: World) -> None:
    preset = PRESETS[args.preset]
    recipe = _recipe(args, "adapt")
    folder = model_folder(args.model, preset)
    # Whole on every process: each writes shards of its own, and would wait in vain for the others' parts of a teacher.
    teacher = load_network(folder, preset, world, skip=True)
    clips = Clips(args.data, preset, recipe.chunks, recipe.tracks)
    guidance = [recipe.guidance.text, recipe.guidance.motion]
    made = dict(chunks=recipe.chunks, guidance=guidance, ode_steps=recipe.ode_steps)
    digest = weights_digest(folder, [name for name, _ in teacher.named_children()])
    claim(args, world, model=folder, data=args.data, **made, weights=digest)
    write_with_progress(args, lambda number: trajectory_records(teacher, clips, recipe, args.seed, number), world)


def write_clips(args: argparse.Namespace, world: World) -> None:
    idle = ("resolution", "cache") if args.folder is None else ("count", "library")
    if given := [name for name in idle if getattr(args, name) is not None]:
        clips = "synthetic clips" if args.folder is None else "the clips of --folder"
        raise InputError(f"--{given[0]} says nothing about {clips}: leave it out")
    args.count, preset = args.count or COUNT, PRESETS[args.preset]
    model = Path(args.model) if args.model else model_folder(preset.name, preset)
    encoders = load_encoders(model, preset, world)
    chunks = args.chunks or RECIPES[preset.name]["teacher-a"].chunks
    if args.folder is None:
        cv2.setNumThreads(0)  # its frames are small: several processes are faster, and would fight for the cores
        library = _library(args)
        digest = weights_digest(model, encoders.folders)
        claim(args, world, folder=None, model=model, library=args.library, chunks=chunks, weights=digest)
        write_with_progress(
            args, lambda number: scene_records(encoders, library, chunks, args.seed, number, world), world
        )
        return
    landscape = max(MIXTURES[preset.name].sizes, key=math.prod)
    size = size_for(preset, parse_resolution(args.resolution, preset), *landscape)
    clips = RealClips(args.folder, size, preset.fps)
    claim(args, world, folder=args.folder)  # alone: the same clips may be written anew with other settings
    records = folder_records(encoders, clips, chunks, world, args.cache or args.out / "tracks", args.tracker)
    write_stream(args.out, records, world)


def train_tiny_vae(args: argparse.Namespace, world: World) -> None:
    recipe, preset = _recipe(args, "tiny-vae"), PRESETS[args.preset]
    schedule = _schedule(args, recipe, world)
    side, frames = VAE_CLIPS[preset.vae]
    source = _library(args) if args.folder is None else RealClips(args.folder, TINY_VAE_SIZE, preset.fps)
    make = Pixels(source, side, frames)
    data = made_samples(make, schedule, args.seed, world, args.workers)
    few = first_made(make, FEW, args.seed, world)["frames"]
    if preset.vae == "EmbeddedVAE":
        vae = trained = load_component(Path(args.model) / "vae") if args.model else EmbeddedVAE()
        if not args.model:
            start_from_pca(vae, few)
    else:
        folder = model_folder(args.model or preset.name, preset)
        full = load_component(folder / "vae").to(world.device).eval().requires_grad_(False)
        trained = TinyVAE(**preset.configs["tiny_vae"])
        vae = LatentDecoder(full, trained)
    vae.to(world.device)
    losses = Losses(vae, world, load_lpips(args.lpips, world), adversarial=recipe.adversarial)
    players = []
    if recipe.adversarial:
        losses.critic = PatchDiscriminator().to(world.device)
        players = [
            Player("discriminator", losses.critic, losses.critic_loss, optimisers_for(losses.critic, recipe.rate))
        ]
    players += [Player("vae", trained, losses.decoder_loss, vae_optimisers(trained, recipe.rate))]

    def save() -> None:
        if preset.vae == "EmbeddedVAE":
            normalise(trained, few)
        save_part(trained, args.out / "model" / ("vae" if preset.vae == "EmbeddedVAE" else "tiny_vae"), world)

    stage = Stage(players, data, lambda: vae_sheet(vae, few[:SHEET_CLIPS]))
    Trainer(stage, args.out, schedule, world).train(save)


def train_motion_prior(args: argparse.Namespace, world: World) -> None:
    recipe = _recipe(args, "motion-prior")
    schedule, library = _schedule(args, recipe, world), _library(args)
    net = prior.prior_to_train(Path(args.model) if args.model else None).to(world.device)
    data = made_samples(lambda rng: prior.sample(rng, library), schedule, args.seed, world, args.workers)
    optimisers = optimisers_for(net, recipe.rate, recipe.muon)
    player = Player("motion prior", net, lambda batch: prior.motion_loss(net, batch, world), optimisers)
    trainer = Trainer(Stage([player], data), args.out, schedule, world)
    trainer.train(lambda: save_part(net, args.out / "model" / "motion_prior", world))


def train_matte(args: argparse.Namespace, world: World) -> None:
    recipe = _recipe(args, "matte")
    schedule, library = _schedule(args, recipe, world), _library(args)
    folder = model_folder(args.model or args.preset, PRESETS[args.preset])
    seeing = load_component(folder / "motion_prior").to(world.device).eval().requires_grad_(False)
    net = (load_component(folder / "matte") if (folder / "matte").is_dir() else Matte()).to(world.device)
    data = made_samples(lambda rng: matte.sample(rng, library), schedule, args.seed, world, args.workers)
    optimisers = optimisers_for(net, recipe.rate)
    player = Player("matte", net, lambda batch: matte.matte_loss(seeing, net, batch, world), optimisers)
    trainer = Trainer(Stage([player], data), args.out, schedule, world)
    trainer.train(lambda: save_part(net, args.out / "model" / "matte", world))


def save_part(part: torch.nn.Module, folder: Path, world: World) -> None:
    if world.leads:
        with whole_folder(folder) as unfinished:
            part.save_pretrained(unfinished)
            follow_umask(*unfinished.glob("*.safetensors"))


def _library(args: argparse.Namespace) -> Library:
    if args.library is None:
        raise InputError("name a folder of photographs with --library (training/photos.py makes one)")
    return load_library(args.library)


def claim(args: argparse.Namespace, world: World, **settings: Any) -> None:
    """`claim_shards` for the command; a path counts as the place it leads to."""
    places = {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in settings.items()}
    claim_shards(args.out, {"command": args.command, "preset": args.preset, **places}, world)


def write_with_progress(args: argparse.Namespace, make: Callable[[int], Iterator[Record]], world: World) -> None:
    """All shards, or under `torchrun` this process's share of them."""
    with Progress(total=-(-args.count // SHARD), unit="shard", disable=None) as bar:
        write_shards(args.out, args.count, args.seed, make, bar.update, world)


def student_sampler(network: Network) -> Sampler:
    """Roll-outs as in inference."""
    preset = network.preset

    def sample(batch: ClipBatch) -> Tensor:
        chunks, noise = batch.latents.shape[2] // preset.chunk_size, drawn_noise(batch, preset)
        return roll_out(network, batch, chunks, preset.steps - 1, noise, sink=preset.sink, window=preset.window)

    return sample


def start_network(args: argparse.Namespace, preset: Preset, world: World) -> tuple[Network, Path]:
    """The network a run starts from, and the folder of the model's other parts."""
    begun = args.scratch or args.widen
    if begun and args.model is None:
        raise InputError("--scratch and --widen need --model: the folder that gives the autoencoder and other parts")
    folder = Path(args.model) if begun else model_folder(args.model or preset.name, preset)
    own = with_rgb(preset) if args.rgb_tracks else preset
    if args.widen:
        network = widened_network(own, args.widen, world, skip=True)
    elif args.scratch:
        network = new_network(own, folder, args.seed, world, skip=True)
    else:
        return load_network(folder, preset, world, skip=True, rgb=args.rgb_tracks), folder
    if args.rgb_tracks:
        network.track_head = rgb_head(folder, preset).to(world.device).float()
    return network, folder


def prepared(network: Network, recipe: Recipe, causal: bool) -> Network:
    """Frozen, checkpointed and sharded as the recipe and the world ask."""
    if recipe.frozen_head:
        network.track_head.requires_grad_(False)
    if recipe.checkpointing and causal:
        network.checkpointing = True
    elif recipe.checkpointing:
        network.transformer.enable_gradient_checkpointing()
    shard(network, network.world)
    return network


def network_optimisers(network: Network, recipe: Recipe) -> list[torch.optim.Optimizer]:
    return optimisers_for(network, recipe.rate, recipe.muon)


def sheet_maker(
    network: Network, folder: Path, clips: Clips, seed: int, samplers: dict[str, Sampler]
) -> Callable[[], np.ndarray]:
    """Draws the same clips every time."""
    world = network.world
    vae = load_component(folder / "vae").to(world.device).eval()
    path, count = clips.shards[-1]

    def draw() -> np.ndarray:
        rows = np.arange(min(SHEET_CLIPS, count))
        batch = clips.read(path, rows, Draws(seed, 0, rows.tolist())).to(world.device)
        return clip_sheet(vae, batch, samplers, world)

    return draw


def finish(trainer: Trainer, network: Network, folder: Path) -> None:
    """Trains, and writes the averaged weights as a model folder."""
    dtype = torch.float16 if network.preset.vae == "EmbeddedVAE" else torch.bfloat16
    trainer.train(lambda: save_network(network, folder, trainer.folder / "model", dtype))


def _recipe(args: argparse.Namespace, stage: str) -> Recipe:
    """The preset's settings of the stage, with those the command line changes; written to the run folder."""
    if stage not in RECIPES[args.preset]:
        known = ", ".join(name for name, recipes in RECIPES.items() if stage in recipes)
        raise InputError(f"{args.preset} has no {stage}: give --preset {known}")
    recipe = RECIPES[args.preset][stage]
    if getattr(args, "guidance", None):
        recipe = replace(recipe, guidance=Guidance(*args.guidance))
    names = ("batch", "rate", "steps", "chunks", "ode_steps", "sampled", "adversarial")
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if recipe.adversarial and recipe.steps and given.get("adversarial") == 0:
        recipe = replace(recipe, steps=recipe.steps // 2)  # the discriminator's are not needed
    if getattr(args, "minutes", None) is not None:
        given["steps"] = None
    times = given.get("rate", recipe.rate) / recipe.rate
    given["critic_rate"] = recipe.critic_rate * times
    if recipe.muon:
        given["muon"] = recipe.muon * times
    return replace(recipe, **given)


def _schedule(args: argparse.Namespace, recipe: Recipe, world: World) -> Schedule:
    schedule = Schedule(recipe.batch, args.minutes, recipe.steps, args.pieces, recipe.warmup, recipe.floor, recipe.ema)
    _claim(args, world)
    return schedule


def _claim(args: argparse.Namespace, world: World) -> None:
    """Writes the run's settings; a folder that already holds a run is not begun anew."""
    settings = {
        name: str(v) if isinstance(v, Path) else v
        for name, v in vars(_placed(args)).items()
        if name not in ("run", "needs", "resume")
    }
    if args.resume is None and (args.out / "last.pt").exists():
        raise InputError(f"{args.out} holds a run: continue it with --resume {args.out}, or name another folder")
    if not world.leads:
        return
    make_folder(args.out)
    write_whole(
        args.out / SETTINGS, lambda file: file.write(json.dumps(settings, indent=1).encode()), "before the start"
    )


def _resumed(args: argparse.Namespace, argv: Sequence[str]) -> argparse.Namespace:
    """The settings of the run in --resume; of those that may change, what is given now counts instead."""
    path = args.resume / SETTINGS
    if not path.is_file():
        raise InputError(f"{args.resume} has no {SETTINGS}: it is no run folder")
    saved = read_json(path)
    if saved.get("command") != args.command:
        raise InputError(f"{args.resume} is a run of {saved.get('command')}, not of {args.command}")
    # With what the run has as defaults, what differs was given: options' own defaults may be given too.
    before, now = (_placed(_parser(saved).parse_args(words)) for words in ([args.command], argv))
    given = {name for name, value in vars(now).items() if value != getattr(before, name) and name != "resume"}
    if fixed := sorted(given - CHANGEABLE):
        raise InputError(f"a resumed run keeps its --{fixed[0].replace('_', '-')}: leave it out, or start another run")
    for one, other in (("steps", "minutes"), ("minutes", "steps")):
        if one in given:
            setattr(now, other, None)
    now.out = args.resume  # which may have moved
    return now


def _placed(args: argparse.Namespace) -> argparse.Namespace:
    """The same with whole paths, so that a run goes on from wherever it is resumed; names of models stay names."""
    placed = vars(args).copy()
    for name, value in placed.items():
        if isinstance(value, Path) or (name in ("model", "teacher") and value and Path(value).is_dir()):
            placed[name] = type(value)(Path(value).resolve())
    return argparse.Namespace(**placed)


def positive(text: str) -> int:
    """For argparse, which puts the option's name before the message."""
    return _at_least(text, 1)


def count(text: str) -> int:
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)


def rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


def _parser(saved: dict[str, Any] | None = None) -> argparse.ArgumentParser:
    """saved: settings of a run, which are the defaults then."""
    parser = argparse.ArgumentParser(
        prog="motionstream train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="command", metavar="STAGE", required=True)
    teacher = stages.add_parser("teacher", help="bidirectional flow matching")
    teacher.add_argument("--stage", choices=("a", "b"), default="a", help="b hides tracks in mid-clip chunks")
    teacher.add_argument(
        "--rgb-tracks", action="store_true", help="tracks as a video through the autoencoder, as in the paper's table 3"
    )
    teacher.set_defaults(run=train_teacher, needs=("data", "out"))
    _start_options(teacher)
    clips = stages.add_parser("clips", help="write training clips")
    clips.add_argument("--count", type=positive, help=f"of synthetic clips; default: {COUNT}")
    clips.add_argument("--chunks", type=positive, help="length (default: the teacher's)")
    clips.add_argument("--resolution", metavar="BUDGET|WxH", help="of real clips; default: the preset's largest")
    clips.add_argument("--cache", type=Path, metavar="DIR", help="for tracks of real clips (default: OUT/tracks)")
    clips.add_argument("--tracker", choices=TRACKERS, default="auto")
    clips.set_defaults(run=write_clips, needs=("out",))
    trajectories = stages.add_parser("trajectories", help="write the guided teacher's ODE trajectories")
    trajectories.add_argument("--count", type=positive, default=COUNT)
    trajectories.add_argument("--chunks", type=positive)
    trajectories.add_argument("--batch", type=positive, dest="sampled", help="clips at once")
    trajectories.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of shards")
    trajectories.set_defaults(run=write_trajectories, needs=("model", "data", "out"))
    adapt = stages.add_parser("adapt", help="causal regression on trajectories or clips")
    adapt.set_defaults(run=train_adapt, needs=("data", "out"))
    distil = stages.add_parser("distil", help="Self Forcing with DMD")
    distil.add_argument("--teacher", metavar="DIR", help="model folder of the teacher")
    distil.set_defaults(run=train_distil, needs=("teacher", "data", "out"))
    vae = stages.add_parser("tiny-vae", help="a small decoder, or the embedded autoencoder")
    vae.add_argument("--lpips", type=Path, metavar="FILE", help="LPIPS weights, see motionstream/evaluation/lpips.py")
    vae.add_argument("--adversarial", type=float, metavar="WEIGHT", help="of the patch discriminator; 0: none")
    vae.set_defaults(run=train_tiny_vae, needs=("out",))
    motion = stages.add_parser("motion-prior", help="dense motion from picture and tracks")
    motion.set_defaults(run=train_motion_prior, needs=("library", "out"))
    ends = stages.add_parser("matte", help="where exactly things end, for a motion prior")
    ends.set_defaults(run=train_matte, needs=("library", "out"))
    for command in (clips, vae, motion, ends):
        command.add_argument("--library", type=Path, metavar="DIR", help="photographs for synthetic scenes")
    for command in (clips, vae):
        command.add_argument("--folder", type=Path, metavar="DIR", help="real clips instead")
    for command in (vae, motion, ends):
        command.add_argument("--workers", type=count, default=1, help="processes that make samples")
    for command in (teacher, adapt, distil):
        command.add_argument("--data", type=Path, metavar="DIR", help="folder of shards")
        command.add_argument("--chunks", type=positive, help="chunks a clip")
        command.add_argument("--workers", type=count, default=0, help="processes that read clips, beside a GPU")
    for command in (teacher, adapt, distil, vae, motion, ends):
        _run_options(command)
    for command in (teacher, trajectories, distil):
        command.add_argument("--guidance", type=float, nargs=2, metavar=("TEXT", "MOTION"), help="default: preset's")
    for command in (teacher, trajectories):
        command.add_argument("--ode-steps", type=positive, metavar="N", help="of the sampler; a multiple of 3")
    starts = {
        trajectories: "the teacher's",
        vae: "default: weights/PRESET; the embedded presets' autoencoders begin anew",
        motion: "default: begins anew",
        ends: "whose motion prior sees, and whose matte goes on; default: weights/PRESET",
    }
    for command in stages.choices.values():
        _common_options(command, starts.get(command, "default: weights/PRESET"), on_gpu=command not in (motion, ends))
        command.set_defaults(**saved or {})
    return parser


def _common_options(command: argparse.ArgumentParser, start: str, on_gpu: bool) -> None:
    command.add_argument("--preset", choices=PRESETS, default="embedded")
    command.add_argument("--model", metavar="DIR", help=f"model folder ({start})")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder to write")
    command.add_argument("--seed", type=parse_seed, default=0)
    alone = {} if on_gpu else dict(default="cpu", choices=("cpu",))  # see `MotionPrior.stays_on_cpu`
    command.add_argument("--device", **alone, help="cpu or cuda (default: what is there)")
    command.add_argument("--precision", choices=("bf16", "fp32"), help="default: the faster one on this machine")


def _start_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scratch", action="store_true", help="start from random weights; --model gives the other parts"
    )
    command.add_argument(
        "--widen", type=Path, metavar="DIR", help="start from a transformer folder without track channels"
    )


def _run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder")
    length = command.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, help="updates in all (default: the preset's, if it has a number)")
    length.add_argument("--minutes", type=float, help="minutes of training in all, instead of steps")
    command.add_argument("--batch", type=positive)
    command.add_argument("--pieces", type=positive, default=1, help="gradient accumulation")
    command.add_argument("--rate", type=rate, help="learning rate; Muon's and the critic's go along")
