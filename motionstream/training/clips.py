"""Training clips as shards of latents, written once and read many times.

    python -m motionstream train clips --preset embedded --library DIR --count 4000 --out SHARDS     # synthetic scenes
    python -m motionstream train clips --preset wan2.1-1.3b --model DIR --folder CLIPS --out SHARDS  # real clips

A record is a clip, its tracks and its prompt, and what the autoencoder, the motion prior and the encoders of text and
image make of them, chunk by chunk as in a stream. Encoding costs far more than a training step of the small model, so
it is done once; only IDs, the choice of tracks, noise and timesteps are drawn anew at each reading.

A synthetic scene comes with exact tracks, those that a visitor might have given, and often with an effect that a prompt
asks for. See `folder.py` for real clips.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from motionstream.controls.trackers import MAX_GRID, Seeds, open_tracker
from motionstream.errors import InputError, make_folder, one_line, writing
from motionstream.model.checkpoint import follow_umask, load_component, read_json
from motionstream.model.presets import Preset
from motionstream.model.text import EffectTextEncoder
from motionstream.streaming import pack_confidence
from motionstream.tracks import Tracks, draw_ids
from motionstream.training.effects import SHOWS, Fall, Sky, anywhere, clip_noise, random_effect
from motionstream.training.folder import RealClips, cached_tracks, caption
from motionstream.training.parallel import World
from motionstream.training.pictures import Library
from motionstream.training.scenes import (
    SPACINGS,
    Scene,
    TrackMode,
    choose_tracks,
    random_scene,
    render_clip,
    sliding_scene,
)
from motionstream.training.settings import MIXTURES
from motionstream.training.trainer import Draws, Schedule, next_made, start_worker

SHARD = 32

Record = dict[str, Tensor]


def chunk_bounds(preset: Preset, chunks: int) -> list[tuple[int, int]]:
    """(first frame, one past the last) of each chunk of a clip."""
    ends = np.cumsum([preset.chunk_frames(index) for index in range(chunks)]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def to_tensor(frames: np.ndarray) -> Tensor:
    """uint8 [T, H, W, 3] -> float [3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)


