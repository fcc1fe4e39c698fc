"""Things that lie in front, as the cells of the first frame show them, and how the picture's edges cut them."""

import cv2
import numpy as np

SOLID = 0.6  # how far in front, in [0, 1], a thing lies that leaves a hole
FEW = 12  # cells that are no thing yet
RIM = 3  # cells around a thing that may show it still: its soft edge, its thin parts
ACROSS = 0.6  # of an edge of the picture: what takes up more of it goes on beyond it
CUT = 0.5  # of how wide a thing is that an edge of the picture cuts through
CLEARLY = 0.85  # how far in front it must lie there, or it may only be near the edge


def things_in_front(front: np.ndarray, least: float = SOLID) -> list[np.ndarray]:
    """Connected things without holes, bool [h, w] each; front: how far in front cells lie, [h, w] in [0, 1], and from
    where on they are things."""
    count, numbers = cv2.connectedComponents((front > least).view(np.uint8))
    things = []
    for number in range(1, count):
        thing = (numbers == number).view(np.uint8)
        outer = cv2.findContours(thing, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        things.append(cv2.drawContours(thing, outer, -1, 1, cv2.FILLED).view(bool))
    return [thing for thing in things if thing.sum() >= FEW]


def with_rim(thing: np.ndarray) -> np.ndarray:
    """All cells, bool [h, w], that may show something of the thing."""
    return cv2.dilate(thing.view(np.uint8), np.ones((2 * RIM + 1, 2 * RIM + 1), np.uint8)).view(bool)


def ground(things: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Where none of the `things_in_front` can be seen, bool [h, w], as large as `size`."""
    return ~with_rim(np.any([np.zeros(size, bool), *things], axis=0))


def cut_off(thing: np.ndarray) -> bool:
    """Whether a thing, bool [h, w], reaches an edge of the picture: who knows how it goes on there."""
    return bool(thing.sum() > thing[RIM:-RIM, RIM:-RIM].sum())


def lies_across(thing: np.ndarray) -> bool:
    """Whether a thing, bool [h, w], takes up most of an edge of the picture."""
    return max(edge.mean() for edge in (thing[0], thing[-1], thing[:, 0], thing[:, -1])) > ACROSS


def lying_across(things: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """What is of those `things_in_front` that take up most of an edge of the picture, bool [h, w], as large as `size`:
    as the ground, they go on beyond it."""
    return np.any([np.zeros(size, bool), *filter(lies_across, things)], axis=0)


def cut_through(things: list[np.ndarray], front: np.ndarray) -> np.ndarray:
    """Which cells of the picture's edges, bool [h, w], are of things that these cut through, as one does a bust: such a
    thing touches the edge with most of its width, reaches as far into the picture, and does not lie across an edge.
    things, front: see `things_in_front`."""
    edges = np.zeros(front.shape, bool)
    for thing in things:
        clearly = thing & (front > CLEARLY) & (not lies_across(thing))
        for part, clear, lines in ((thing, clearly, edges), (thing.T, clearly.T, edges.T)):
            for end in (0, -1):
                if CUT * part.any(0).sum() < clear[end].sum() <= part.any(1).sum():
                    lines[end] |= part[end]
    return edges
