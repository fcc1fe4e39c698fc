"""A paper boat with a light inside, on a lake at dusk."""

import cv2
import numpy as np
import paint as p

W, H = 800, 480
HORIZON = 208.0
SUN_X = 150.0
BOAT = (395.0, 352.0, 118.0)  # middle of the waterline and half length


def shore(rng, x, y):
    """Sky, far hills and lit windows, slightly out of focus."""
    stops = [(0, "#22305f"), (70, "#4a4f8a"), (135, "#a56f96"), (175, "#e8946f"), (HORIZON, "#ffc07a")]
    picture = p.ramp(y, stops)
    d = np.hypot((x - SUN_X) * 0.7, (y - HORIZON) * 1.3)
    picture = picture + np.exp(-d / 110)[..., None] * p.rgb("#ff8a3c") * 0.8
    cloud = p.fbm(rng, x.shape, (300, 26), 6, 0.55)
    lit = p.mix(p.rgb("#5b4f80"), p.rgb("#ffa274") * 1.2, p.step(60, 190, y) * np.exp(-np.abs(x - SUN_X) / 700))
    picture = p.mix(picture, lit, p.step(0.0, 0.8, cloud) * 0.8 * p.step(HORIZON, 150, y))
    for base, height, cell, colour in ((182, 14, 210, "#6b4d72"), (196, 9, 130, "#3a3156"), (205, 5, 30, "#1c1d36")):
        line = base - height * p.line_noise(rng, W * p.SS, cell, 7, 0.55)
        mask = np.clip((y - line) * p.SS + 0.5, 0, 1)
        haze = 0.5 * np.exp(-np.abs(x - SUN_X) / 160)
        picture = p.mix(picture, p.mix(p.rgb(colour), p.rgb("#ff9b62"), haze), mask)
    for _ in range(46):
        at, up = rng.uniform(0, W), rng.uniform(1, 12)
        size, power = rng.uniform(1.0, 3.4), rng.uniform(0.5, 2.2)
        disc = p.step(size + 0.8, size - 0.8, np.hypot(x - at, y - HORIZON + up))
        warm = p.rgb(("#ffb347", "#ffd08a", "#ff8f4a", "#ffe9c9")[rng.integers(4)])
        picture = picture + (disc * power)[..., None] * warm
    return p.blur(picture, 1.3)


def ripples(rng, x, y):
    """Slopes (x, y) of the water, in perspective: long waves far away, small ones at the near shore."""
    depth = np.maximum(y - HORIZON, 0.8)
    across, along = (x - W / 2) / depth * 110, 90000 / depth
    slope_x, slope_y = np.zeros_like(x), np.zeros_like(x)
    for k in range(5):
        tile = rng.standard_normal((512, 512)).astype(np.float32)
        tile = cv2.GaussianBlur(np.tile(tile, (2, 2)), (0, 0), 2)[:512, :512] * 7
        zoom = 0.07 * 1.9**k
        map_x, map_y = (across * zoom) % 511, (along * zoom * 1.1) % 511
        wave = cv2.remap(
            tile, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_CUBIC, None, cv2.BORDER_WRAP
        )
        fade = p.step(0, 14 * 1.7**k, depth) / 1.38**k
        slope_y += wave * fade
        slope_x += np.roll(wave, 31 * p.SS, 1) * fade
    return slope_x, slope_y


def mirrored(picture, x, y, level, slope_x, slope_y, amount):
    """`picture` reflected at the line y = level, broken up by the slopes."""
    map_x = (x + slope_x * amount * 0.5) * p.SS
    map_y = np.maximum((2 * level - y + slope_y * amount) * p.SS, 0)
    return cv2.remap(
        picture, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT
    )


def facets():
    """Folded paper: polygon (half lengths from the waterline, up is negative), two colours, direction of the shade."""
    left, right, keel = (-1.04, -0.47), (1.0, -0.40), (0.05, 0.10)
    front, peak = (0.06, -0.20), (0.00, -1.03)
    return [
        ([left, (-0.36, -0.44), (0.40, -0.42), right, front], "#c9853f", "#7a4526", (0.0, 1.0)),
        ([peak, (-0.52, -0.36), (-0.2, -0.1), front], "#fff6e6", "#f0b877", (0.1, 1.0)),
        ([peak, front, (0.2, -0.1), (0.50, -0.34)], "#c3b4c4", "#d98a58", (0.2, 1.0)),
        ([left, front, keel, (-0.60, 0.10)], "#fbe3c8", "#c79fa0", (0.4, 1.0)),
        ([front, right, (0.62, 0.10), keel], "#8f86a8", "#5b557e", (0.3, 1.0)),
        ([left, (-0.22, -0.05), keel, (-0.60, 0.10)], "#ecd0bd", "#a98596", (0.2, 1.0)),
        ([right, (0.30, -0.03), keel, (0.62, 0.10)], "#7d759c", "#4b4770", (-0.2, 1.0)),
    ]


