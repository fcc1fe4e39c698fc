"""The measures say what they claim to: closed forms, hand-made sprites, and the tables from end to end."""

import dataclasses
import json
import math
import resource
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from motionstream.errors import InputError
from motionstream.evaluation import baselines, metrics, motion, sheets
from motionstream.model.checkpoint import random_model
from motionstream.model.presets import PRESETS
from motionstream.tracks import Tracks
from motionstream.video import Mp4Writer, fit_image

WIDTH, HEIGHT = 96, 64


def texture(width: int = WIDTH, height: int = HEIGHT, seed: int = 0, grain: float = 1.5) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), grain)
    return np.clip(128 + smooth / smooth.std() * 45, 0, 255).astype(np.uint8)


def tracks_of(points: np.ndarray, visible: np.ndarray | None = None) -> Tracks:
    points = np.asarray(points, float)
    visible = np.ones(points.shape[:2], bool) if visible is None else visible
    return Tracks(points, visible, np.arange(points.shape[1]))


def moving_crop(step: tuple[float, float], frames: int) -> tuple[np.ndarray, Tracks]:
    """A window that slides over a texture: its content moves by `step` px a frame, with the tracks of a grid."""
    world = texture(WIDTH + 60, HEIGHT + 60)
    video = [cv2.getRectSubPix(world, (WIDTH, HEIGHT), (WIDTH / 2 + 30 - step[0] * t, HEIGHT / 2 + 30 - step[1] * t))
             for t in range(frames)]
    points = motion.grid(WIDTH, HEIGHT, 8)
    path = points[None] + np.arange(frames)[:, None, None] * np.array(step)
    return np.stack(video), tracks_of(path).in_frame(WIDTH, HEIGHT)


# --- pixels --------------------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_offset_is_the_textbook_figure():
    video = np.full((3, 8, 8, 3), 100, np.uint8)
    assert metrics.psnr(video, video + 10) == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    assert metrics.psnr(video, video) == pytest.approx(100)


def test_psnr_of_a_region_sees_nothing_else():
    video = np.full((3, 8, 8, 3), 100, np.uint8)
    other, mask = video.copy(), np.zeros((3, 8, 8), bool)
    other[:, :4] += 10
    other[:, 4:] += 50
    mask[:2, :4] = True  # no pixel of the last frame
    assert metrics.psnr(video, other, mask) == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    assert math.isnan(metrics.psnr(video, other, np.zeros_like(mask)))


def test_different_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\[3, 8, 8, 3\].*\[2, 8, 8, 3\]"):
        metrics.psnr(np.zeros((3, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8))


def test_ssim_of_flat_frames_is_the_luminance_term():
    a, b, c1 = 100.0, 140.0, (0.01 * 255) ** 2
    flat = np.ones((1, 20, 20, 3), np.uint8)
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert metrics.ssim(flat * 100, flat * 140) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_one_window_equals_its_definition():
    a, b = texture(11, 11, 1)[None], texture(11, 11, 2)[None]
    offset = np.arange(11) - 5
    weight = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    weight = (weight / weight.sum())[..., None]
    x, y = a[0].astype(float), b[0].astype(float)
    mx, my = (weight * x).sum((0, 1)), (weight * y).sum((0, 1))
    vx, vy = (weight * (x - mx) ** 2).sum((0, 1)), (weight * (y - my) ** 2).sum((0, 1))
    vxy = (weight * (x - mx) * (y - my)).sum((0, 1))
    c1, c2 = 2.55**2, 7.65**2
    expected = ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-6)
    assert metrics.ssim(a, a) == pytest.approx(1)


