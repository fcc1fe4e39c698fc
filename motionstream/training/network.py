"""What is trained of a model, and how it is told about a batch of clips: the conditions of every stage come from here.

    network = load_network("weights/embedded", PRESETS["embedded"])
    context = network.context(batch)                         # prompts
    condition = network.condition(batch, range(3))           # image, tracks, motion prior of chunks 0, 1, 2
    x0 = network.predict(z, t, condition, context)           # bidirectional; with a cache: one chunk of a roll-out

A teacher that predicts clean latents also has to denoise at small t, where noisy latents say more than the motion prior
does. Its prediction starts from the best linear guess from both (`skip`), which is the prior, or nothing, at t = 1; a
student, whose few steps are at large t, does without and is just what `streaming.py` runs.

"Without tracks" means to the network just what a stream without tracks would tell it: an empty track map, and as motion
prior the first frame, which stands still and is sure everywhere. Training's dropout and guidance share it.
"""

import copy
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from motionstream.errors import InputError
from motionstream.model.cache import RollingCache
from motionstream.model.checkpoint import (
    INDEX_CLASS,
    WEIGHTS,
    cast,
    follow_umask,
    load_component,
    read_json,
    read_weights,
)
from motionstream.model.presets import Preset
from motionstream.model.text import EffectTextEncoder
from motionstream.model.track_head import TrackHead, track_maps
from motionstream.model.transformer import Context, MotionTransformer
from motionstream.streaming import Condition, assemble_condition, image_channels, predict_x0, write_cache
from motionstream.training.clips import ClipBatch, chunk_bounds
from motionstream.training.parallel import World, full_state
from motionstream.training.rgb_tracks import RgbTracks
from motionstream.training.trainer import Draws, whole_folder

RESIDUAL_VARIANCE = 0.35  # of the clips' latents around the motion prior's, as a share of all of it


