"""Trains the embedded causal student: `python -m motionstream.training.adaptation --run DIR --model DIR --clips DIR`.

The student rolls out with the very functions and the very rolling cache of `streaming.py`: each chunk is predicted from
noise beside its condition, attending to the cached sink and window, and regressed on the clip's latents; then a clean
pass writes the cache, with the clip's own latents or with what the student has just made (so that it meets its own
errors). Half of the chunks start from pure noise; the others from one of the sampler's later timesteps, noised from the
clip's latents or from the student's own first guess, as the few-step sampler will do.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from motionstream.model.checkpoint import assemble, load_component, save_model
from motionstream.model.presets import PRESETS
from motionstream.model.text import EffectTextEncoder
from motionstream.model.track_head import TrackHead, track_map
from motionstream.model.transformer import MotionTransformer
from motionstream.model.vae import EmbeddedVAE
from motionstream.streaming import Condition, add_noise, assemble_condition, predict_x0, sampling_timesteps, write_cache
from motionstream.training.clips import Clips, chunk_bounds, read_tracks
from motionstream.training.loop import Schedule, fit, optimisers_for

PRESET = PRESETS["embedded"]
PURE_NOISE = 0.5  # share of chunks that start from pure noise
OWN_GUESS = 0.5  # share of the others whose noisy latents come from the student's own guess
OWN_CONTEXT = 0.5  # share of chunks whose cached latents are the student's own


class Student(nn.Module):
    """What is trained together; the autoencoder and the motion prior are ready and only weigh the loss."""

    def __init__(self, vae: EmbeddedVAE):
        super().__init__()
        self.transformer = MotionTransformer(**PRESET.transformer_config())
        self.track_head = TrackHead(PRESET.track_dim, PRESET.track_channels, PRESET.temporal_stride)
        self.text_encoder = EffectTextEncoder(PRESET.transformer["text_dim"])
        nn.init.zeros_(self.transformer.proj_out.weight)  # an untrained student shows the motion prior as it is
        nn.init.zeros_(self.transformer.proj_out.bias)
        shown = vae.decoder.shortcut.weight.detach().flatten(1).norm(dim=0).squeeze() * vae.latent_std
        self.register_buffer("channel_weight", (shown / shown.mean()).view(1, -1, 1, 1, 1))

    def loss(self, clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Mean over the chunks of a roll-out; `prior_loss` is what the motion prior alone would cost."""
        latents, prior, confidence = (
            torch.stack([clip[name] for clip in clips]).float() for name in ("latents", "prior", "confidence")
        )
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        tracks = [read_tracks(clip, rng) for clip in clips]
        with torch.autocast("cpu", torch.bfloat16):
            context = self.transformer.encode_context(
                self.text_encoder.embedding(torch.stack([clip["tokens"] for clip in clips]))
            )
            cache = self.transformer.new_cache(
                len(clips), PRESET.chunk_size, *latents.shape[-2:], sink=PRESET.sink, window=PRESET.window
            )
            losses, baselines = [], []
            for index, bounds in enumerate(chunk_bounds()):
                part = slice(index * PRESET.chunk_size, (index + 1) * PRESET.chunk_size)
                target = latents[:, :, part]
                condition = self._condition(tracks, prior[:, :, part], confidence[:, :, part], bounds, target)
                z, t = self._noisy(target, condition, context, cache)
                x0 = predict_x0(self.transformer, z, t, condition, context, cache, prediction=PRESET.prediction).float()
                losses.append(((x0 - target).square() * self.channel_weight).mean())
                baselines.append(((prior[:, :, part] - target).square() * self.channel_weight).mean())
                if part.stop < latents.shape[2]:
                    kept = x0.detach() if torch.rand(()) < OWN_CONTEXT else target
                    write_cache(self.transformer, kept, condition, context, cache)
        return {"loss": torch.stack(losses).mean(), "prior_loss": torch.stack(baselines).mean()}

    def _condition(
        self, tracks, prior: Tensor, confidence: Tensor, bounds: tuple[int, int], target: Tensor
    ) -> Condition:
        height, width = (side * PRESET.spatial_stride for side in prior.shape[-2:])
        maps = torch.stack(
            [track_map(one.rows(*bounds), width, height, PRESET.spatial_stride, PRESET.track_dim) for one in tracks]
        )
        first = bounds[0] == 0
        return assemble_condition(
            self.track_head(maps, first), None, prior, confidence, target[:, :, :1] if first else None
        )

    def _noisy(self, target: Tensor, condition: Condition, context, cache) -> tuple[Tensor, Tensor]:
        noise, t = torch.randn_like(target), torch.ones(len(target))
        if torch.rand(()) < PURE_NOISE:
            return noise, t
        base = target
        if torch.rand(()) < OWN_GUESS:
            with torch.no_grad():
                base = predict_x0(
                    self.transformer,
                    torch.randn_like(target),
                    t,
                    condition,
                    context,
                    cache,
                    prediction=PRESET.prediction,
                ).float()
        later = torch.tensor(sampling_timesteps(PRESET.steps, PRESET.shift)[1:])
        t = later[torch.randint(len(later), t.shape)]
        return add_noise(base, noise, t.view(-1, 1, 1, 1, 1)), t


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="run folder: log, checkpoints, and in the end student/")
    parser.add_argument("--model", type=Path, required=True, help="folder with trained vae/ and motion_prior/")
    parser.add_argument("--clips", type=Path, required=True, help="folder of shards written by training.clips")
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    vae, prior = (load_component(arguments.model / name).eval() for name in ("vae", "motion_prior"))
    schedule = Schedule(minutes=arguments.minutes, learning_rate=1e-3, batch=8)
    student = Student(vae)
    trained = fit(
        student,
        Clips(arguments.clips).batches(schedule.batch, arguments.seed),
        Student.loss,
        arguments.run,
        schedule,
        optimisers_for(student, schedule.learning_rate, muon=1.5e-3),
    )
    parts = {
        "transformer": trained.transformer,
        "track_head": trained.track_head,
        "text_encoder": trained.text_encoder,
        "vae": vae,
        "motion_prior": prior,
    }
    model = assemble(PRESET, parts, "cpu", torch.float32)
    for part in model.components().values():
        part.half()  # half the size on disk; `load_model` gives them the number format of the machine
    save_model(model, arguments.run / "student")


if __name__ == "__main__":
    main()