def test_sharpness_is_quadratic_in_contrast():
    rng = np.random.default_rng(0)
    first = np.repeat(rng.integers(0, 2, (32, 32, 1)) * 200, 3, axis=2).astype(np.uint8)
    assert metrics.sharpness(np.stack([first, first]), first) == pytest.approx(1)
    assert metrics.sharpness((first // 2)[None], first) == pytest.approx(0.25, rel=1e-3)
    assert metrics.sharpness(cv2.GaussianBlur(first, (0, 0), 2)[None], first) < 0.1
    assert math.isnan(metrics.sharpness(first[None], np.zeros_like(first)))


def test_visible_region_is_the_neighbourhood_of_visible_tracks():
    points = np.array([[[20.5, 30.5], [70.5, 30.5]]] * 3)
    visible = np.array([[True, True], [True, False], [False, False]])
    region = metrics.visible_region(tracks_of(points, visible), WIDTH, HEIGHT, radius=5)
    disc = sum(dx * dx + dy * dy <= 25 for dx in range(-5, 6) for dy in range(-5, 6))
    assert [frame.sum() for frame in region] == [2 * disc, disc, 0]
    assert region[1, 30, 20] and not region[1, 30, 70]


# --- motion --------------------------------------------------------------------------------------------------------


def test_lucas_kanade_follows_a_known_motion():
    video, wanted = moving_crop((1.5, -0.75), 12)
    error = metrics.track_error(video, wanted)
    assert error.epe < 0.2 and error.pck > 0.95 and error.lost < 0.05


def test_a_point_that_leaves_or_changes_is_lost_for_good():
    video, _ = moving_crop((3.0, 0.0), 10)
    video[5] = texture(seed=9)  # one frame of something else
    found = metrics.lucas_kanade(video, np.array([[90.0, 30.0], [20.0, 30.0]]))
    assert found.visible[0].all() and not found.visible[3:, 0].any()
    assert found.visible[4, 1] and not found.visible[5:, 1].any()


def test_a_tracker_follows_what_turns_dark_once_it_is_evenly_lit():
    video, tracks = moving_crop((1.5, 0.0), 9)
    dark = video.copy()
    dark[1:] = 0.25 * video[1:] + 5
    assert metrics.track_error(dark, tracks).epe > 3
    assert metrics.track_error(metrics.evenly_lit(dark), tracks).epe < 0.3
    assert np.array_equal(metrics.evenly_lit(np.full((2, 8, 8, 3), 9, np.uint8)), np.full((2, 8, 8, 3), 9, np.uint8))


def test_a_motionless_video_misses_by_the_wanted_motion():
    _, wanted = moving_crop((3.0, 4.0), 4)
    error = metrics.track_error(np.repeat(texture()[None], 4, axis=0), wanted)
    missed = np.linalg.norm(wanted.points[1:] - wanted.points[:1], axis=-1)[wanted.visible[1:]]
    assert error.epe == pytest.approx(missed.mean(), abs=1e-3)
    assert error.epe_median == pytest.approx(np.median(missed), abs=1e-3)
    assert error.pck == 0 and error.lost == 0


def test_a_point_that_the_tracker_lost_is_a_miss_wherever_it_was_thought_to_be():
    wanted = tracks_of(np.full((3, 2, 2), 20.0))

    def loses_one(video, points):
        return Tracks(wanted.points, np.array([[True, True], [True, False], [True, False]]), wanted.ids)

    error = metrics.track_error(np.zeros((3, 40, 40, 3), np.uint8), wanted, loses_one)
    assert (error.epe, error.epe_median, error.pck, error.lost) == (0, 0, 0.5, 0.5)


def test_only_points_that_are_wanted_and_in_the_image_count():
    points = np.array([[[20.0, 20.0], [50.0, 20.0]], [[90.0, 20.0], [50.0, 20.0]]])
    still = np.repeat(texture()[None], 2, axis=0)
    hidden_later = tracks_of(points, np.array([[True, True], [False, True]]))
    hidden_first = tracks_of(points, np.array([[False, True], [True, True]]))
    assert metrics.track_error(still, hidden_later).epe == pytest.approx(0, abs=1e-3)
    assert metrics.track_error(still, hidden_first).epe == pytest.approx(0, abs=1e-3)
    assert math.isnan(metrics.track_error(still, Tracks.empty(2)).epe)


def sprite_at(centre: tuple[float, float], background: np.ndarray) -> np.ndarray:
    frame, sprite = background.copy(), texture(24, 24, seed=5)
    x, y = (int(c) - 12 for c in centre)
    frame[y : y + 24, x : x + 24] = sprite
    return frame


def test_arrival_tells_where_the_sprite_went():
    background = texture(160, 120, grain=6)
    first, start, target = sprite_at((40, 60), background), (40.0, 60.0), (100.0, 50.0)
    came = metrics.arrival(first, sprite_at((100, 50), background), start, target)
    assert came.arrived and came.distance == 0 and came.score > 0.95
    brighter = cv2.convertScaleAbs(sprite_at((103, 51), background), alpha=0.8, beta=30)
    nearly = metrics.arrival(first, brighter, start, target)
    assert nearly.arrived and nearly.distance == pytest.approx(math.hypot(3, 1))
    short = metrics.arrival(first, sprite_at((92, 50), background), start, target)
    assert not short.arrived and short.distance == pytest.approx(8)
    between = metrics.arrival(first, sprite_at((100, 50), background), (40.4, 59.7), (100.4, 49.7))
    assert between.distance == pytest.approx(0) and between.found == pytest.approx((100.4, 49.7))
    stayed = metrics.arrival(first, first, start, target)
    assert not stayed.arrived and stayed.distance == pytest.approx(math.hypot(60, 10))


def test_arrival_is_not_fooled_by_a_smear_or_by_a_copy_left_behind():
    background = texture(160, 120, grain=6)
    first, start, target = sprite_at((40, 60), background), (40.0, 60.0), (100.0, 50.0)
    smear = cv2.GaussianBlur(sprite_at((100, 50), background), (0, 0), 8)
    ghost = sprite_at((40, 60), cv2.addWeighted(sprite_at((100, 50), background), 0.5, background, 0.5, 0))
    flat = np.full_like(first, 90)
    assert not metrics.arrival(first, smear, start, target).arrived
    assert not metrics.arrival(first, ghost, start, target).arrived
    assert not metrics.arrival(first, flat, start, target).arrived
    assert not metrics.arrival(flat, flat, start, start).arrived  # no texture proves nothing


def test_what_hardly_resembles_the_patch_has_not_arrived():
    background = texture(160, 120, grain=6)
    first, last = sprite_at((40, 60), background), np.full_like(background, 128)
    mixed = 0.35 * texture(24, 24, seed=5).astype(float) + 0.65 * texture(24, 24, seed=6)
    last[38:62, 88:112] = mixed.round()
    found = metrics.arrival(first, last, (40.0, 60.0), (100.0, 50.0))
    assert found.distance <= metrics.ARRIVAL_PX and 0.3 < found.score < 0.6 and not found.arrived


def test_arrival_works_at_the_border_of_the_frame():
    background = texture(160, 120, grain=6)
    first, last = sprite_at((13, 13), background), sprite_at((147, 107), background)
    assert metrics.arrival(first, last, (5.0, 5.0), (139.0, 99.0)).arrived


def test_what_lies_beyond_the_border_is_its_mirror_image():
    assert metrics._mirror(np.arange(-3, 8), 4).tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert metrics._mirror(np.arange(-3, 4), 1).tolist() == [0] * 7


def test_rest_changed_counts_only_pixels_far_from_the_drags():
    first = np.full((60, 100, 3), 100, np.uint8)
    last, path = first.copy(), np.array([[10.0, 30.0], [40.0, 30.0]])
    last[:, :50] = 200  # around the drag
    last[:10, 80:, 1] += 25  # far away: 200 pixels of one channel
    last[50:, 80:, 1] += 15  # too little to count
    far = sum(np.hypot(max(x - 40, 10 - x, 0), y - 30) > 40 for x in range(100) for y in range(60))
    assert metrics.rest_changed(first, last, [path], 40.0) == pytest.approx(200 / far)
    assert math.isnan(metrics.rest_changed(first, last, [path], 500.0))


# --- baselines -----------------------------------------------------------------------------------------------------


def test_thin_plate_spline_is_exact_on_affine_maps_and_at_its_points():
    rng = np.random.default_rng(0)
    points, at = rng.uniform(0, 300, (40, 2)), rng.uniform(-50, 350, (25, 2))
    linear, shift = np.array([[0.9, -0.2], [0.3, 1.1]]), np.array([12.0, -7.0])
    assert np.abs(baselines.thin_plate(points, points @ linear + shift, at) - (at @ linear + shift)).max() < 1e-6
    values = rng.normal(0, 5, (40, 2))
    assert np.abs(baselines.thin_plate(points, values, points, smoothing=0) - values).max() < 1e-6


def test_thin_plate_spline_of_one_two_and_coinciding_points():
    at = np.array([[0.0, 0.0], [200.0, 90.0]])
    assert np.allclose(baselines.thin_plate(np.array([[50.0, 40.0]]), np.array([[3.0, -2.0]]), at), [3, -2], atol=1e-6)
    line = np.array([[0.0, 0.0], [100.0, 0.0]])
    assert np.allclose(baselines.thin_plate(line, np.array([[2.0], [4.0]]), np.array([[50.0, 80.0]])), 3, atol=1e-3)
    twice = np.array([[10.0, 10.0], [10.0, 10.0], [90.0, 20.0], [40.0, 70.0]])
    values = np.array([[0.0], [2.0], [1.0], [1.0]])
    assert np.allclose(baselines.thin_plate(twice, values, twice[:1]), 1, atol=1e-3)


def test_warp_of_a_translation_is_the_shifted_image():
    image, points = texture(), motion.grid(WIDTH, HEIGHT, 16)
    tracks = tracks_of(np.stack([points, points + [7, -4]]))
    video = baselines.warp(image, tracks)
    assert np.array_equal(video[0], image)
    assert np.abs(video[1][:-4, 7:].astype(int) - image[4:, :-7]).max() <= 1
    assert np.array_equal(baselines.warp(image, Tracks.empty(2)), baselines.motionless(image, Tracks.empty(2)))


def test_warp_ignores_hidden_points_and_can_pin_the_border():
    image = texture()
    points = np.array([[[48.0, 32.0], [20.0, 20.0]], [[54.0, 32.0], [80.0, 60.0]]])
    hidden = baselines.warp(image, tracks_of(points, np.array([[True, True], [True, False]])))
    alone = baselines.warp(image, tracks_of(points[:, :1]))
    assert np.array_equal(hidden, alone)
    unknown = baselines.warp(image, tracks_of(points, np.array([[True, False], [True, True]])))
    assert np.array_equal(unknown, alone)  # where it was in the image nobody knows
    rest = tracks_of(points[[0, 1, 1]], np.array([[True, True], [True, True], [True, False]]))
    assert np.array_equal(baselines.warp(image, rest)[2], alone[1])
    pinned = baselines.warp(image, tracks_of(points[:, :1]), pinned_border=True)[1]
    assert np.abs(pinned[0].astype(int) - image[0]).mean() < 3 < np.abs(alone[1][0].astype(int) - image[0]).mean()
    assert np.abs(pinned[32, 54].astype(int) - image[32, 48]).max() <= 6


# --- tables --------------------------------------------------------------------------------------------------------


def test_drags_are_gone_through_at_even_speed_and_held():
    path = motion.along(np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 30.0]]), length=8, frames=11)
    assert np.allclose(path[[0, 1, 2, 4, 8, 9, 10]], [[0, 0], [5, 0], [10, 0], [10, 10], [10, 30], [10, 30], [10, 30]])
    assert np.array_equal(motion.along(np.array([[3.0, 4.0]]), 8, 2), [[3, 4], [3, 4]])


