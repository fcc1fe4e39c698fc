"""From the bidirectional teacher to a causal few-step student (paper section 3.2, "Causal Adaptation", and appendix D).

    python -m motionstream train trajectories --model TEACHER --data SHARDS --out TRAJECTORIES --count 4000
    python -m motionstream train adapt --model TEACHER --data TRAJECTORIES --out RUN

The guided teacher's ODE is solved for whole clips; z at the student's timesteps and the clean end are kept. The student
then predicts the end from z, chunk by chunk, while it attends to the clean chunks before in the `RollingCache` that
inference uses: so its attention is sparse and causal without a mask. Sink and window are drawn anew for every batch,
which is the paper's "diverse sparse causal masks".

Clips without trajectories serve as well (`--data SHARDS`), for a small student whose teacher would be no better than
its motion prior: it then goes its own way from noise to the clip, and from chunk to chunk. Regression gives the mean of
what might come next, which is all there is to know but for what falls: of that, noise tells where (see effects.py).
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from motionstream.errors import InputError
from motionstream.model.presets import Preset
from motionstream.streaming import add_noise, sampling_timesteps
from motionstream.training.clips import SHARD, ClipBatch, Clips, Record, padded
from motionstream.training.network import Network
from motionstream.training.settings import Recipe
from motionstream.training.teacher import guided, sample_ode
from motionstream.training.trainer import Draws

SHOWN = 0.3  # share of the clips without trajectories of which z and cache show the truth, not the student's guess


def kept_steps(ode_steps: int, preset: Preset) -> list[int]:
    """Which of the teacher's steps are the student's timesteps; both start at t = 1."""
    if ode_steps % preset.steps:
        raise InputError(f"{ode_steps} ODE steps do not hit the student's {preset.steps} timesteps: take a multiple")
    return list(range(0, ode_steps, ode_steps // preset.steps))


def trajectory_records(teacher: Network, clips: Clips, recipe: Recipe, seed: int, number: int) -> Iterator[Record]:
    """The `SHARD` records of trajectory shard `number`: clips of one shard, with `trajectory` [steps, C, t, h, w] (z at
    the student's timesteps) and `endpoint` [C, t, h, w], which the guided teacher made of image, tracks and prompt."""
    path, count = clips.shards[number % len(clips.shards)]
    device, chosen = teacher.world.device, kept_steps(recipe.ode_steps, teacher.preset)
    rows = np.random.default_rng([seed, 5, number]).choice(count, SHARD, replace=count < SHARD)
    for start in range(0, len(rows), recipe.sampled):
        places = list(range(start, min(start + recipe.sampled, len(rows))))
        batch = clips.read(path, rows[places], Draws(seed, number, places)).to(device)
        with torch.no_grad():
            predict = guided(teacher, batch, range(recipe.chunks), recipe.guidance)
            noise = batch.draws.normal(*batch.latents.shape[1:])
            way = sample_ode(predict, noise, sampling_timesteps(recipe.ode_steps, teacher.preset.shift))
            *kept, end = (z for i, z in enumerate(way) if i in (*chosen, recipe.ode_steps))  # all would fill a GPU
        trajectories = torch.stack(kept, dim=1)
        for n, record in enumerate(batch.records()):
            record |= {"trajectory": trajectories[n].cpu(), "endpoint": end[n].cpu()}
            yield record | padded(batch.tracks[n], clips.most_tracks(path))


def own_way(
    predict: Callable[[Tensor, float], Tensor], batch: ClipBatch, part: slice, timesteps: list[float], shown: Tensor
) -> list[Tensor]:
    """Guesses of a chunk, one a timestep, each with a gradient of its own.

    predict: (z, t) -> x0. z is made of the guess before, as in `sample`, or in clips that are `shown` (bool, broadcast)
    of what they are in truth. The noise of the last step in which z does not show what falls tells where it does;
    later, noise has nothing to add to what z shows. A z made of the truth tells it too; from it, it is learned sooner.
    """
    clean, guesses = batch.latents[:, :, part], []
    for t, z in zip(timesteps, batch.noises(part, timesteps), strict=True):
        if guesses:
            z = add_noise(torch.where(shown, clean, guesses[-1].detach()), z, t)
        guesses.append(predict(z, t))
    return guesses


def causal_loss(network: Network, batch: ClipBatch, recipe: Recipe) -> dict[str, Tensor]:
    """Regression of the clean end, mean over the chunks.

    With trajectories each chunk of each clip is at a timestep of its own; without, at all of them, and what later
    chunks attend to is the student's own, as in a stream: else its errors would add up there, chunk by chunk.
    """
    preset, draws = network.preset, batch.draws
    sink, window = (int(draws.shared.choice(sizes)) for sizes in (recipe.sinks, recipe.windows))
    timesteps = sampling_timesteps(preset.steps, preset.shift)
    step = (draws.uniform(recipe.chunks) * preset.steps).long()
    end = batch.latents if batch.trajectory is None else batch.endpoint
    context, cache = network.context(batch), network.new_cache(batch, sink, window)
    clips, errors = torch.arange(len(batch), device=end.device), []
    shown = draws.uniform(1, 1, 1, 1) < SHOWN
    for index in range(recipe.chunks):
        part = slice(index * preset.chunk_size, (index + 1) * preset.chunk_size)
        target, condition = end[:, :, part], network.condition(batch, range(index, index + 1))

        def predict(z: Tensor, t: Tensor | float, condition=condition) -> Tensor:
            return network.predict(z, torch.as_tensor(t, device=z.device).expand(len(z)), condition, context, cache)

        if batch.trajectory is None:
            guesses = own_way(predict, batch, part, timesteps, shown)
            seen = torch.where(shown, target, guesses[-1].detach())
        else:
            chosen = step[:, index]
            z = batch.trajectory[clips, chosen][:, :, part]
            guesses, seen = [predict(z, torch.tensor(timesteps, device=z.device)[chosen])], target
        errors.append(torch.stack([(x0 - target).square().mean() for x0 in guesses]).mean())
        network.write(seen, condition, context, cache)
    return {"loss": torch.stack(errors).mean(), "first": errors[0].detach(), "last": errors[-1].detach()}