class Network(nn.Module):
    """Transformer, track head and, where prompts are learned along with them, the text encoder; float32 weights.

    skip: variance of the clips' latents per channel [C] for a network that predicts as a teacher, see the module's
    docstring; of no effect where the velocity is predicted.
    """

    entries = ("condition", "context", "predict", "write")  # what is called from outside, besides `forward`

    def __init__(
        self,
        preset: Preset,
        transformer: MotionTransformer,
        track_head: TrackHead | RgbTracks,
        text_encoder: EffectTextEncoder | None = None,
        world: World | None = None,
        skip: Tensor | None = None,
    ):
        super().__init__()
        self.preset, self.world = preset, world or World()
        self.register_buffer("skip", skip if preset.prediction != "velocity" else None, persistent=False)
        self.checkpointing = False  # of roll-outs: see `predict`
        self.transformer, self.track_head, self.text_encoder = transformer, track_head, text_encoder
        self.to(self.world.device).float()

    def context(self, batch: ClipBatch, told: Tensor | None = None) -> Context:
        """Keys and values of the prompts; told: bool [B], whose prompt is given (None: all)."""
        text = batch.text
        if told is not None:
            text = torch.where(told.view(-1, *[1] * (text.ndim - 1)), text, batch.null_text)
        with self.world.autocast():
            tokens = text.float() if self.text_encoder is None else self.text_encoder.embedding(text)
            return self.transformer.encode_context(tokens, batch.image_tokens)

    def condition(
        self, batch: ClipBatch, chunks: range, told: Tensor | None = None, hidden: Tensor | None = None
    ) -> Condition:
        """The condition of consecutive chunks of the clips.

        told: bool [B], whose tracks are given (None: all). hidden: bool [B, chunks of the clip], chunks in which no
        track is given, as when a visitor lets go for a while: the motion prior then stays where it was.
        """
        preset, part = self.preset, slice(chunks.start * self.preset.chunk_size, chunks.stop * self.preset.chunk_size)
        bounds = chunk_bounds(preset, chunks.stop)
        frames, first = range(bounds[chunks.start][0], bounds[-1][1]), chunks.start == 0
        clean = batch.latents[:, :, :1]
        if told is None:
            told = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        height, width = (side * preset.spatial_stride for side in clean.shape[-2:])
        tracks = [one.rows(frames.start, frames.stop) for one in batch.tracks]
        maps = track_maps(tracks, width, height, preset.spatial_stride, preset.track_dim, clean.device)
        shown = told[:, None].expand(-1, chunks.stop)
        if hidden is not None:
            shown = shown & ~hidden[:, : chunks.stop]
        per_frame = torch.cat([shown[:, i : i + 1].expand(-1, bounds[i][1] - bounds[i][0]) for i in chunks], dim=1)
        image = prior = confidence = None
        if preset.image_conditioning == "channel_concat":
            image = image_channels(batch.image[:, :, part], preset.temporal_stride, first)
        if preset.motion_prior:
            prior, confidence = self._prior(batch, chunks, told, hidden)
        with self.world.autocast():
            tracks = self.track_head(maps * per_frame[..., None, None, None], first)
        known = clean if first and preset.image_conditioning == "first_latent" else None
        return assemble_condition(tracks, image, prior, confidence, known)

    def _prior(self, batch: ClipBatch, chunks: range, told: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents and confidence of the motion prior as the tracks that are given would make it."""
        size = self.preset.chunk_size
        part = slice(chunks.start * size, chunks.stop * size)
        given = told.view(-1, 1, 1, 1, 1)
        if hidden is not None:  # of each chunk, how many there are up to the last one before it that is not hidden
            shown = torch.arange(1, hidden.shape[1] + 1, device=hidden.device) * ~hidden
            before = F.pad(shown.cummax(1).values, (1, 0))[:, :-1]
            clips = torch.arange(len(hidden), device=hidden.device)[:, None]

        def pick(moved: Tensor, held: Tensor | None, still: Tensor) -> Tensor:
            moved = moved[:, :, part]
            if hidden is not None:
                lost = hidden.repeat_interleave(size, dim=1)[:, None, part, None, None]
                held = still if held is None else torch.cat([still, held], dim=2)  # None: of clips of one chunk
                held = held[clips, :, before].movedim(1, 2)
                moved = torch.where(lost, held.repeat_interleave(size, dim=2)[:, :, part], moved)
            return torch.where(given, moved, still)

        still = batch.latents[:, :, :1]
        sure = torch.ones_like(batch.confidence[:, :, :1])
        return pick(batch.prior, batch.held, still), pick(batch.confidence, batch.held_confidence, sure)

    def predict(
        self, z: Tensor, t: Tensor, condition: Condition, context: Context, cache: RollingCache | None = None
    ) -> Tensor:
        """`streaming.predict_x0` in float32, with `skip` more of z.

        With `checkpointing` a cached chunk's activations are computed again in the backward pass, from the cache as it
        is now: other counters, the same keys and values, which stay as they are (see `write`).
        """
        if self.checkpointing and cache is not None and torch.is_grad_enabled():
            now = copy.copy(cache)
            now.layers = [copy.copy(layer) for layer in cache.layers]
            parts = (condition, context, now)
            return checkpoint(self._predict, z, t, *parts, use_reentrant=False)
        return self._predict(z, t, condition, context, cache)

    def _predict(
        self, z: Tensor, t: Tensor, condition: Condition, context: Context, cache: RollingCache | None
    ) -> Tensor:
        with self.world.autocast():
            x0 = predict_x0(
                self.transformer, z, t, condition, context, cache, prediction=self.preset.prediction
            ).float()
        if self.skip is None:
            return x0
        more = skipped(z, t, condition.prior, self.skip)
        if condition.first is not None:
            more[:, :, 0] = 0
        return x0 + more

    def write(self, x0: Tensor, condition: Condition, context: Context, cache: RollingCache) -> None:
        """`streaming.write_cache`. A cache that fills up writes where nothing is stored yet; a full one rolls, so with
        `checkpointing` it goes on with keys and values of its own."""
        if self.checkpointing and cache.full and torch.is_grad_enabled():
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        with self.world.autocast():
            write_cache(self.transformer, x0, condition, context, cache)

    def new_cache(self, batch: ClipBatch, sink: int, window: int) -> RollingCache:
        with self.world.autocast():
            size, place = self.preset.chunk_size, batch.latents.shape[-2:]
            return self.transformer.new_cache(len(batch.latents), size, *place, sink=sink, window=window)

    def copy(self) -> "Network":
        """The same weights once more, learned apart from here on."""
        world, self.world = self.world, None
        twin = copy.deepcopy(self)
        self.world = twin.world = world
        return twin


def skipped(z: Tensor, t: Tensor, prior: Tensor | None, variance: Tensor) -> Tensor:
    """E[x0 | z] - prior, were x0 normal around 0 with this variance [C], or around the motion prior with a share of it,
    RESIDUAL_VARIANCE; t [B]."""
    t, variance = t.view(-1, 1, 1, 1, 1), variance.view(1, -1, 1, 1, 1)
    if prior is not None:
        variance = variance * RESIDUAL_VARIANCE
    gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
    return gain * (z if prior is None else z - (1 - t) * prior)


def hide_chunks(draws: Draws, chunks: int, probability: float) -> Tensor:
    """Stochastic mid-frame masking (section 3.1): bool [B, chunks]; never the first chunk nor the last."""
    hidden = draws.uniform(chunks) < probability
    hidden[:, 0] = hidden[:, -1] = False
    return hidden


def load_network(
    folder: str | Path, preset: Preset, world: World | None = None, skip: bool = False, rgb: bool = False
) -> Network:
    """What is trained of a model folder, which must be of this preset; rgb: whether it was trained with `RgbTracks`."""
    folder = model_folder(folder, preset)
    head = rgb_head(folder, preset) if rgb else load_component(folder / "track_head")
    preset = with_rgb(preset) if rgb else preset
    return _assembled(preset, load_component(folder / "transformer"), head, folder, world, skip)


def rgb_head(folder: Path, preset: Preset) -> RgbTracks:
    return RgbTracks(load_component(folder / "vae"), preset.spatial_stride)


def with_rgb(preset: Preset) -> Preset:
    """The preset with room for tracks that are encoded as a video."""
    return replace(preset, track_channels=preset.latent_channels)


def model_folder(name: str | Path, preset: Preset) -> Path:
    """A local model folder, or one in weights/; `InputError` if it is missing or of another preset."""
    folder = next((f for f in (Path(name), WEIGHTS / name) if f.is_dir()), None)
    if folder is None:
        raise InputError(f"{name} is no model folder, nor one in {WEIGHTS}")
    noted = read_json(folder / "model_index.json").get("preset")
    given = noted.get("name") if isinstance(noted, dict) else None
    if given != preset.name:
        raise InputError(f"{folder} is of the preset {given}; asked for was {preset.name}")
    return folder


def new_network(preset: Preset, vae_folder: Path, seed: int, world: World | None = None, skip: bool = False) -> Network:
    """A network that has learned nothing; one that predicts clean latents begins with the prior's, or with none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = MotionTransformer(**preset.transformer_config())
        head = new_head(preset)
    if preset.prediction != "velocity":
        nn.init.zeros_(transformer.proj_out.weight)
        nn.init.zeros_(transformer.proj_out.bias)
    return _assembled(preset, transformer, head, vae_folder, world, skip)


def new_head(preset: Preset) -> TrackHead:
    sizes = dict(track_dim=preset.track_dim, out_channels=preset.track_channels)
    return TrackHead(**sizes, temporal_stride=preset.temporal_stride)


def widened_network(preset: Preset, folder: Path, world: World | None = None, skip: bool = False) -> Network:
    """A network that starts from a video model without tracks (a stock Wan I2V or Fun transformer folder).

    Its patch embedding is widened with zeros for the channels it lacks, which are the last: noise, [mask and image,]
    tracks, [prior, confidence]. So it begins by making exactly what that model makes. The transformer of one of our own
    model folders serves too: what it was told of tracks and by a motion prior is left out.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise InputError(f"{folder} is no transformer folder: it needs config.json and .safetensors files")
    transformer = MotionTransformer(**preset.transformer_config())
    weights = {name: weight for file in files for name, weight in read_weights(file)[0].items()}
    narrow, wide = weights.get("patch_embedding.weight"), transformer.patch_embedding.weight
    moved = preset.latent_channels + preset.temporal_stride if preset.motion_prior else 0
    lacking = preset.track_channels + moved
    index = folder.parent / "model_index.json"  # diffusers' folders have one, too
    if narrow is not None and index.is_file() and "preset" in read_json(index):
        narrow = narrow[:, : wide.shape[1] - lacking]
    if narrow is None or narrow.shape[1] + lacking != wide.shape[1]:
        given = "no patch_embedding.weight" if narrow is None else f"{narrow.shape[1]} input channels"
        raise InputError(f"{folder} has {given}; {preset.name} widens {wide.shape[1] - lacking} of them by {lacking}")
    weights["patch_embedding.weight"] = torch.cat([narrow.float(), torch.zeros_like(wide[:, :lacking])], dim=1)
    expected = {name: value.shape for name, value in transformer.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected or weights[name].shape != expected[name]:
            raise InputError(f"{folder} does not fit {preset.name}: the first weight that differs is {name}")
    transformer.load_state_dict({name: value.float() for name, value in weights.items()})
    return _assembled(preset, transformer, new_head(preset), folder.parent, world, skip)


def save_network(network: Network, source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes a model folder: this network in `dtype`, and the preset's other parts as they are in the folder `source`.

    All processes take part, the first one writes; the folder is complete or as it was.
    """
    weights, _ = full_state(network, [])
    if not network.world.leads:
        return
    rgb = isinstance(network.track_head, RgbTracks)
    with whole_folder(folder) as unfinished:
        for name, part in network.named_children():
            if rgb and name == "track_head":
                continue
            whole = type(part).from_config(part.config)
            whole.load_state_dict(
                {key.removeprefix(f"{name}."): v for key, v in weights.items() if key.startswith(f"{name}.")}
            )
            cast(whole, dtype)
            whole.save_pretrained(unfinished / name)
        for other in source.iterdir():
            priorless = not network.preset.motion_prior
            needless = {"motion_prior": priorless, "matte": priorless, "track_head": rgb}
            if other.is_dir() and not needless.get(other.name) and not (unfinished / other.name).exists():
                shutil.copytree(other, unfinished / other.name)
        follow_umask(*unfinished.glob("*/*.safetensors"))
        index = {"_class_name": INDEX_CLASS, "preset": asdict(network.preset)}
        (unfinished / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _assembled(
    preset: Preset,
    transformer: MotionTransformer,
    head: TrackHead | RgbTracks,
    folder: Path,
    world: World | None,
    skip: bool,
) -> Network:
    """The network with what a model folder says of its prompts and of its latents."""
    variance = _variance(folder, preset) if skip else None
    return Network(preset, transformer, head, _learned_text(folder, preset), world, variance)


def _variance(folder: Path, preset: Preset) -> Tensor:
    """[C]: of the latents of a model folder's autoencoder, 1 unless it says otherwise."""
    known = load_component(folder / "vae").config.latent_variance if preset.vae == "EmbeddedVAE" else None
    return torch.ones(preset.latent_channels) if known is None else torch.tensor(known)


def _learned_text(folder: Path, preset: Preset) -> EffectTextEncoder | None:
    """The text encoder if it is one that is trained along: the folder's vectors, and new ones for words it lacks."""
    if preset.text_encoder != "EffectTextEncoder":
        return None
    encoder = EffectTextEncoder(text_dim=preset.transformer["text_dim"])
    if not (folder / "text_encoder").is_dir():
        return encoder
    known = load_component(folder / "text_encoder")
    numbers = {word: number for number, word in enumerate(known.vocabulary, 1)}
    with torch.no_grad():
        encoder.embedding.weight[0] = known.embedding.weight[0]
        for number, word in enumerate(encoder.vocabulary, 1):
            if word in numbers:
                encoder.embedding.weight[number] = known.embedding.weight[numbers[word]]
    return encoder