@pytest.fixture
def drag_file(tmp_path):
    background = texture(320, 240, grain=8)
    sheets.save_png(tmp_path / "photo.png", sprite_at((100, 120), background))
    file = tmp_path / "run.json"
    file.write_text(json.dumps({
        "image": "photo.png",
        "paths": [{"points": [[100, 120], [180, 120]], "seconds": 1.0}],
        "pins": [[300, 20]],
        "grid": {"spacing": 8, "size": 3},
    }))
    return file


def test_a_drag_file_becomes_tracks_of_the_generated_frame(drag_file):
    run = motion.read_drags(drag_file, PRESETS["embedded"], lambda image: (fit_image(image, 160, 120), None))
    assert run.image.shape == (120, 160, 3) and run.end == 16
    assert run.tracks.T == 249 and run.tracks.N == 18  # to the end of chunk 20; one grid dragged, one pinned
    assert np.allclose(run.tracks.points[[0, 8, 16, 248], 4], [[50, 60], [70, 60], [90, 60], [90, 60]])
    assert np.allclose(run.tracks.points[:, 13], [150, 10])
    assert np.allclose(run.tracks.points[0, 5] - run.tracks.points[0, 4], [4, 0])
    assert np.allclose(run.paths[0][[0, -1]], [[50, 60], [90, 60]])


