"""From the bidirectional teacher to a causal few-step student (paper section 3.2, "Causal Adaptation", and appendix D).

    python -m motionstream train trajectories --model TEACHER --data SHARDS --out TRAJECTORIES --count 4000
    python -m motionstream train adapt --model TEACHER --data TRAJECTORIES --out RUN

The guided teacher's ODE is solved for whole clips; z at the student's timesteps and the clean end are kept. The student
then predicts the end from z, chunk by chunk, while it attends to the clean chunks before in the `RollingCache` that
inference uses: so its attention is sparse and causal without a mask. Sink and window are drawn anew for every batch,
which is the paper's "diverse sparse causal masks".

Clips without trajectories serve as well (`--data SHARDS`), for a small student whose teacher would be no better than
its motion prior: the way from noise to clip is then a straight line. Regression along it gives the mean of what might
come next, which is all there is to know but for what falls: of that, noise tells where (see effects.py).
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from motionstream.errors import InputError
from motionstream.model.presets import Preset
from motionstream.streaming import add_noise, sample, sampling_timesteps
from motionstream.training.clips import SHARD, ClipBatch, Clips, Record, padded
from motionstream.training.effects import clip_noise
from motionstream.training.network import Network
from motionstream.training.settings import Recipe
from motionstream.training.teacher import guided, sample_ode
from motionstream.training.trainer import Draws

SHOWS = 0.7  # timestep from which on downwards noisy latents show what falls


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


@torch.no_grad()
def straight_start(
    predict: Callable[[Tensor, float], Tensor], batch: ClipBatch, part: slice, step: Tensor, timesteps: list[float]
) -> Tensor:
    """z [B, C, t, h, w] of a chunk at each clip's own step, on the straight way from noise to the clip.

    Noise tells where things fall in the last step in which z does not show it. z is then what the student itself gets
    there, by `predict` (z, t) -> x0: taken from the clip it would tell twice.
    """
    clean = batch.latents[:, :, part]

    def draw() -> Tensor:
        return batch.draws.normal(*clean.shape[1:])

    z = add_noise(clean, draw(), torch.tensor(timesteps, device=step.device)[step].view(-1, 1, 1, 1, 1))
    hidden = [t for t in timesteps if t > SHOWS]
    telling = step == len(hidden) - 1
    if batch.noise is None:
        return z
    told = torch.stack([clip_noise(seed, batch.latents.shape[1:]) for seed in batch.noise.tolist()])[:, :, part]
    guess = sample(predict, draw, hidden[:-1])
    return torch.where(telling.view(-1, 1, 1, 1, 1), add_noise(guess, told.to(guess), hidden[-1]), z)


def causal_loss(network: Network, batch: ClipBatch, recipe: Recipe) -> dict[str, Tensor]:
    """Regression of the clean end, mean over the chunks; each chunk of each clip at its own timestep."""
    preset, draws = network.preset, batch.draws
    sink, window = (int(draws.shared.choice(sizes)) for sizes in (recipe.sinks, recipe.windows))
    steps = sampling_timesteps(preset.steps, preset.shift)
    timesteps, end = torch.tensor(steps, device=batch.latents.device), batch.endpoint
    if batch.trajectory is None:
        end = batch.latents
    step = (draws.uniform(recipe.chunks) * preset.steps).long()
    context, cache = network.context(batch), network.new_cache(batch, sink, window)
    clips = torch.arange(len(batch), device=step.device)
    errors = []
    for index in range(recipe.chunks):
        part = slice(index * preset.chunk_size, (index + 1) * preset.chunk_size)
        target, condition = end[:, :, part], network.condition(batch, range(index, index + 1))

        def predict(z: Tensor, t: float, condition=condition) -> Tensor:
            return network.predict(z, torch.full((len(z),), t, device=z.device), condition, context, cache)

        if batch.trajectory is None:
            z = straight_start(predict, batch, part, step[:, index], steps)
        else:
            z = batch.trajectory[clips, step[:, index]][:, :, part]
        x0 = network.predict(z, timesteps[step[:, index]], condition, context, cache)
        errors.append((x0 - target).square().mean())
        network.write(target, condition, context, cache)
    return {"loss": torch.stack(errors).mean(), "first": errors[0].detach(), "last": errors[-1].detach()}