# --- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoders:
    """The parts of a model that are ready before its transformer is trained; None where there is none, or no need."""

    preset: Preset
    vae: torch.nn.Module | None
    text_encoder: torch.nn.Module | None
    motion_prior: torch.nn.Module | None = None
    image_encoder: torch.nn.Module | None = None

    @cached_property
    def no_prompt(self) -> Tensor:
        return written_prompt(self.text_encoder, "")

    @property
    def folders(self) -> list[str]:
        """The sub-folders of a model that they come from; a text encoder that learns along is made anew."""
        parts = vars(self).items()
        return [n for n, v in parts if isinstance(v, torch.nn.Module) and not isinstance(v, EffectTextEncoder)]

    @torch.inference_mode()
    def record(
        self,
        frames: np.ndarray,
        tracks: Tracks,
        prompt: str,
        world: World,
        max_tracks: int,
        seed: int | None = None,
    ) -> Record:
        """One clip (uint8 [T, H, W, 3], whole chunks) as its parts see it; all tensors on the CPU.

        latents [C, t, h, w]; text: token numbers or embeddings, null_text: those of no prompt; points [T, max_tracks,
        2] and visible [T, max_tracks]; with channel conditioning image [C, t, h, w]; with CLIP image_tokens;
        with a motion prior: prior [C, t, h, w] and confidence [4, t, h, w], and held [C, chunks - 1, h, w] and
        held_confidence: what the prior shows in each later chunk if no track is given in it; with a
        seed, noise: the number that effects.py knows it by.
        """
        video = to_tensor(frames).to(world.device)
        with world.autocast():
            made = {"latents": self.vae.encode(video[None])[0]}
            made["text"], made["null_text"] = written_prompt(self.text_encoder, prompt), self.no_prompt
            if self.preset.image_conditioning == "channel_concat":
                made["image"] = self.image_latents(video[None, :, 0], video.shape[1])[0]
            if self.image_encoder is not None:
                made["image_tokens"] = self.image_encoder.encode(video[:, 0])[0]
            if self.motion_prior is not None:
                made |= self._prior(video[:, 0], tracks)
        if seed is not None:
            made["noise"] = torch.tensor(seed)
        made |= padded(tracks, max_tracks)
        return {name: value.cpu().contiguous() for name, value in made.items()}

    def image_latents(self, picture: Tensor, frames: int) -> Tensor:
        """Pictures [B, 3, H, W] followed by blank frames, encoded: [B, C, t, h, w]."""
        video = picture.new_zeros(*picture.shape[:2], frames, *picture.shape[2:])
        video[:, :, 0] = picture
        return self.vae.encode(video)

    def _prior(self, picture: Tensor, tracks: Tracks) -> Record:
        preset, chunk = self.preset, self.preset.chunk_frames(1)
        state, encoder = self.motion_prior.start(picture), self.vae.encoder_stream()
        parts: dict[str, list[Tensor]] = {"prior": [], "confidence": [], "held": [], "held_confidence": []}
        for index, (start, stop) in enumerate(chunk_bounds(preset, 1 + (tracks.T - 1) // chunk)):
            moved = self.motion_prior.step(state, tracks.rows(start, stop))
            warped, sure = moved.picture.to(picture), moved.confidence.to(picture)
            pack = (preset.spatial_stride, preset.temporal_stride)
            parts["prior"].append(encoder.step(warped)[0])
            parts["confidence"].append(pack_confidence(sure, *pack, index == 0)[0])
            if stop < tracks.T:
                parts["held"].append(self.vae.encode(warped[:, :, -1:])[0])
                parts["held_confidence"].append(pack_confidence(sure[:, :, -1:], *pack, True)[0])
        return {name: torch.cat(found, 1) for name, found in parts.items() if found}


def load_encoders(folder: Path, preset: Preset, world: World, text: bool = True) -> Encoders:
    """Reads vae/, text_encoder/, motion_prior/ and image_encoder/ of a model folder, those that the preset has.

    text: whether prompts will be encoded; a text encoder may be larger than the transformer.
    """
    names = ["vae"] + ["image_encoder"] * ("image_dim" in preset.transformer)
    parts = {name: load_component(folder / name).to(world.device).eval() for name in names}
    if preset.motion_prior:
        parts["motion_prior"] = load_component(folder / "motion_prior").eval()
    words = EffectTextEncoder(text_dim=preset.transformer["text_dim"])  # its vectors are learned with the transformer
    if preset.text_encoder != "EffectTextEncoder":
        words = load_component(folder / "text_encoder", world.dtype).to(world.device).eval() if text else None
    return Encoders(preset, text_encoder=words, **parts)


def written_prompt(encoder: torch.nn.Module, prompt: str) -> Tensor:
    """Token numbers [length] where the text encoder learns along with the transformer, else embeddings [L, dim]."""
    if not isinstance(encoder, EffectTextEncoder):
        return encoder.encode(prompt)[0]
    tokens = encoder.tokens(prompt)
    return torch.tensor(tokens + [0] * (encoder.config.length - len(tokens)))


def padded(tracks: Tracks, most: int) -> Record:
    kept = min(tracks.N, most)
    points, visible = torch.zeros(tracks.T, most, 2), torch.zeros(tracks.T, most, dtype=torch.bool)
    points[:, :kept] = torch.tensor(tracks.points[:, :kept])
    visible[:, :kept] = torch.tensor(tracks.visible[:, :kept])
    return {"points": points, "visible": visible}


def with_effect(
    rng: np.random.Generator, frames: np.ndarray, fall: Fall, share: float
) -> tuple[np.ndarray, str]:
    """A share of the clips under an effect, see `Effect.begin`."""
    if rng.random() >= share:
        return frames, ""
    effect = random_effect(rng)
    return effect.begin(frames, fall), effect.prompt


def make_clip(
    rng: np.random.Generator,
    scene: Scene,
    count: int,
    modes: Mapping[TrackMode, float],
    sky: Sky | None,
    spacings: tuple[float, float] = SPACINGS,
) -> tuple[np.ndarray, Tracks, str, int | None]:
    """A synthetic clip: frames, tracks that a visitor might have given, prompt, and with a sky the seed of its noise.

    modes, spacings: as in `settings.Mixture`. A scene of one frame stands for `count`: nothing moves but what an effect
    lets fall. Without a sky things fall anywhere: where that is, a teacher learns to invent.
    """
    seed = int(rng.integers(2**62)) if sky else None
    clip = render_clip(scene)
    frames, tracks, share = np.repeat(clip.frames, count, axis=0), Tracks.empty(count), 1.0
    if scene.frames > 1:
        mode = rng.choice(list(modes), p=list(modes.values()))
        frames, tracks, share = clip.frames, choose_tracks(rng, scene, clip, mode, spacings), 0.5
    fall = sky.over(seed, frames) if sky else anywhere(rng, frames)
    frames, prompt = with_effect(rng, frames, fall, share)
    return frames, tracks, prompt, seed


def scene_records(
    encoders: Encoders, library: Library, chunks: int, seed: int, number: int, world: World
) -> Iterator[Record]:
    """The records of synthetic shard `number`, all of one size and kind."""
    rng = np.random.default_rng([seed, 2, number])
    mixture, cell = MIXTURES[encoders.preset.name], encoders.preset.spatial_stride
    kinds = {"still": mixture.still, "slides": mixture.slides, "scenes": 1 - mixture.still - mixture.slides}
    kind = rng.choice(list(kinds), p=list(kinds.values()))
    size = mixture.still_size
    if kind != "still":
        size = list(mixture.sizes)[rng.choice(len(mixture.sizes), p=list(mixture.sizes.values()))]
    frames = chunk_bounds(encoders.preset, chunks)[-1][1]
    sky = Sky(encoders.vae) if encoders.preset.vae == "EmbeddedVAE" else None
    for _ in range(SHARD):
        if kind == "slides":
            step = cell if rng.random() < 0.5 else int(rng.integers(1, cell))
            scene = sliding_scene(rng, library, *size, frames, step)
        else:
            scene = random_scene(rng, library, *size, 1 if kind == "still" else frames)
        modes = {"dense": 1.0} if kind == "slides" else mixture.modes
        clip, tracks, prompt, clip_seed = make_clip(rng, scene, frames, modes, sky, mixture.spacings)
        most = mixture.most_tracks  # what the motion prior is told must be what is stored
        kept = Tracks(tracks.points[:, :most], tracks.visible[:, :most], tracks.ids[:most])
        yield encoders.record(clip, kept, prompt, world, most, clip_seed)


def folder_records(
    encoders: Encoders, clips: RealClips, chunks: int, world: World, cache: Path, tracker: str
) -> Iterator[Record]:
    """The records of all pieces of this process's share of real clips, with CoTracker3's tracks where to be had."""
    length = chunk_bounds(encoders.preset, chunks)[-1][1]
    found = open_tracker(tracker, Seeds(MAX_GRID), live=False).name  # "auto" may be another one the next time
    # All frames together: a point that is hidden for a while is to have one ID, not two.
    opened = partial(open_tracker, found, live=False, window=length + 1)
    for path in clips.paths[world.rank :: world.size]:
        try:
            prompt = caption(path)
        except InputError as error:
            clips.skip(path, str(error))
            continue
        for _, start, frames in clips.pieces(length, [path]):
            tracks = cached_tracks(cache, path, start, frames, found, opened)
            yield encoders.record(frames, tracks, prompt, world, MAX_GRID**2)


def write_stream(folder: Path, records: Iterator[Record], world: World) -> None:
    """Shards of this process's records as they come; what is in the folder from an earlier run is replaced.

    Earlier shards that are not written over stay to the end, so that a run that fails loses none of them. The last of
    the processes to end removes them, or raises `InputError` if none of the processes had a record.
    """
    make_folder(folder)

    def place(rank: int, number: int) -> Path:
        return folder / f"clips-{rank:02d}-{number:05d}.safetensors"

    number = 0
    while shard := list(itertools.islice(records, SHARD)):
        write_shard(place(world.rank, number), shard)
        number += 1
    written = world.last_to_say(f"shards in {folder}", number)
    if written is None:
        return
    if not any(written):
        raise InputError("no clip was good enough: see what was skipped, and why, above")
    now = {place(rank, number) for rank, count in enumerate(written) for number in range(count)}
    for path in set(folder.glob("clips-[0-9]*-[0-9]*.safetensors")) - now:
        path.unlink()


def write_shard(path: Path, records: list[Record]) -> None:
    """Writes records of one shape; the file is complete or not there. Raises `InputError` on a full disk."""
    columns = {name: torch.stack([_stored(record[name], name) for record in records]) for name in records[0]}
    columns["null_text"] = columns["null_text"][:1].clone()  # the same for all
    unfinished = path.with_suffix(".tmp")
    try:
        with writing(path, "make room and run the same command again"):
            save_file(columns, unfinished)
            follow_umask(unfinished)
            unfinished.replace(path)
    finally:  # after the last line there is nothing of that name
        unfinished.unlink(missing_ok=True)


def _stored(value: Tensor, name: str) -> Tensor:
    """Half precision is enough for latents, but not for places of points in large frames."""
    return value.half() if value.is_floating_point() and name != "points" else value


def weights_digest(model: Path, parts: Sequence[str]) -> str:
    """Tells a model folder's weights in these of its sub-folders from others that may be at the same place later."""
    whole = hashlib.blake2b(digest_size=8)
    for path in sorted(path for part in parts for path in (model / part).glob("*.safetensors")):
        whole.update(f"{path.relative_to(model)}".encode())
        with open(path, "rb") as file:
            while block := file.read(2**24):
                whole.update(block)
    return whole.hexdigest()


def claim_shards(folder: Path, settings: dict[str, Any], world: World) -> None:
    """Notes the settings, of JSON's types, that a folder's shards are made with; `InputError` if it has shards of
    others. Where there is no note, or none of the weights, as of earlier versions, shards are taken as they are."""
    note = folder / "shards.json"
    if note.exists() and any(folder.glob("*.safetensors")):
        noted = read_json(note)
        for name, value in settings.items():
            before = noted.get(name, value if name == "weights" else None)
            if before != value:
                raise InputError(
                    f"{folder} holds shards made with {name} {before or 'none'}, not {value or 'none'}: give the same, "
                    "or name another folder"
                )
    elif world.leads:
        make_folder(folder)
        # Without a temporary name: commands that begin in one folder at once would take it from each other.
        with writing(note, "make room and run the same command again"):
            note.write_text(json.dumps(settings, indent=1))


def write_shards(
    folder: Path,
    count: int,
    seed: int,
    make: Callable[[int], Iterator[Record]],
    each: Callable[[], object],
    world: World,
) -> None:
    """Shards of `SHARD` records until there are `count`; those that are there stay. `each` is called after each shard.

    Every process writes its share.
    """
    make_folder(folder)
    for number in range(world.rank, -(-count // SHARD), world.size):
        path = folder / f"{seed:02d}-{number:05d}.safetensors"
        if not path.exists():
            write_shard(path, list(make(number)))
        each()


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass
class ClipBatch:
    """Some clips of one size, with their random numbers; tensors are [clips, ...] and as in `Encoders.record`."""

    latents: Tensor
    text: Tensor
    null_text: Tensor
    tracks: list[Tracks]
    draws: Draws
    image: Tensor | None = None
    image_tokens: Tensor | None = None
    prior: Tensor | None = None
    confidence: Tensor | None = None
    held: Tensor | None = None
    held_confidence: Tensor | None = None
    trajectory: Tensor | None = None  # [clips, student's steps, C, t, h, w]: see adaptation.py
    endpoint: Tensor | None = None  # [clips, C, t, h, w]
    noise: Tensor | None = None  # [clips]: seeds of the noise that the clips belong to, see effects.py

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> "ClipBatch":
        """The clips, and their draws, on a device, in float32."""
        values = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        values = {name: v.float() if v.is_floating_point() else v for name, v in values.items()}
        return replace(self, draws=self.draws.to(device), **values)

    def telling(self, timesteps: Sequence[float]) -> float:
        """The last of these timesteps at which z does not show yet what falls; 1 for clips that belong to no noise."""
        return 1.0 if self.noise is None else min(t for t in timesteps if t > SHOWS)

    def noises(self, part: slice, timesteps: Sequence[float]) -> Iterator[Tensor]:
        """Standard normals [clips, C, part, h, w], one for each timestep from 1 downwards.

        For the `telling` one a clip that belongs to a noise gets that: it tells where things fall.
        """
        telling = self.telling(timesteps)
        for t in timesteps:
            drawn = self.draws.normal(*self.latents[0, :, part].shape)
            if self.noise is not None and t == telling:
                own = [clip_noise(seed, self.latents.shape[1:])[:, part] for seed in self.noise.tolist()]
                drawn = torch.stack(own).to(drawn)
            yield drawn

    def records(self) -> Iterator[Record]:
        """The clips one by one, without their tracks."""
        values = {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}
        for n in range(len(self)):
            yield {name: value[n].cpu() for name, value in values.items()}


@dataclass(frozen=True)
class Clips:
    """All shards of a folder, read as needed. A batch is of one size, from all shards of it.

    tracks: (fewest, most) that are drawn of a clip's; None for all. chunks: how many of each clip's to take.
    """

    folder: Path
    preset: Preset
    chunks: int
    tracks: tuple[int, int] | None = None

    def __post_init__(self):
        shards = []
        for path in sorted(self.folder.glob("*.safetensors")):
            shapes = _shapes(path)
            if lacking := sorted({"latents", "text", "null_text", "points", "visible"} - shapes.keys()):
                raise InputError(f"{path} lacks {', '.join(lacking)}: it is no shard of clips of this version")
            _check_shapes(path, *(shapes[name] for name in ("latents", "points", "visible", "text")))
            count, channels, length = shapes["latents"][:3]
            if channels != self.preset.latent_channels:
                raise InputError(
                    f"{path} has {channels} latent channels; {self.preset.name} has "
                    f"{self.preset.latent_channels}: write shards for this preset"
                )
            own = {"prior", "confidence"} if self.preset.motion_prior else set()
            own |= {"image"} if self.preset.image_conditioning == "channel_concat" else set()
            if lacking := sorted(own - shapes.keys()):
                raise InputError(
                    f"{path} lacks {', '.join(lacking)}, which {self.preset.name} is told: write shards for this preset"
                )
            if length < self.chunks * self.preset.chunk_size:
                raise InputError(
                    f"{path} has clips of {length // self.preset.chunk_size} chunks; this stage takes "
                    f"{self.chunks}: write longer ones with train clips --chunks"
                )
            shards.append((path, count))
        if not shards:
            raise InputError(f"{self.folder} holds no .safetensors shard: write some with train clips")
        object.__setattr__(self, "shards", shards)

    def data(
        self, schedule: Schedule, seed: int, world: World, workers: int = 0
    ) -> Callable[[int], Iterator[list[ClipBatch]]]:
        """Data of a `Stage`: clips at random, those of an update of one size; read by `workers` processes beside."""
        batches = _Batches(self, schedule.batch, seed, world.places(schedule))

        def data(start: int) -> Iterator[list[ClipBatch]]:
            options = {"prefetch_factor": 2, "worker_init_fn": start_worker} if workers else {}
            steps = itertools.count(start)
            loader = iter(
                DataLoader(
                    batches, batch_size=None, sampler=steps, num_workers=workers, collate_fn=_as_it_is, **options
                )
            )
            while True:
                yield [piece.to(world.device) for piece in next_made(loader)]

        return data

    def read(self, path: Path, rows: Sequence[int], draws: Draws) -> ClipBatch:
        """Clips by their rows in a shard, on the CPU."""
        return self.gather([(path, row) for row in rows], draws)

    def gather(self, clips: Sequence[tuple[Path, int]], draws: Draws) -> ClipBatch:
        """Clips by their shards, all of one shape, and rows, in half precision on the CPU."""
        found: dict[int, Record] = {}
        for path in dict.fromkeys(path for path, _ in clips):
            with _opened(path) as shard:
                for n in (n for n, (own, _) in enumerate(clips) if own == path):
                    found[n] = {name: self._cut(name, shard.get_slice(name), int(clips[n][1])) for name in shard.keys()}
        values = {name: torch.stack([found[n][name] for n in range(len(clips))]) for name in found[0]}
        points, visible = values.pop("points"), values.pop("visible")
        tracks = [self._tracks(*one, rng) for *one, rng in zip(points, visible, draws.own, strict=True)]
        known = {field.name for field in fields(ClipBatch)}
        return ClipBatch(tracks=tracks, draws=draws, **{name: v for name, v in values.items() if name in known})

    def _cut(self, name: str, stored: Any, row: int) -> Tensor:
        """Of a clip's tensor the first `chunks` chunks."""
        if name == "null_text":
            return stored[0]
        lengths = dict.fromkeys(("latents", "image", "prior", "confidence"), self.chunks * self.preset.chunk_size)
        lengths |= dict.fromkeys(("held", "held_confidence"), self.chunks - 1)
        return stored[row, :, : lengths[name]] if name in lengths else stored[row]

    def alike(self) -> list[list[tuple[Path, int]]]:
        """The shards (path, clips) in groups whose clips are of one shape."""
        groups: dict[str, list[tuple[Path, int]]] = {}
        for path, count in self.shards:
            groups.setdefault(str({name: shape[1:] for name, shape in _shapes(path).items()}), []).append((path, count))
        return list(groups.values())

    def most_tracks(self, path: Path) -> int:
        """How many tracks a clip of this shard has room for."""
        return _shapes(path)["points"][2]

    def _tracks(self, points: Tensor, visible: Tensor, rng: np.random.Generator) -> Tracks:
        """A clip's tracks with new random IDs; rows that only pad never show."""
        used = visible.any(0).nonzero()[:, 0].numpy()
        if self.tracks is not None:
            fewest, most = (min(bound, len(used)) for bound in self.tracks)
            used = np.sort(rng.choice(used, rng.integers(fewest, most + 1), replace=False))
        stop = chunk_bounds(self.preset, self.chunks)[-1][1]
        return Tracks(points[:stop, used].float().numpy(), visible[:stop, used].numpy(), draw_ids(len(used), rng))


class _Batches(Dataset):
    """Update number n as its pieces, on the CPU."""

    def __init__(self, clips: Clips, size: int, seed: int, places: list[list[int]]):
        self.clips, self.size, self.seed, self.places = clips, size, seed, places
        self.groups = [[(path, row) for path, count in group for row in range(count)] for group in clips.alike()]

    def __getitem__(self, step: int) -> list[ClipBatch]:
        rng, counts = np.random.default_rng([self.seed, 4, step]), np.array([len(group) for group in self.groups])
        group = self.groups[rng.choice(len(counts), p=counts / counts.sum())]
        chosen = rng.choice(len(group), self.size, replace=len(group) < self.size)
        return [
            self.clips.gather([group[chosen[place]] for place in piece], Draws(self.seed, step, piece))
            for piece in self.places
        ]


def _as_it_is(pieces: list[ClipBatch]) -> list[ClipBatch]:
    return pieces


def _shapes(path: Path) -> dict[str, list[int]]:
    """Of all tensors of a shard."""
    with _opened(path) as shard:
        return {name: shard.get_slice(name).get_shape() for name in shard.keys()}


def _check_shapes(path: Path, latents: list[int], points: list[int], visible: list[int], text: list[int]) -> None:
    """Raises `InputError` unless latents are [clips, C, t, h, w], points [clips, T, N, 2], visible [clips, T, N]."""
    if len(latents) != 5 or len(points) != 4 or points != [*visible, 2] or {points[0], *text[:1]} != {latents[0]}:
        raise InputError(
            f"{path} has latents {latents}, points {points}, visible {visible} and text {text}, which do not belong "
            "together: it is no shard of clips; take it out of the folder"
        )


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """A shard; `InputError` names it where it cannot be read, be it that it has gone during the training."""
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except (OSError, SafetensorError, RuntimeError) as error:  # the last is PyTorch's, if it goes at that very moment
        raise InputError(f"{path} is no shard: {one_line(error)}; remove what is there and write it again") from error
