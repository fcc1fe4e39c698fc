"""Live drags on top of another source of motion: a clip, a camera, a webcam.

What lies underneath is described by a `SourceRecipe`: a small picklable value that crosses into a forked worker, is
written into the video's recipe, and builds the `BaseSource` where the generator runs. `Layers` makes one `TrackSource`
of both. A drag wins: near its points the tracks underneath are invisible, and those of a camera on all of a thing that
it holds. IDs never meet: a base source draws its own with `base_ids`, drags draw from the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import cv2
import numpy as np

from motionstream.controls.drag import DragSource
from motionstream.tracks import MAX_ID, MAX_TRACKS, ChunkRequest, Tracks, TrackSource, draw_ids

BASE_IDS = 7_500  # base sources number their tracks below this, drags from here on
CLEARANCE = 1 / 12  # of the picture's height: how near to a drag's points the tracks underneath give way


class BaseSource(TrackSource, Protocol):
    """A `TrackSource` that drags may be laid on.

    kinds: of the control messages that are meant for it; unrecorded: those of them that stay out of the video's recipe;
    whole: whether things that drags hold go with these alone.
    """

    kinds: frozenset[str]
    whole: bool
    unrecorded: frozenset[str]

    def apply(self, message: dict) -> None:
        """Takes in one message of its kinds. A bad one raises `InputError` and changes nothing."""

    def close(self) -> None:
        """Frees what it holds; called once, after the last chunk."""


class SourceRecipe(Protocol):
    """What a `BaseSource` is made of: a small value that can be pickled."""

    def build(self) -> BaseSource:
        """The source itself, for one stream, in the process that generates."""

    def describe(self) -> dict:
        """JSON types that tell it from every other one: settings, and SHA-256 sums of what is large."""


def base_ids(count: int, rng: np.random.Generator, live: Iterable[int] = ()) -> np.ndarray:
    """`count` ID numbers for a base source's new tracks, int64 [count], none of `live` while enough are left."""
    return draw_ids(count, rng, chain(live, range(BASE_IDS, MAX_ID)))


@dataclass
class Layers:
    """A `TrackSource`: `drags` on top of `base`."""

    base: BaseSource
    drags: DragSource
    _on: dict[int, int] = field(default_factory=dict, init=False)  # things, by the IDs of the base's tracks on them

    def apply(self, message: dict) -> None:
        """Hands one control message to the source that it is meant for."""
        kind = message.get("kind")
        (self.base if isinstance(kind, str) and kind in self.base.kinds else self.drags).apply(message)

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        """The tracks of both. Where there are too many, the base's last ones give way."""
        over, under = self.drags.tracks_for(request), self.base.tracks_for(request)
        if (under.ids >= BASE_IDS).any():
            raise ValueError(f"{type(self.base).__name__} uses track ID {under.ids.max()}; its limit is {BASE_IDS}")
        room = slice(MAX_TRACKS - over.N)
        under = Tracks(under.points[:, room], under.visible[:, room], under.ids[room])
        under = give_way(under, over, request.width, request.height)
        if self.base.whole:
            under = self._off_things(under, request)
        return Tracks.concatenate([under, over])

    def _off_things(self, under: Tracks, request: ChunkRequest) -> Tracks:
        """`under`, invisible on things that drags hold, and where these have come to: they are not to be torn."""
        held, before = self.drags.held(), self._on
        self._on = {}
        if not held:
            return under
        tracks = under.ids.tolist()
        seen = dict(zip(tracks, request.things(under.points[0])[0].tolist(), strict=True))
        self._on = seen | {track: thing for track, thing in before.items() if track in seen}
        free = [not {seen[track], self._on[track]} & held for track in tracks]
        return Tracks(under.points, under.visible & np.array(free, bool), under.ids)


def make_source(recipe: SourceRecipe | None, seed: int, release: str) -> DragSource | Layers:
    """What a live session asks for tracks: drags, on top of the recipe's source if there is one."""
    if recipe is None:
        return DragSource(seed, release)
    return Layers(recipe.build(), DragSource(seed, release, reserved=range(BASE_IDS)))


def give_way(under: Tracks, over: Tracks, width: int, height: int) -> Tracks:
    """`under`, invisible where a visible point of `over` is near in the same frame. Both of T frames, in pixels."""
    if not (under.N and over.visible.any()):
        return under
    radius, visible = max(1, round(height * CLEARANCE)), under.visible.copy()
    inside = under.in_frame(width, height).visible
    for t in range(under.T):
        taken = np.zeros((height, width), np.uint8)
        for x, y in over.points[t, over.visible[t]].round().astype(int).tolist():
            cv2.circle(taken, (x, y), radius, 1, -1)
        x, y = under.points[t, inside[t]].astype(int).T
        visible[t, inside[t]] &= taken[y, x] == 0
    return Tracks(under.points, visible, under.ids)
