"""A cratered moon before a ringed planet, seen from a rocky world."""

import cv2
import numpy as np
import paint as p

W, H = 800, 480
MOON = (262.0, 172.0, 66.0)
PLANET = (562.0, 194.0, 106.0)
LIGHT = p.toward(-0.72, -0.30, 0.62)


def space(rng, x, y):
    """Stars of many sizes behind a thin nebula."""
    picture = p.ramp(y, [(0, "#070a1c"), (240, "#141a3a"), (400, "#3a2c58"), (480, "#5b3a62")])
    veil = p.fbm(rng, x.shape, (330, 240), 7, 0.58)
    dust = p.fbm(rng, x.shape, (200, 150), 7, 0.6)
    band = np.exp(-(((y - 0.42 * x + 40) / 170) ** 2))
    picture = picture + (np.clip(veil + 0.45, 0, 2) ** 2 * band)[..., None] * p.rgb("#3d4fa0") * 0.55
    picture = picture + (np.clip(dust + 0.15, 0, 2) ** 2 * band)[..., None] * p.rgb("#c04f86") * 0.50
    picture = picture * (1 - 0.55 * p.step(0.05, 0.6, -dust) * band)[..., None]
    stars = np.zeros(x.shape, np.float32)
    for _ in range(1500):
        cx, cy, r = rng.uniform(0, W), rng.uniform(0, H), 0.12 + rng.pareto(2.6) * 0.16
        cv2.circle(
            stars, (int(cx * p.SS), int(cy * p.SS)), max(1, int(r * p.SS)), float(rng.uniform(0.05, 1.0) ** 2 * 1.6), -1
        )
    return picture + p.blur(stars, 0.4)[..., None] * np.array([1, 0.96, 0.92], np.float32)


def ball(x, y, cx, cy, radius):
    """Normals [.., 3] and mask of a sphere."""
    u, v = (x - cx) / radius, (y - cy) / radius
    z = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
    return np.stack([u, v, z], -1), np.clip((1 - np.hypot(u, v)) * radius * p.SS + 0.5, 0, 1)