def test_drags_end_with_the_last_of_them_and_count_if_they_begin_and_end_inside(drag_file):
    preset, data = PRESETS["embedded"], json.loads(drag_file.read_text())
    data["paths"].append({"points": [[220, 200], [220, 300]], "seconds": 0.5})  # out of the frame
    data["paths"].append({"points": [[-40, 200], [220, 200]], "seconds": 0.5})  # into it
    drag_file.write_text(json.dumps(data))
    run = motion.read_drags(drag_file, preset, lambda image: (fit_image(image, 160, 120), None))
    assert run.end == 16 and len(run.paths) == 3
    np.testing.assert_allclose([path[-1] for path in run.paths], [[90, 60], [110, 150], [110, 100]])
    video = np.repeat(run.image[None], run.tracks.T, axis=0)
    video[9:21] //= 2  # chunk 1: a quarter of the energy
    figures = motion.score_drags(video, run, preset)
    assert figures["drags"] == 1 and figures["off"] == pytest.approx(40)
    assert figures["sharp_1"] == pytest.approx(0.25, abs=0.05) and figures["sharp_20"] == pytest.approx(1)


def test_a_drag_of_no_time_is_over_with_the_next_frame(drag_file):
    preset, data = PRESETS["embedded"], json.loads(drag_file.read_text())
    data["paths"][0]["seconds"] = 0.02
    drag_file.write_text(json.dumps(data))
    run = motion.read_drags(drag_file, preset, lambda image: (fit_image(image, 160, 120), None))
    assert run.end == 1 and np.allclose(run.paths[0], [[50, 60], [90, 60]])
    figures = motion.score_drags(np.repeat(run.image[None], run.tracks.T, axis=0), run, preset)
    assert figures["arrived"] == 0 and figures["off"] == pytest.approx(40, abs=1)


