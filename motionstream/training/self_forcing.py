"""Self Forcing with distribution matching distillation (paper section 3.2, equations 3 and 4).

    python -m motionstream train distil --model STUDENT --teacher TEACHER --data SHARDS --out RUN

The student rolls out on its own output with the rolling cache and sink of inference. One of its denoising steps, drawn
at random, is taken as the last: its result is the chunk, and it alone carries gradients (cached keys and values don't).
The whole clip is then noised; the guided teacher says where clean clips lie, a critic says where the student's lie, and
the student's clip moves along the difference. The critic learns by flow matching on roll-outs, five updates to one.

A roll-out may be longer than the clips the teacher knows. It is then scored on a stretch of the teacher's length that
is continuous, as the paper asks: the frame before the stretch is encoded anew as its image, and what follows is a clip
like any other. No real video is needed: image, prompt and tracks are enough.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from motionstream.model.presets import Preset
from motionstream.streaming import add_noise, sample, sampling_timesteps, shift_timestep
from motionstream.training.clips import ClipBatch, Encoders, chunk_bounds
from motionstream.training.network import Network
from motionstream.training.settings import Recipe
from motionstream.training.teacher import flow_weight, guided, velocity_loss
from motionstream.training.trainer import Draws

T_RANGE = 0.02, 0.98  # before the shift, as in Self Forcing

Noise = Callable[[int], Callable[[], Tensor]]  # chunk number -> source of standard normals of a chunk's shape


def roll_out(
    network: Network, batch: ClipBatch, chunks: int, last: int, noise: Noise, *, sink: int, window: int
) -> Tensor:
    """The student's own clip [B, C, t, h, w]; the result of denoising step `last` (0 is the first) is final."""
    preset = network.preset
    timesteps = sampling_timesteps(preset.steps, preset.shift)[: last + 1]
    context, cache = network.context(batch), network.new_cache(batch, sink, window)
    learns, made = torch.is_grad_enabled(), []
    for index in range(chunks):
        condition = network.condition(batch, range(index, index + 1))

        def predict(z: Tensor, t: float, condition=condition) -> Tensor:
            with torch.set_grad_enabled(learns and t == timesteps[-1]):
                return network.predict(z, torch.full((len(z),), t, device=z.device), condition, context, cache)

        made.append(sample(predict, noise(index), timesteps))
        if index + 1 < chunks:
            network.write(made[-1].detach(), condition, context, cache)
    return torch.cat(made, dim=2)


def drawn_noise(batch: ClipBatch, preset: Preset) -> Noise:
    """Noise of a training roll-out, from the batch's draws."""
    timesteps, size = sampling_timesteps(preset.steps, preset.shift), preset.chunk_size
    return lambda index: partial(next, batch.noises(slice(index * size, (index + 1) * size), timesteps))


def usual_size(x: Tensor, real: Tensor) -> Tensor:
    """Mean of |x - real| [B, C, ...] of each clip (DMD, equation 8) and channel, [B, C, 1, ...].

    Where channels differ in variance, the few largest ones, which hold a picture's light, would else be most of the
    gradient.
    """
    size = (x - real).abs().flatten(2).mean(2).clamp_min(1e-6)
    return size.view(*size.shape, *[1] * (x.ndim - 2))