def bands(rng, n, tilt):
    """Cloud bands of a gas giant over normals `n`, its axis leaning by `tilt` radians."""
    lat = n[..., 1] * np.cos(tilt) - n[..., 0] * np.sin(tilt)
    along = n[..., 0] * np.cos(tilt) + n[..., 1] * np.sin(tilt)
    lon = np.arctan2(along, np.maximum(n[..., 2], 0.02))
    sheet = p.fbm(rng, (1260, 900), (46, 10), 6, 0.62)
    swirl = p.fbm(rng, sheet.shape, (30, 22), 5, 0.55)
    at_x, at_y = ((lon + 1.7) * 260).astype(np.float32), ((lat + 1.05) * 560).astype(np.float32)
    wave = cv2.remap(swirl, at_x, at_y, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    fine = cv2.remap(sheet, at_x + wave * 22, at_y + wave * 16, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    t = lat + 0.035 * fine + 0.02 * wave
    stops = [(-1, "#7d6f7a"), (-0.75, "#b99a86"), (-0.55, "#e8cfae"), (-0.42, "#b57f5c"), (-0.3, "#f0dcc0"),
             (-0.12, "#e6c39a"), (-0.02, "#9c5f44"), (0.1, "#c98f66"), (0.2, "#f3e0c6"), (0.36, "#c79a7a"),
             (0.5, "#e0bd98"), (0.7, "#9b7a72"), (1, "#6f5f70")]  # fmt: skip
    return p.ramp(t, stops) * (1 + 0.28 * fine)[..., None]


def ring_sheet(rng, x, y, tilt, squash):
    """The rings at every sample: density, radius in planet radii, whether in front of the planet, sunlight 0..1."""
    cx, cy, size = PLANET
    dx, dy = (x - cx) / size, (y - cy) / size
    u, v = dx * np.cos(tilt) + dy * np.sin(tilt), -dx * np.sin(tilt) + dy * np.cos(tilt)
    r = np.hypot(u, v / squash)
    profile = np.clip(0.55 + 0.35 * p.line_noise(rng, 1200, 40, 6, 0.7), 0.05, 1).astype(np.float32)
    density = np.interp(r * 480, np.arange(1200), profile).astype(np.float32)
    density *= p.step(1.28, 1.34, r) * p.step(2.22, 2.12, r) * (1 - 0.9 * p.step(0.05, 0.03, np.abs(r - 1.88)))
    point = np.stack([u, v, v / squash * np.sqrt(1 - squash**2)], -1)
    lx, ly, lz = LIGHT
    sun = np.float32([lx * np.cos(tilt) + ly * np.sin(tilt), -lx * np.sin(tilt) + ly * np.cos(tilt), lz])
    depth = point @ sun
    clear = np.sqrt(np.clip((point * point).sum(-1) - depth**2, 0, None))
    light = 1 - 0.9 * (depth < 0) * p.step(1.02, 0.95, clear)
    return density, r, v > 0, light


def planet(rng, picture, x, y):
    """The gas giant between the far and the near half of its rings."""
    tilt, squash = -0.32, 0.24
    n, mask = ball(x, y, *PLANET)
    density, r, front, lit = ring_sheet(rng, x, y, tilt, squash)
    tint = p.ramp(r, [(1.3, "#a88f78"), (1.6, "#e8d2b0"), (1.85, "#cdb08c"), (2.2, "#8f8698")])
    rings = tint * (1.25 * lit)[..., None]
    picture = p.mix(picture, rings, density * ~front * 0.92)
    light = p.lambert(n, LIGHT, 0.08)[..., None] * p.rgb("#fff0dc") * 1.75
    light = light * (1 - 0.45 * np.exp(-(((n[..., 1] + 0.17 - 0.32 * n[..., 0]) / 0.075) ** 2)))[..., None]
    body = bands(rng, n, tilt) * (light + p.rgb("#3a3f78") * 0.16)
    rim = (1 - n[..., 2]) ** 3 * p.lambert(n, LIGHT, 0.2)
    picture = p.mix(picture, body + (rim * 0.8)[..., None] * p.rgb("#ffd9b0"), mask)
    cx, cy, size = PLANET
    halo = np.exp(-np.clip(np.hypot(x - cx, y - cy) - size, 0, None) / 10) * (1 - mask) * 0.22
    picture = picture + (halo * p.step(0.9, -0.9, (x - cx) / size))[..., None] * p.rgb("#ffcf9e")
    return p.mix(picture, rings, density * front * 0.92)


def craters(rng, n, count):
    """Height of a cratered surface over normals `n`: bowls with raised rims, few large and many small."""
    height = np.zeros(n.shape[:2], np.float32)
    for _ in range(count):
        size = min(0.035 + 0.03 * rng.pareto(1.5), 0.30)
        d = rng.standard_normal(3).astype(np.float32)
        d /= np.linalg.norm(d)
        away = np.arccos(np.clip(n @ d, -1, 1)) / size
        bowl = np.where(away < 1, away**2 - 1, 0) * 0.8 + 0.45 * np.exp(-(((away - 1) / 0.22) ** 2))
        height = height * np.where(away < 0.9, 0.4, 1).astype(np.float32) + (bowl * size).astype(np.float32)
    return height


def moon(rng, picture, x, y):
    """The moon, worked out only in its own window."""
    cx, cy, radius = MOON
    rows, cols = p.window(x, cx, cy, radius + 14)
    x, y = x[rows, cols], y[rows, cols]
    n, mask = ball(x, y, *MOON)
    rough = p.fbm(rng, x.shape, (26, 26), 6, 0.6)
    height = p.blur(craters(rng, n, 420) * 26 + rough * 1.3, 0.5)
    bump = p.slopes(height)
    bent = n + np.stack([bump[..., 0], bump[..., 1], 0 * x], -1) * 1.1
    bent /= np.linalg.norm(bent, axis=-1, keepdims=True)
    seas = p.step(-0.1, 0.5, p.fbm(rng, x.shape, (60, 60), 4, 0.5))
    rock = p.mix(p.rgb("#c9c0b8"), p.rgb("#7d7785"), seas) * (1 + 0.22 * rough + 0.02 * height)[..., None]
    light = p.lambert(bent, LIGHT, 0.05) * p.step(-0.25, 0.55, n @ LIGHT)
    back = p.lambert(n, p.toward(0.9, 0.1, 0.2), 0.0) ** 2 * 0.10
    body = rock * (
        light[..., None] * p.rgb("#fff4e4") * 1.9 + back[..., None] * p.rgb("#c98f7a") + p.rgb("#6a6ab0") * 0.24
    )
    picture[rows, cols] = p.mix(picture[rows, cols], body, mask)
    return picture


def ground(rng, picture, x, y):
    """Three rocky ridges with a glow of thin air between them."""
    for base, height, cell, dark, light, air in (
        (398, 20, 190, "#3b2f57", "#c98a8f", 0.55),
        (424, 22, 150, "#251d3d", "#b06a6c", 0.40),
        (456, 20, 240, "#120e22", "#8a5156", 0.0),
    ):
        line = base - height * p.line_noise(rng, W * p.SS, cell, 8, 0.5)
        mask = np.clip((y - line) * p.SS + 0.5, 0, 1)
        down = (y - line) / 60
        relief = p.slopes(15 * p.fbm(rng, x.shape, (120, 46), 7, 0.52))
        lit = p.lambert(relief, p.toward(-0.75, -0.5, 0.25), 0.0) * 1.5
        colour = p.mix(p.rgb(dark), p.rgb(light), np.clip(lit, 0, 1.3) * p.step(1.6, -0.2, down))
        edge = np.exp(-(((y - line) / 1.2) ** 2)) * 0.5
        picture = p.mix(picture, colour + edge[..., None] * p.rgb("#ffb59a"), mask)
        picture = p.mix(picture, p.rgb("#b0607c"), mask * p.step(0, 0.9, down) * air)
    return picture


def render(rng):
    """The picture, uint8 [480, 800, 3]."""
    x, y = p.grid(W, H)
    picture = planet(rng, space(rng, x, y), x, y)
    glow = np.exp(-np.abs(y - 405) / 42) * 0.30
    picture = ground(rng, picture + glow[..., None] * p.rgb("#ff8f8a"), x, y)
    return p.finish(moon(rng, picture, x, y), rng)


DRAGS = {
    "title": "Moon and ringed planet",
    "grid": {"spacing": 36, "size": 3},
    "paths": [{"points": [[262, 170], [246, 210], [242, 250], [256, 292]], "seconds": 2.5}],
    "pins": [[400, 440], [110, 60], [90, 270], [450, 60], [375, 130]],
}