def test_clips_are_sampled_evenly_with_first_and_last_frame():
    assert motion._evenly(10, 4) == [0, 3, 6, 9] and motion._evenly(3, 81) == [0, 1, 2]


@pytest.mark.parametrize("text", ["not json", "[1]", '{"paths": []}', '{"image": "photo.png", "paths": [{"point": 1}]}',
                                  '{"image": "photo.png", "paths": []}', '{"image": "none.png", "paths": []}',
                                  pytest.param("[" * 100_000, id="deep")])
def test_a_bad_drag_file_is_named(drag_file, text):
    drag_file.write_text(text)
    with pytest.raises(InputError):
        motion.read_drags(drag_file, PRESETS["embedded"], lambda image: (fit_image(image, 160, 120), None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"size": "a"}}, "the grid's size is 'a', for 1 paths and pins; it is a whole number from 1"),
        ({"grid": {"size": 0}}, "size is 0"),
        ({"grid": {"size": 2.5}}, "size is 2.5"),
        ({"grid": {"size": 36}, "pins": [[1, 2]]}, "size is 36, for 2 paths and pins; .* at most 2500 tracks"),
        ({"grid": {"spacing": "a"}}, "the grid's spacing is 'a'; it is a number"),
        ({"grid": {"spacing": -1}}, "spacing is -1"),
        ({"grid": {"spacing": math.nan}}, "spacing is nan"),
        ({"grid": []}, "does not describe drags"),
        ({"paths": [{"points": [[1]]}]}, "does not describe drags"),
        ({"paths": [{"points": [[1, 2]], "seconds": math.inf}]}, "does not describe drags"),
        ({"paths": [{"points": [[1, 2]], "seconds": -1}]}, "below 0"),
    ],
)
def test_values_of_a_drag_file_that_cannot_be_are_named(change, message, drag_file):
    whole = {"image": "photo.png", "paths": [{"points": [[100, 120], [180, 120]]}]}
    drag_file.write_text(json.dumps(whole | change))
    with pytest.raises(InputError, match=f"run.json.*{message}"):
        motion.read_drags(drag_file, PRESETS["embedded"], lambda image: (fit_image(image, 160, 120), None))


def test_the_drag_table_knows_a_good_mover_from_a_still_one(drag_file):
    def mover(image: np.ndarray, tracks: Tracks, seed: int) -> np.ndarray:
        """Cuts the sprite out, paints the hole flat, and pastes it where the drag is."""
        x, y = np.round(tracks.points[:, 4]).astype(int).T
        empty, sprite = image.copy(), image[y[0] - 6 : y[0] + 6, x[0] - 6 : x[0] + 6]
        empty[y[0] - 7 : y[0] + 7, x[0] - 7 : x[0] + 7] = image[0, 0]
        video = np.repeat(empty[None], tracks.T, axis=0)
        for t in range(tracks.T):
            video[t, y[t] - 6 : y[t] + 6, x[t] - 6 : x[t] + 6] = sprite
        return video

    def returns(image: np.ndarray, tracks: Tracks, seed: int) -> np.ndarray:
        video = mover(image, tracks, seed)
        video[40:] = image
        return video

    preset = PRESETS["embedded"]
    compared = {"mover": mover, "returns": returns, "motionless": motion.methods(None)["motionless"]}
    runs = motion.drag_runs(drag_file, preset, lambda image: (fit_image(image, 160, 120), None))
    figures, rows = motion.evaluate_drags(runs, compared, preset, seed=0)
    means = motion.mean_over(figures, weight="drags")
    assert means["mover"]["arrived"] == means["mover"]["stayed"] == 1 and means["mover"]["off"] < 1
    assert (means["returns"]["arrived"], means["returns"]["stayed"]) == (1, 0) and means["returns"]["off"] < 1
    assert means["motionless"]["arrived"] == 0 and means["motionless"]["off"] == pytest.approx(40)
    assert means["motionless"]["sharp_1"] == means["motionless"]["sharp_20"] == pytest.approx(1)
    assert means["mover"]["rest_changed"] == means["motionless"]["rest_changed"] == 0
    assert len(rows) == 1 and len(rows[0][1]) == 1 + 2 * len(compared)


def test_means_leave_out_what_does_not_exist_and_weigh_by_drags():
    figures = {"a": {"m": {"drags": 1.0, "arrived": 1.0, "off": math.nan}},
               "b": {"m": {"drags": 3.0, "arrived": 0.0, "off": 6.0}}}
    assert motion.mean_over(figures, weight="drags")["m"] == {"drags": 4.0, "arrived": 0.25, "off": 6.0}
    assert motion.mean_over(figures)["m"]["arrived"] == 0.5


