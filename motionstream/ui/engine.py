"""The model as the app runs it: one generator for every tab, on this machine or on a GPU that ZeroGPU lends.

ZeroGPU forks a worker for every call and pickles what the worker yields; control messages reach it through the
mailbox's address. Elsewhere the same generator runs in the thread that calls it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from motionstream.controls.layers import SourceRecipe
from motionstream.errors import InputError
from motionstream.machine import Choice, fit_pictures, frame_seconds, pick_again
from motionstream.model.checkpoint import Model
from motionstream.model.device import on_zero_gpu
from motionstream.session import Record, run_session
from motionstream.streaming import Chunk, settled

ZERO_GPU_SECONDS = 120  # of the visitor's quota that one stream may take
SPARE_SECONDS = 15  # of them, for the worker's start and the last chunk: one that is late is killed, and says nothing
OVER = (
    f"Stopped: a stream may use the GPU for {ZERO_GPU_SECONDS} seconds, its start-up included: "
    "download the clip, or press Start for a new stream"
)
REMEMBERED_CHUNKS = 40  # of a stream, the newest ones: they tell how fast the machine is


@dataclass(frozen=True)
class News:
    """What a running session reports: a chunk, or at its end None and the recipe.

    errors: what was wrong with control messages since the last report, in sentences; given_up: ids of controls that are
    no more, though nobody removed them; turned: see `DragSource.turned`; end: a sentence, if the session had to end
    where the visitor would have gone on; failure: the `InputError` that it broke with, in a sentence.
    """

    chunk: Chunk | None
    errors: list[str]
    given_up: Sequence[int] = ()
    turned: Mapping[int, np.ndarray] = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    end: str = ""
    failure: str = ""


class Engine:
    """A loaded model and the size it runs at, which changes when it streams slower or faster than was measured.

    run_session: `motionstream.session.run_session`, or another generator of chunks that takes the same arguments.
    """

    def __init__(self, model: Model, choice: Choice, run_session: Callable[..., Iterator[Chunk]] = run_session):
        self.model, self.choice = model, choice
        self._run = on_gpu(_reporter(model, run_session))

    def run(
        self, picture: np.ndarray, sharp: np.ndarray | None, address: str, prompt: str, base: SourceRecipe | None = None
    ) -> Iterator[News]:
        """A stream from what `fit` made of a picture, as `run_session` has it; then the size is picked again.

        Raises `InputError` as `run_session` does, after the last report.
        """
        preset, choice = self.model.preset, self.choice
        spent = deque(maxlen=REMEMBERED_CHUNKS)
        try:
            with closing(self._run(picture, sharp, address, prompt, base)) as reports:
                for news in reports:
                    if news.chunk is not None and news.chunk.index >= settled(preset):
                        spent.append(frame_seconds(news.chunk))
                    yield news
                    if news.failure:
                        raise InputError(news.failure)
        finally:
            if self.model.device.type == "cpu":
                self.choice = pick_again(preset, choice, picture, sharp, spent)

    def fit(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """A picture at generation size, and sharper if frames are shown so: see `fit_pictures`."""
        return fit_pictures(self.model.preset, self.choice, picture)

    def describe(self) -> str:
        """One line for the page: model, number format, device, and what was measured."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        preset = self.model.preset
        parts = [f"Model {preset.name}", f"{dtype} on {self.model.device}", f"{preset.fps:g} fps playback"]
        if self.choice.fps is not None:
            parts.append(f"this machine generates about {self.choice.fps:.0f} fps")
        return " · ".join(parts)


def on_gpu(function: Callable) -> Callable:
    """`function`, on a GPU lent for the call where this process runs under ZeroGPU; unchanged elsewhere."""
    if not on_zero_gpu():
        return function
    import spaces  # exists on Spaces only

    return spaces.GPU(duration=ZERO_GPU_SECONDS)(function)


def _reporter(model: Model, run_session: Callable[..., Iterator[Chunk]]) -> Callable[..., Iterator[News]]:
    limit_s = ZERO_GPU_SECONDS - SPARE_SECONDS if on_zero_gpu() else math.inf

    # The model is in the closure, not among the arguments: it reaches a forked worker by the fork, not by pickling.
    def run(
        picture: np.ndarray, sharp: np.ndarray | None, address: str, prompt: str, base: SourceRecipe | None
    ) -> Iterator[News]:
        record, failure = Record(), ""
        settings = {"prompt": prompt, "base": base, "sharp": sharp, "limit_s": limit_s, "record": record}
        try:
            for chunk in run_session(model, picture, address, **settings):
                yield News(chunk, record.take_errors(), record.given_up, record.turned)
                record.given_up = []
        except InputError as error:  # `Engine.run` raises it again: of a worker's errors ZeroGPU tells the class only
            failure = str(error)
        end = OVER if record.end == "limit" else ""
        yield News(None, record.take_errors(), recipe=record.recipe(), end=end, failure=failure)

    return run