def dmd_gradient(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Where to move away from, -(s_real - s_fake) up to a factor: x minus this is a better clip. All [B, C, ...].

    real, fake: clean latents that the teacher and the critic see in the noised x. At timestep t their difference is
    that of the scores times t^2 / (1 - t); it is divided by its usual size, so that all timesteps count alike.
    """
    return (fake - real) / usual_size(x, real)


@dataclass
class Distillation:
    """The two losses. encoders: to begin a stretch anew; teacher_chunks: the longest clip the teacher knows.

    The recipe's `anchor` adds regression to the clip itself, where there is one: a student whose teacher is hardly
    ahead of it keeps by it what it knows (as by the regression loss of DMD, equation 9, to the teacher's own samples).
    Roll-outs that end before z tells what falls in the clip are not drawn to it: the mean of all places is haze.
    """

    student: Network
    teacher: Network
    critic: Network
    encoders: Encoders
    recipe: Recipe
    teacher_chunks: int

    def generator_loss(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Half the squared distance to the moved clip; its gradient: `dmd_gradient` and the anchor's over its size."""
        x, seen, clip = self._scene(batch)
        with torch.no_grad():
            z, t = self._noised(x, batch.draws)
            real = guided(self.teacher, seen, range(self.teacher_chunks), self.recipe.guidance)(z, t)
            fake = self._believed(z, t, seen)
            gradient = dmd_gradient(x, real, fake)
            if clip is not None:
                gradient += self.recipe.anchor * (x - clip) / usual_size(x, real)
        loss = 0.5 * (x - (x - gradient).detach()).square().mean()
        return {"loss": loss, "gradient": gradient.abs().mean(), "to_real": (x.detach() - real).abs().mean()}

    def critic_loss(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Flow matching on what the student makes, without guidance."""
        with torch.no_grad():
            x, seen, _ = self._scene(batch)
        z, t = self._noised(x, batch.draws)
        return {"loss": velocity_loss(self._believed(z, t, seen), x, t, flow_weight(t, self.critic.preset))}

    def _believed(self, z: Tensor, t: Tensor, seen: ClipBatch) -> Tensor:
        critic = self.critic
        return critic.predict(z, t, critic.condition(seen, range(self.teacher_chunks)), critic.context(seen))

    def _noised(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        low, high = T_RANGE
        t = shift_timestep(low + (high - low) * draws.uniform(), self.student.preset.shift)
        return add_noise(x.detach(), draws.normal(*x.shape[1:]), t.view(-1, 1, 1, 1, 1)), t

    def _scene(self, batch: ClipBatch) -> tuple[Tensor, ClipBatch, Tensor | None]:
        """A roll-out, cut to the teacher's length; what teacher and critic are told about it; the clip in its place.

        None instead of the clip if the roll-out could not know all of it.
        """
        preset, shared = self.student.preset, batch.draws.shared
        last = int(shared.integers(preset.steps))
        start = int(shared.integers(self.recipe.chunks - self.teacher_chunks + 1))
        x = roll_out(
            self.student,
            batch,
            start + self.teacher_chunks,
            last,
            drawn_noise(batch, preset),
            sink=preset.sink,
            window=preset.window,
        )
        timesteps, clip = sampling_timesteps(preset.steps, preset.shift), None
        if timesteps[last] <= batch.telling(timesteps):
            clip = batch.latents[:, :, start * preset.chunk_size :][:, :, : self.teacher_chunks * preset.chunk_size]
        return *stretch(self.encoders, batch, x, start, self.teacher_chunks), clip


def stretch(encoders: Encoders, batch: ClipBatch, x: Tensor, start: int, chunks: int) -> tuple[Tensor, ClipBatch]:
    """`chunks` chunks of a roll-out x from chunk `start` on as a clip of its own -> (its latents, its batch).

    Its image is the last frame of the first of these latents, which is replaced by that frame encoded alone.
    """
    preset, first = encoders.preset, start * encoders.preset.chunk_size
    part = slice(first, first + chunks * preset.chunk_size)
    bounds = chunk_bounds(preset, start + chunks)
    begin = bounds[start][0] + (preset.temporal_stride - 1 if start else 0)
    tracks = [one.rows(begin, bounds[-1][1]) for one in batch.tracks]
    if not start:
        return x[:, :, part], replace(batch, tracks=tracks)
    with torch.no_grad():
        decoder = encoders.vae.decoder_stream()
        for latent in x[:, :, : first + 1].detach().split(1, dim=2):  # at full size a roll-out at once fits no GPU
            picture = decoder.step(latent)[:, :, -1].clamp(-1, 1)
        clean = encoders.vae.encode(picture[:, :, None]).to(x)
        seen = replace(batch, tracks=tracks, held=None, held_confidence=None)
        if batch.image is not None:
            seen.image = encoders.image_latents(picture, tracks[0].T).to(x)
        if batch.image_tokens is not None:
            seen.image_tokens = torch.cat([encoders.image_encoder.encode(one) for one in picture]).to(x)
    x = torch.cat([clean, x[:, :, part][:, :, 1:]], dim=2)
    seen.latents = x.detach()
    if batch.prior is not None:
        seen.prior = torch.cat([clean, batch.prior[:, :, part][:, :, 1:]], dim=2)
        sure = batch.confidence[:, :, part]
        seen.confidence = torch.cat([torch.ones_like(sure[:, :, :1]), sure[:, :, 1:]], dim=2)
    return x, seen