def boat(rng, x, y):
    """Colour [.., 3] and mask of the boat: each facet a gradient, its folds catching light, its paper grained."""
    cx, cy, size = BOAT
    colour, mask = np.zeros(x.shape + (3,), np.float32), np.zeros(x.shape, np.float32)
    grain = 1 + 0.05 * p.fbm(rng, x.shape, (2.5, 2.5), 3, 0.8) + 0.05 * p.fbm(rng, x.shape, (30, 18), 3)
    for outline, first, second, (ax, ay) in facets():
        points = np.array(outline) * size + (cx, cy)
        along = points @ (ax, ay)
        t = np.clip((x * ax + y * ay - along.min()) / (along.max() - along.min()), 0, 1)
        shaded = p.mix(p.rgb(first), p.rgb(second), t) * grain[..., None]
        area = p.polygon(x.shape, points)
        fold = p.stroke(x.shape, np.concatenate([points, points[:1]]), 0.7) * area
        colour = p.mix(p.mix(colour, shaded, area), p.rgb("#fff0d8") * 0.9, fold * 0.35)
        mask = np.maximum(mask, area)
    heart = np.hypot((x - cx - 0.03 * size) / 1.25, y - cy + 0.36 * size) / size
    colour = colour + (np.exp(-((heart / 0.30) ** 2)) * 0.75)[..., None] * p.rgb("#ffab4a")
    return colour, mask * p.step(0.6, -0.6, y - cy - 0.10 * size - 0.9 * np.sin(x * 0.21))


def render(rng):
    """The picture, uint8 [480, 800, 3]."""
    x, y = p.grid(W, H)
    sky = shore(rng, x, y)
    slope_x, slope_y = ripples(rng, x, y)
    depth = np.clip((y - HORIZON) / (H - HORIZON), 0, 1)
    water = mirrored(sky, x, y, HORIZON, slope_x, slope_y, 4 + 30 * depth)
    fresnel = np.clip(0.92 - 0.62 * depth**0.8 - 0.10 * slope_y, 0.08, 1)
    water = p.mix(p.rgb("#0c2336"), water * p.rgb("#e6e4f2"), fresnel)
    cx, cy, size = BOAT
    waterline = cy + 0.10 * size
    colour, mask = boat(rng, x, y)
    layer = mirrored(p.blur(np.dstack([colour, mask]), 0.7), x, y, waterline, slope_x, slope_y, 4 + 11 * depth)
    below = y > waterline
    water = p.mix(water, layer[..., :3] * 0.62, layer[..., 3] * below * (0.85 - 0.5 * p.step(waterline, H, y)))
    spill = np.exp(-(((x - cx) / (0.9 * size)) ** 2) - np.abs(y - waterline - 12) / 38) * np.clip(
        0.6 + 0.9 * slope_y, 0, 2
    )
    water = water + (spill * 0.30)[..., None] * p.rgb("#ff9a3d")
    contact = np.exp(-(((x - cx) / (0.62 * size)) ** 6) - (((y - waterline) / 3.0) ** 2))
    water = water * (1 - 0.75 * contact)[..., None]
    picture = p.mix(sky, water, np.clip((y - HORIZON) * p.SS, 0, 1))
    haze = np.exp(-(((y - HORIZON) / 16) ** 2)) * 0.35
    picture = p.mix(picture, p.rgb("#f0a887"), haze)
    picture = p.mix(picture, colour, mask)
    halo = np.exp(-np.hypot(x - cx, y - cy + 0.4 * size) / (0.55 * size)) * 0.16
    return p.finish(picture + halo[..., None] * p.rgb("#ff9f4a"), rng)


DRAGS = {
    "title": "Paper boat at dusk",
    "grid": {"spacing": 20, "size": 2},
    "paths": p.drags_together(
        [[394, 262], [394, 300], [312, 316], [345, 325], [440, 325], [474, 318]],
        [[0, 0], [50, -6], [105, -2], [165, 8]],
        2.5,
    ),
    "pins": [[150, 190], [394, 140], [560, 150], [650, 190], [120, 420]],
}
