"""Things in front, and how the picture's edges cut them."""

import numpy as np
import pytest

from motionstream.model.silhouettes import FEW, RIM, cut_through, lying_across, things_in_front, with_rim

H, W = 60, 90


def box(top=20, bottom=40, left=30, right=50) -> np.ndarray:
    thing = np.zeros((H, W), bool)
    thing[top:bottom, left:right] = True
    return thing


def test_things_are_whole_and_have_a_rim():
    front = np.zeros((H, W), np.float32)
    front[20:40, 30:50] = 0.9
    front[28:32, 38:42] = 0.1  # a window
    front[50:52, 80:82] = 0.9  # a speck
    assert (front[50:52, 80:82] > 0).sum() < FEW
    (thing,) = things_in_front(front)
    assert np.array_equal(thing, box()) and np.array_equal(with_rim(thing), box(20 - RIM, 40 + RIM, 30 - RIM, 50 + RIM))
    assert things_in_front(np.full((H, W), 0.3, np.float32)) == []


@pytest.mark.parametrize("turns", range(4))
def test_what_takes_up_most_of_an_edge_lies_across_it(turns):
    for thing, lies in ((box(40, H, 0, 60), True), (box(40, H, 20, 60), False), (box(20, H - 1, 1, W - 1), False)):
        thing = np.rot90(thing, turns)
        assert np.array_equal(lying_across(things_in_front(thing.astype(np.float32)), thing.shape), thing & lies)


@pytest.mark.parametrize("turns", range(4))
def test_an_edge_cuts_through_what_touches_it_with_most_of_its_width(turns):
    bust = box(30, H, 30, 50) | box(20, 30, 35, 45)
    near, foot, ground = bust & ~box(H - 1, H, 0, W), box(30, 50, 30, 50) | box(50, H, 38, 42), box(40, H, 0, 60)
    half = box(45, H, 30, 50)  # cut lengthwise
    fronts = [bust * 0.9, near * 0.9 + (bust & ~near) * 0.7, foot * 0.9, ground * 0.9, half * 0.9]  # second: nears it
    turned = [np.rot90(front, turns).astype(np.float32) for front in fronts]
    cut = [cut_through(things_in_front(front), front) for front in turned]
    assert np.array_equal(cut[0], np.rot90(bust & box(H - 1, H, 0, W), turns)) and not np.any(cut[1:])