def test_motion_command_on_folders_of_frames(tmp_path, capsys):
    video, _ = moving_crop((2.0, 1.0), 9)
    folder = tmp_path / "clips" / "slide"
    folder.mkdir(parents=True)
    for t, frame in enumerate(video):
        sheets.save_png(folder / f"{t:03}.png", frame)
    sheet = tmp_path / "sheet.png"
    argv = ["motion", str(tmp_path / "clips"), "--model", "none", "--resolution", "96x64", "--frames", "5", "--json"]
    assert motion.main([*argv, "--sheet", str(sheet)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    scores = result["methods"]
    assert result["runs"] == 1 and result["each"]["slide"].keys() == scores.keys()
    assert scores["clip itself"]["epe"] < 0.5 < 40 < scores["motionless"]["epe"]  # in pixels of 832x480
    assert scores["clip itself"]["psnr"] < motion.metrics.PSNR_CAP  # the truth is sharper there
    assert scores["warp"]["epe"] < 4 and scores["warp"]["psnr"] > scores["motionless"]["psnr"] + 5
    assert scores["warp"]["psnr_visible"] > scores["warp"]["psnr_uncovered"]
    assert cv2.imread(str(sheet)).shape[1] == 4 * (256 + sheets.GAP)  # input, the clip, warp, motionless


def test_what_is_visible_or_uncovered_is_told_frame_by_frame():
    truth, spacing = np.full((3, HEIGHT, WIDTH, 3), 100, np.uint8), 8.0
    visible = np.array([[True], [True], [False]])
    tracks = tracks_of(np.full((3, 1, 2), 30.5), visible)
    made, near = truth.copy(), metrics.visible_region(tracks, WIDTH, HEIGHT, spacing)[1]
    made[1, ~near], made[1, near], made[2] = 80, 110, 80  # off by 20, 10 and 20
    figures = motion.score_clip(made, motion.Clip("flat", truth, tracks, spacing), tracks)
    assert figures["psnr_visible"] == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)
    assert figures["psnr_uncovered"] == pytest.approx(20 * math.log10(255 / 20), abs=1e-4)


def test_videos_are_compared_at_the_size_that_is_asked_for(tmp_path, capsys):
    (tmp_path / "slide").mkdir()
    for t in range(5):
        frame = np.roll(texture(480, 320, grain=6), 8 * t, axis=1)
        cv2.imwrite(str(tmp_path / "slide" / f"{t}.png"), frame[..., ::-1])
    (plain,) = motion.real_clips(tmp_path, 5, 16.0, lambda image: (fit_image(image, 96, 64), None))
    (clip,) = motion.real_clips(tmp_path, 5, 16.0, lambda image: (fit_image(image, 96, 64), None), (208, 120))
    assert plain.judged is None and np.array_equal(plain.frames, clip.frames)
    assert clip.judged.frames.shape == (5, 120, 208, 3)
    np.testing.assert_allclose(clip.judged.tracks.points, clip.tracks.points * (208 / 96, 120 / 64), rtol=1e-5)
    assert (plain.spacing, clip.spacing, clip.judged.spacing) == (16, 16, pytest.approx(16 * 208 / 96))
    still = {"motionless": motion.methods(None)["motionless"]}
    figures, _ = motion.evaluate_clips(iter([clip]), still, 0)
    at_size, _ = motion.evaluate_clips(iter([plain]), {}, 0)
    assert 20 < figures["slide"]["clip itself"]["psnr"] < at_size["slide"]["clip itself"]["psnr"]
    assert figures["slide"]["clip itself"]["epe"] < 1 < figures["slide"]["motionless"]["epe"]
    for size, fault in (("832", "832 is not WIDTHxHEIGHT"), ("9999x480", "at most 4096 pixels a side")):
        with pytest.raises(SystemExit):
            motion.main(["motion", str(tmp_path), "--compare", size])
        assert fault in capsys.readouterr().err


def test_methods_are_told_a_clips_caption(tmp_path):
    (tmp_path / "slide").mkdir()
    for t in range(5):
        cv2.imwrite(str(tmp_path / "slide" / f"{t}.png"), np.roll(texture(), t, axis=1))
    (tmp_path / "slide.txt").write_text("snow at night\n")
    clips, asked = motion.real_clips(tmp_path, 5, 16.0, lambda image: (fit_image(image, 96, 64), None)), []

    def told(image, tracks, seed, sharp, prompt):
        asked.append(prompt)
        return np.repeat(image[None], tracks.T, axis=0)

    motion.evaluate_clips(clips, motion.methods(None) | {"told": told}, 0)
    assert asked == ["snow at night"]


def test_what_the_tracker_cannot_follow_in_the_truth_is_not_measured():
    video = np.stack([np.roll(texture(120, 80, grain=3), 2 * t, axis=1) for t in range(5)])
    starts = np.array([[30.0, 40.0], [60.0, 40.0], [90.0, 40.0]], np.float32)
    points = starts + np.arange(5, dtype=np.float32)[:, None, None] * (2, 0)
    points[:, 2] += np.arange(5)[:, None] * (4.0, 4.0)  # not how the picture moves
    visible = np.ones((5, 3), bool)
    visible[3:, 1] = False
    kept = metrics.measurable(video, Tracks(points, visible, np.arange(3)))
    assert kept.visible[:, 0].all() and np.array_equal(kept.visible[:, 1], visible[:, 1])
    assert kept.visible[0, 2] and not kept.visible[2:, 2].any()
    everything = Tracks(points, visible, kept.ids)
    assert metrics.track_error(video, kept).epe < 0.5 < metrics.track_error(video, everything).epe


def test_motion_command_on_synthetic_clips(tmp_path, capsys):
    library = tmp_path / "library"
    (library / "photos").mkdir(parents=True)
    cv2.imwrite(str(library / "photos" / "one.jpg"), texture(320, 240, grain=3))
    argv = ["motion", "--synthetic", "4", "--library", str(library), "--model", "none", "--resolution", "96x64"]
    assert motion.main([*argv, "--frames", "9", "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])["methods"]
    assert scores["clip itself"]["epe_median"] < 0.5 < scores["motionless"]["epe"]
    assert scores["clip itself"]["psnr"] == pytest.approx(100)


def test_nothing_to_evaluate_is_said(tmp_path):
    with pytest.raises(InputError, match="no clips"):
        motion.main(["motion", str(tmp_path), "--model", "none"])
    with pytest.raises(InputError, match="no clips"):
        motion.main(["motion", str(tmp_path / "missing"), "--model", "none"])
    with pytest.raises(InputError, match="no JSON files"):
        motion.main(["drags", str(tmp_path), "--model", "none"])
    with pytest.raises(InputError, match="--library"):
        motion.main(["motion", "--synthetic", "2", "--model", "none"])
    with pytest.raises(InputError, match="no photos in .*missing: run"):
        motion.main(["motion", "--synthetic", "2", "--model", "none", "--library", str(tmp_path / "missing")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "0"], "0 frames a clip are too few; give --frames 2"),
        (["--frames", "1"], "1 frames a clip are too few"),
        (["--spacing", "0"], "tracks 0 px apart; give a --spacing above 0"),
        (["--spacing", "-8"], "tracks -8 px apart; give a --spacing above 0"),
        (["--spacing", "nan"], "tracks nan px apart; give a --spacing above 0"),
        (["--spacing", "128"], "tracks 128 px apart in frames of 96x64; give a --spacing from 2 on, below 128"),
        (["--spacing", "1e-200"], "tracks 1e-200 px apart in frames"),
        (["--synthetic", "-1"], "-1 synthetic clips"),
    ],
)
def test_clips_that_cannot_be_are_refused(options, message, tmp_path):
    for t, frame in enumerate(moving_crop((2.0, 1.0), 3)[0]):
        sheets.save_png(tmp_path / f"{t}.png", frame)
    with pytest.raises(InputError, match=message):
        motion.main(["motion", str(tmp_path), "--model", "none", "--resolution", "96x64", *options])


@pytest.mark.parametrize("sheet", ["nowhere/sheet.png", ""])
def test_a_sheet_that_cannot_be_written_is_told_before_the_work(sheet, tmp_path, monkeypatch):
    monkeypatch.setattr(motion, "load_model", lambda *_: pytest.fail("work has begun"))
    for kind in ("motion", "drags"):
        with pytest.raises(InputError, match=f"cannot write {tmp_path / sheet}: .*name another place"):
            motion.main([kind, str(tmp_path), "--sheet", str(tmp_path / sheet)])


def test_figures_are_told_before_the_sheet_is_written(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(motion, "save_png", full)
    args = SimpleNamespace(sheet=str(tmp_path / "sheet.png"), json=True, table="drags", model="none")
    figures = {"one": {"warp": {"off": 3.0}}}
    with pytest.raises(InputError, match="sheet.png: No space left on device"):
        motion.report(args, ["input"], [("one", [texture()])], figures, motion.mean_over(figures))
    table, *_, last = capsys.readouterr().out.split("\n", 2)[1:]
    assert table.split() == ["warp", "3.000"] and json.loads(last)["methods"] == {"warp": {"off": 3.0}}


def test_a_full_disk_leaves_no_half_picture(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(OSError):  # on closing so small a file, when Pillow would leave it
            sheets.save_png(tmp_path / "sheet.png", texture(40, 30))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_pictures_of_a_clip_are_fitted_to_the_first(tmp_path):
    for t, size in enumerate(((96, 64), (192, 128), (64, 64))):
        sheets.save_png(tmp_path / f"{t}.png", texture(*size))
    (clip,) = motion.real_clips(tmp_path, 3, 16.0, lambda image: (image, None))
    assert clip.frames.shape == (3, 64, 96, 3)


def test_help_names_every_table_and_a_seed_is_from_0_on(capsys):
    for argv, said in ((["--help"], "ablations"), (["drags", "x", "--seed", "-1"], "-1 is not from 0 to")):
        with pytest.raises(SystemExit):
            motion.main(argv)
        assert said in "".join(capsys.readouterr())


def test_a_clip_of_one_frame_is_named(tmp_path):
    sheets.save_png(tmp_path / "0.png", texture())
    with pytest.raises(InputError, match=f"{tmp_path}: it has 1 frames; a clip needs at least 2"):
        motion.main(["motion", str(tmp_path), "--model", "none"])


def test_one_bad_clip_costs_no_table(tmp_path, capsys):
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "short").mkdir()
    sheets.save_png(tmp_path / "short" / "0.png", texture())
    with pytest.raises(InputError, match="none of the clips"):
        list(motion.real_clips(tmp_path, 5, 16.0, lambda image: (image, None)))
    (tmp_path / "slide").mkdir()
    for t in range(3):
        sheets.save_png(tmp_path / "slide" / f"{t}.png", np.roll(texture(), t, axis=1))
    capsys.readouterr()
    arguments = ["motion", str(tmp_path), "--model", "none", "--spacing", "16", "--sheet", str(tmp_path / "s.png")]
    assert motion.main([*arguments, "--json"]) == 0
    told = capsys.readouterr()
    assert list(json.loads(told.out.splitlines()[-1])["each"]) == ["slide"]
    assert "left out" in told.err and "bad.mp4: the video cannot be read" in told.err and "it has 1 frames" in told.err


def test_long_clips_are_sampled_as_they_are_decoded(tmp_path):
    with Mp4Writer(tmp_path / "long.mp4", WIDTH, HEIGHT, 50.0) as writer:  # longer than what may be kept whole
        for _ in range(8):
            writer.write(np.stack([np.full((HEIGHT, WIDTH, 3), t, np.uint8) for t in range(160)]))
    (clip,) = motion.real_clips(tmp_path, 5, 16.0, lambda image: (image, None))
    assert clip.frames.shape == (5, HEIGHT, WIDTH, 3)
    wanted = np.round(np.linspace(0, 1279, 5)) % 160
    np.testing.assert_allclose(clip.frames.mean((1, 2, 3)), wanted, atol=4)


def test_a_clip_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "second.mp4").write_text("no video")
    with pytest.raises(InputError, match=f"{tmp_path}/second.mp4: the video cannot be read"):
        motion.main(["motion", str(tmp_path), "--model", "none"])


def test_a_model_is_compared_with_and_without_its_network():
    torch.set_num_threads(1)
    row = PRESETS["embedded"]
    preset = dataclasses.replace(row, transformer=dict(row.transformer) | dict(num_layers=1))
    model = random_model(preset, 0, "cpu", torch.float32)
    image, points = texture(96, 64), np.array([[48.0, 32.0]])
    tracks = tracks_of(points[None] + np.arange(11)[:, None, None] * np.array([1.0, 0.0]))
    compared = motion.methods(model)
    assert {"student", "motion prior alone", "warp", "motionless"} <= compared.keys()
    made, prior = (compared[name](image, tracks, 0) for name in ("student", "motion prior alone"))
    assert made.shape == prior.shape == (11, 64, 96, 3) and made.dtype == prior.dtype == np.uint8
    assert np.abs(prior[0].astype(int) - image).max() <= 1
    assert np.array_equal(made, compared["student"](image, tracks, 0))


def test_table_aligns_figures_and_shows_missing_ones():
    text = sheets.table({"first": {"epe": 1.23456, "n": 21}, "b": {"epe": math.nan, "n": 9}})
    assert [line.split() for line in text.splitlines()] == [
        ["epe", "n"], ["first", "1.235", "21"], ["b", "-", "9"]]
    assert len({len(line) for line in text.splitlines()}) == 1
