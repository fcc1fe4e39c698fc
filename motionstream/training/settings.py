"""What each stage is trained with and on what clips: rows of a table. Those of the Wan presets are appendix D's.

Where the appendix says nothing (dropout of text and tracks, warm-up, EMA's decay, clipping, the adversarial loss's
weight) the values are usual ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from motionstream.training.guidance import Guidance
from motionstream.training.scenes import SPACINGS, TrackMode


@dataclass(frozen=True)
class Recipe:
    """Settings of one stage of one preset.

    batch: samples an update, over all processes and pieces; rate: learning rate; steps: updates, for several players
    those of all (None: the command line says for how many minutes); muon: rate of the transformer's matrices, or of
    the motion prior's filters, if they are trained with Muon instead of AdamW. warmup, floor, ema: see `Schedule`.
    chunks: length of the clips; tracks: fewest and most drawn of a clip's (None: all). drop_text, drop_tracks: shares
    of the clips that are told nothing, for guidance; hide: probability p_mask of a mid-clip chunk without tracks.
    frozen_head: whether the track head stays as it is. guidance, ode_steps: how the teacher is sampled; sampled: clips
    that it makes at once for trajectories.
    sinks, windows: from which the causal masks are drawn, chunks. critic_rate, critic_turns: of the distillation;
    anchor: how much regression to the clip counts in it, beside the distribution's gradient.
    adversarial: how much the patch discriminator counts in the tiny VAE's loss; it then trains every other update.
    checkpointing: whether activations are computed again in the backward pass to save memory.
    """

    batch: int
    rate: float
    steps: int | None = None
    muon: float | None = None
    warmup: int = 50
    floor: float = 1.0
    ema: float = 0.999
    chunks: int = 7
    tracks: tuple[int, int] | None = (1_000, 2_500)
    drop_text: float = 0.1
    drop_tracks: float = 0.1
    hide: float = 0.0
    frozen_head: bool = False
    guidance: Guidance = Guidance()
    ode_steps: int = 48
    sampled: int = 1
    sinks: tuple[int, ...] = (0, 1, 2)
    windows: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    critic_rate: float = 4e-7
    critic_turns: int = 5
    anchor: float = 0.0
    adversarial: float = 0.0
    checkpointing: bool = True


def _paper(chunks: int, second_steps: int) -> dict[str, Recipe]:
    """Appendix D; chunks: 81 frames of Wan 2.1 are 7, 117 of Wan 2.2's 121 are 10. 400 rounds of 1 + 5 updates."""
    return {
        "teacher-a": Recipe(batch=128, rate=1e-5, steps=4_800, chunks=chunks),
        "teacher-b": Recipe(batch=128, rate=1e-6, steps=second_steps, chunks=chunks, hide=0.2, frozen_head=True),
        "adapt": Recipe(batch=128, rate=2e-6, steps=2_000, chunks=chunks, frozen_head=True),
        "distil": Recipe(batch=64, rate=2e-6, steps=400 * 6, chunks=chunks, ema=0.99, frozen_head=True),
        "tiny-vae": Recipe(batch=16, rate=3e-4, steps=2 * 200_000, adversarial=0.1),
    }


# A teacher trained for minutes samples cleaner in few steps: with many, what it has not learned comes out as noise. The
# paper's text weight multiplies what so small a teacher gets wrong. A distilled student must not outrun its critic: at
# 5e-5 its light swings, too dark and then too bright.
_SMALL = dict(floor=0.02, ema=0.995, chunks=3, tracks=None, drop_text=0.05, guidance=Guidance(0.5, 1.0), ode_steps=6,
              sampled=32, checkpointing=False)  # fmt: skip
RECIPES = {
    "embedded": {
        "teacher-a": Recipe(batch=8, rate=2e-3, muon=3e-3, **_SMALL),
        "teacher-b": Recipe(batch=8, rate=5e-4, muon=8e-4, hide=0.2, frozen_head=True, **_SMALL),
        "adapt": Recipe(batch=8, rate=6e-4, muon=1.5e-3, sinks=(0, 1), windows=(1, 2), **_SMALL),
        "distil": Recipe(batch=4, rate=1e-5, critic_rate=5e-5, anchor=0.3, **(_SMALL | dict(ema=0.98, chunks=5))),
        "tiny-vae": Recipe(batch=12, rate=1.2e-3, floor=0.02, ema=0.995),
        "motion-prior": Recipe(batch=12, rate=6e-4, muon=3e-3, floor=0.02, ema=0.995),
        "matte": Recipe(batch=6, rate=2e-3, floor=0.02, ema=0.995),
    },
    "wan2.1-1.3b": _paper(7, 800),
    "wan2.2-5b": _paper(10, 400),
}
# At these rates of Muon a teacher finds the picture in the first frame within 200 updates; at those above, it has
# learned nothing after 100.
_PLAIN = _SMALL | dict(ode_steps=3)
RECIPES["embedded-plain"] = RECIPES["embedded"] | {
    "teacher-a": Recipe(batch=16, rate=2e-3, muon=2e-2, **_PLAIN),
    "teacher-b": Recipe(batch=16, rate=5e-4, muon=5e-3, hide=0.2, frozen_head=True, **_PLAIN),
    "adapt": Recipe(batch=8, rate=1e-3, muon=1e-2, sinks=(0, 1), windows=(1, 2), **_PLAIN),
    "distil": Recipe(batch=8, rate=1e-5, critic_rate=5e-5, **(_PLAIN | dict(ema=0.98, chunks=5))),
}


@dataclass(frozen=True)
class Mixture:
    """Of what synthetic clips a preset learns.

    sizes: (width, height) and its share; a shard is of one size. modes: shares of the ways in which tracks are chosen.
    still: share of the shards in whose clips nothing moves (nobody has dragged anything yet), of the size `still_size`:
    weather needs no more, and many small clips teach it sooner than few large ones.
    slides: share of the shards in whose clips a photograph slides and stops, in half of them by whole latent cells.
    spacings: between dense tracks, see `scenes.SPACINGS`; most_tracks: kept of a clip.
    """

    sizes: Mapping[tuple[int, int], float]
    modes: Mapping[TrackMode, float]
    still: float = 0.0
    still_size: tuple[int, int] = (96, 96)
    slides: float = 0.0
    spacings: tuple[float, float] = SPACINGS
    most_tracks: int = 300


# The paper's 1,000 to 2,500 tracks.
_FULL_SIZE = dict(modes={"sparse": 0.2, "dense": 0.8}, spacings=(0.027, 0.042), most_tracks=2_500)
# Without a motion prior a model sees what moves only where there are tracks: it is shown many.
MIXTURES = {
    "embedded": Mixture(
        sizes={(192, 128): 0.5, (128, 192): 0.15, (160, 160): 0.15, (288, 160): 0.2},
        modes={"drags": 0.6, "sparse": 0.15, "dense": 0.25},
        still=0.3,
    ),
    "embedded-plain": Mixture(
        sizes={(80, 80): 0.5, (104, 64): 0.25, (64, 104): 0.25},
        modes={"drags": 0.15, "sparse": 0.2, "dense": 0.65},
        still=0.05,
        still_size=(64, 64),
        slides=0.45,
    ),
    "wan2.1-1.3b": Mixture(sizes={(832, 480): 1.0}, **_FULL_SIZE),
    "wan2.2-5b": Mixture(sizes={(1280, 704): 1.0}, **_FULL_SIZE),
}
