"""From the bidirectional teacher to a causal few-step student (paper section 3.2, "Causal Adaptation", and appendix D).

    python -m motionstream train trajectories --model TEACHER --data SHARDS --out TRAJECTORIES --count 4000
    python -m motionstream train adapt --model TEACHER --data TRAJECTORIES --out RUN

The guided teacher's ODE is solved for whole clips; z at the student's timesteps and the clean end are kept. The student
then predicts the end from z, chunk by chunk, while it attends to the clean chunks before in the `RollingCache` that
inference uses: so its attention is sparse and causal without a mask. Sink and window are drawn anew for every batch,
which is the paper's "diverse sparse causal masks".

Clips without trajectories serve as well (`--data SHARDS`), for a small student whose teacher would be no better than
its motion prior: it then rolls out on its own, and its clip is drawn to the true one. That teaches the mean of what
might come next, which is all there is to know but for what falls: of that, noise tells where (see effects.py).
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from motionstream.errors import InputError
from motionstream.model.presets import Preset
from motionstream.streaming import sampling_timesteps
from motionstream.training.clips import SHARD, ClipBatch, Clips, Record, padded
from motionstream.training.effects import clip_noise
from motionstream.training.network import Network
from motionstream.training.self_forcing import Noise, drawn_noise, roll_out
from motionstream.training.settings import Recipe
from motionstream.training.teacher import guided, sample_ode
from motionstream.training.trainer import Draws

SHOWS = 0.7  # timestep from which on downwards noisy latents show what falls, so that their noise need not tell


def kept_steps(ode_steps: int, preset: Preset) -> list[int]:
    """Which of the teacher's steps are the student's timesteps; both start at t = 1."""
    if ode_steps % preset.steps:
        raise InputError(f"{ode_steps} ODE steps do not hit the student's {preset.steps} timesteps: take a multiple")
    return list(range(0, ode_steps, ode_steps // preset.steps))


def trajectory_records(teacher: Network, clips: Clips, recipe: Recipe, seed: int, number: int) -> Iterator[Record]:
    """The records of trajectory shard `number`: clips of one shard with `trajectory` [steps, C, t, h, w] (z at the
    student's timesteps) and `endpoint` [C, t, h, w], made by the guided teacher from their image, tracks and prompt."""
    path, count = clips.shards[number % len(clips.shards)]
    device, chosen = teacher.world.device, kept_steps(recipe.ode_steps, teacher.preset)
    rows = np.random.default_rng([seed, 5, number]).choice(count, min(SHARD, count), replace=False)
    for start in range(0, len(rows), recipe.batch):
        places = list(range(start, min(start + recipe.batch, len(rows))))
        batch = clips.read(path, rows[places], Draws(seed, number, places, device), device)
        with torch.no_grad():
            predict = guided(teacher, batch, range(recipe.chunks), recipe.guidance)
            noise = batch.draws.normal(*batch.latents.shape[1:])
            steps = sample_ode(predict, noise, sampling_timesteps(recipe.ode_steps, teacher.preset.shift))
        z = torch.stack([steps[i] for i in chosen], dim=1)
        for n, record in enumerate(batch.records()):
            record |= {"trajectory": z[n].cpu(), "endpoint": steps[-1][n].cpu()}
            yield record | padded(batch.tracks[n], clips.most_tracks(path))


def causal_loss(network: Network, batch: ClipBatch, recipe: Recipe) -> dict[str, Tensor]:
    """Regression of the teacher's clean end, mean over the chunks; each chunk of each clip at its own timestep."""
    preset, draws = network.preset, batch.draws
    sink, window = (int(draws.shared.choice(sizes)) for sizes in (recipe.sinks, recipe.windows))
    timesteps = torch.tensor(sampling_timesteps(preset.steps, preset.shift), device=batch.latents.device)
    step = (draws.uniform(recipe.chunks) * preset.steps).long()
    context, cache = network.context(batch), network.new_cache(batch, sink, window)
    clips = torch.arange(len(batch), device=step.device)
    errors = []
    for index in range(recipe.chunks):
        part = slice(index * preset.chunk_size, (index + 1) * preset.chunk_size)
        target, condition = batch.endpoint[:, :, part], network.condition(batch, range(index, index + 1))
        z = batch.trajectory[clips, step[:, index]][:, :, part]
        x0 = network.predict(z, timesteps[step[:, index]], condition, context, cache)
        errors.append((x0 - target).square().mean())
        network.write(target, condition, context, cache)
    return {"loss": torch.stack(errors).mean(), "first": errors[0].detach(), "last": errors[-1].detach()}


def own_loss(network: Network, batch: ClipBatch, recipe: Recipe) -> dict[str, Tensor]:
    """Regression of the clips on the student's own roll-out, which ends with a denoising step drawn at random."""
    preset, draws = network.preset, batch.draws
    last = int(draws.shared.integers(preset.steps))
    noise = telling_noise(batch, preset, last)
    x = roll_out(network, batch, recipe.chunks, last, noise, sink=preset.sink, window=preset.window)
    return {"loss": (x - batch.latents).square().mean()}


def telling_noise(batch: ClipBatch, preset: Preset, last: int) -> Noise:
    """Noise of a roll-out that ends with step `last`: drawn, but in the last step before what falls is to be seen it is
    that which tells where it falls in these clips."""
    shape, drawn = batch.latents.shape[1:], drawn_noise(batch.draws, batch, preset)
    if batch.noise is None:
        return drawn
    telling = torch.stack([clip_noise(seed, shape) for seed in batch.noise.tolist()]).to(batch.latents)
    hidden = [t for t in sampling_timesteps(preset.steps, preset.shift)[: last + 1] if t > SHOWS]

    def noise(index: int) -> Callable[[], Tensor]:
        steps = itertools.count(1)
        part = telling[:, :, index * preset.chunk_size : (index + 1) * preset.chunk_size]
        return lambda: part if next(steps) == len(hidden) else drawn(index)()

    return noise
