"""The bidirectional teacher: rectified flow matching on whole clips (paper section 3.1, appendix D), and its sampler.

    python -m motionstream train teacher --stage a --data SHARDS --out RUN --minutes 30
    python -m motionstream train teacher --stage b --model RUN/model --data SHARDS --out RUN_B --minutes 10

Stage a learns to follow tracks; stage b hides them in mid-clip chunks now and then, with the track head frozen. Prompt
and tracks are each left out of some clips, for guidance.

The loss is that of the velocity z_1 - z_0 whatever the network predicts: a clean latent x0 at z_t means the velocity
(z_t - x0) / t, so an error of x0 counts 1 / t^2. That is without bound, and at small t the velocity says little but
what noise was added; so for a network that predicts x0 the weight w(t) is (t / T_LEAST)^2 below T_LEAST, and 1 above as
everywhere for one that predicts the velocity.
"""

import collections
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from motionstream.evaluation.sheets import contact_sheet, draw_tracks
from motionstream.model.presets import Preset
from motionstream.streaming import add_noise, quantised, sampling_timesteps, shift_timestep
from motionstream.training.clips import ClipBatch
from motionstream.training.guidance import Guidance, joint_guidance
from motionstream.training.network import Network, hide_chunks
from motionstream.training.parallel import World
from motionstream.training.settings import Recipe
from motionstream.training.trainer import Draws

T_LEAST = 0.3
Sampler = Callable[[ClipBatch], Tensor]  # -> latents of whole clips


def flow_weight(t: Tensor, preset: Preset) -> Tensor:
    """w(t) of equation A2; see the module's docstring."""
    return (t / T_LEAST).clamp_max(1).square() if preset.prediction != "velocity" else torch.ones_like(t)


def velocity_loss(x0: Tensor, target: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Mean of weight * |v - (z_1 - z_0)|^2, v the velocity that the prediction x0 means; t, weight [B].

    v - (z_1 - z_0) = (z_t - x0) / t - (z_t - target) / t.
    """
    each = ((x0 - target).square().flatten(1).mean(1)) / t.square()
    return (weight * each).mean()


def random_timesteps(draws: Draws, shift: float) -> Tensor:
    """[B] in (0, 1], uniform before the shift."""
    return shift_timestep(1 - draws.uniform(), shift)


def flow_loss(network: Network, batch: ClipBatch, recipe: Recipe) -> dict[str, Tensor]:
    """The flow-matching loss of a batch of clips; `prior` is what the motion prior alone would cost."""
    preset, draws, clean = network.preset, batch.draws, batch.latents
    told_text, told_tracks = draws.uniform() >= recipe.drop_text, draws.uniform() >= recipe.drop_tracks
    hidden = hide_chunks(draws, recipe.chunks, recipe.hide)
    condition = network.condition(batch, range(recipe.chunks), told_tracks, hidden)
    context = network.context(batch, told_text)
    t = random_timesteps(draws, preset.shift)
    z = add_noise(clean, draws.normal(*clean.shape[1:]), t.view(-1, 1, 1, 1, 1))
    x0 = network.predict(z, t, condition, context)
    weight = flow_weight(t, preset)
    terms = {"loss": velocity_loss(x0, clean, t, weight), "x0": (x0 - clean).square().mean()}
    if condition.prior is not None:
        terms["prior"] = velocity_loss(condition.prior, clean, t, weight)
    return terms


def guided(network: Network, batch: ClipBatch, chunks: range, weights: Guidance) -> Callable[[Tensor, Tensor], Tensor]:
    """z, t [B] -> x0 under joint guidance, seen bidirectionally."""
    no_one = torch.zeros(len(batch), dtype=torch.bool, device=batch.latents.device)
    contexts = {True: network.context(batch), False: network.context(batch, no_one)}
    conditions = {True: network.condition(batch, chunks), False: network.condition(batch, chunks, no_one)}

    def predict(z: Tensor, t: Tensor) -> Tensor:
        return joint_guidance(lambda text, motion: network.predict(z, t, conditions[motion], contexts[text]), weights)

    return predict


@torch.no_grad()
def sample_ode(
    predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, timesteps: list[float]
) -> Iterator[Tensor]:
    """Euler steps along the velocity (z - x0) / t from noise at t = 1 -> z at every timestep, and at last the clean z.

    predict(z, t [B]) -> x0.
    """
    z = noise
    yield z
    for t, following in itertools.pairwise([*timesteps, 0.0]):
        x0 = predict(z, torch.full((len(z),), t, device=z.device))
        z = x0 + following / t * (z - x0)
        yield z


def sample_teacher(network: Network, batch: ClipBatch, recipe: Recipe, weights: Guidance | None = None) -> Tensor:
    """Latents of whole clips by the guided teacher; noise from the batch's draws."""
    predict = guided(network, batch, range(recipe.chunks), weights or recipe.guidance)
    noise = batch.draws.normal(*batch.latents.shape[1:])
    path = sample_ode(predict, noise, sampling_timesteps(recipe.ode_steps, network.preset.shift))
    return collections.deque(path, maxlen=1).pop()


@torch.no_grad()
def clip_sheet(
    vae: torch.nn.Module, batch: ClipBatch, samplers: dict[str, Sampler], world: World
) -> np.ndarray:
    """What samplers make of a batch's images, tracks and prompts, beside the clips, and what the teacher made where the
    clips tell; middle and last frame of each."""
    videos = {"clip": batch.latents}
    if batch.prior is not None:
        videos["motion prior"] = batch.prior
    if batch.endpoint is not None:
        videos["teacher"] = batch.endpoint
    videos |= {name: make(batch) for name, make in samplers.items()}
    with world.autocast():
        frames = {name: to_frames(vae, latents) for name, latents in videos.items()}
    rows, last = [], frames["clip"].shape[1] - 1
    for n, tracks in enumerate(batch.tracks):
        first = draw_tracks(frames["clip"][n, 0], tracks)
        for t in (last // 2, last):
            rows.append((f"clip {n}, frame {t}", [first, *(video[n, t] for video in frames.values())]))
    return contact_sheet(["tracks", *frames], rows)


def to_frames(vae: torch.nn.Module, latents: Tensor) -> np.ndarray:
    """Latents [B, C, t, h, w] -> uint8 [B, T, H, W, 3], decoded one by one: at full size a clip at once fits no GPU."""
    clips = []
    for one in latents:
        decoder = vae.decoder_stream()
        parts = (decoder.step(latent)[0].float().movedim(1, 0) for latent in one[None].split(1, dim=2))
        clips.append(torch.cat([quantised(part).cpu() for part in parts]))
    return torch.stack(clips).numpy()
