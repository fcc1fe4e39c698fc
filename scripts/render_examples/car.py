"""A toy car on a wooden table: signed distance fields, marched ray by ray."""

import cv2
import numpy as np
import paint as p

W, H = 800, 480
EYE, AIM = np.float32([3.5, 2.25, 6.4]), np.float32([0.10, 0.78, 0.0])
FOCAL = 790.0  # pixels
LIGHT = p.toward(-0.50, 0.82, 0.42)
PAINT, GLASS, RUBBER, CHROME, LEATHER = range(5)


def ellipsoid(q, centre, radii):
    """Distance to an ellipsoid (close to exact near the surface)."""
    d = q - np.float32(centre)
    a, b = np.linalg.norm(d / np.float32(radii), axis=-1), np.linalg.norm(d / np.float32(radii) ** 2, axis=-1)
    return a * (a - 1) / np.maximum(b, 1e-6)


def box(q, centre, half, radius):
    """Distance to a box with rounded edges."""
    d = np.abs(q - np.float32(centre)) - np.float32(half) + radius
    return np.linalg.norm(np.maximum(d, 0), axis=-1) + np.minimum(d.max(-1), 0) - radius


def disc(q, centre, radius, half, rounding):
    """Distance to a wheel whose axle runs along z."""
    d = q - np.float32(centre)
    a, b = np.hypot(d[:, 0], d[:, 1]) - radius + rounding, np.abs(d[:, 2]) - half + rounding
    return np.minimum(np.maximum(a, b), 0) + np.hypot(np.maximum(a, 0), np.maximum(b, 0)) - rounding


def blend(a, b, k):
    """Smooth union over `k`."""
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0, 1)
    return b + (a - b) * h - k * h * (1 - h)


def distance(points):
    """Distance to the nearest part of the car and which material that is; `points` [n, 3]."""
    q = points.copy()
    q[:, 2] = np.abs(q[:, 2])
    wheel_x = np.where(q[:, 0] > 0, 1.14, -1.14)
    near_wheel = np.stack([q[:, 0] - wheel_x, q[:, 1], q[:, 2]], -1)
    shell = box(q, (0, 0.55, 0), (1.80, 0.25, 0.64), 0.2)
    shell = blend(shell, ellipsoid(q, (1.02, 0.62, 0), (0.98, 0.46, 0.56)), 0.22)
    shell = blend(shell, ellipsoid(q, (-1.12, 0.64, 0), (0.86, 0.50, 0.58)), 0.22)
    shell = blend(shell, ellipsoid(q, (-0.14, 0.92, 0), (1.06, 0.66, 0.61)), 0.12)
    shell = blend(shell, ellipsoid(near_wheel, (0, 0.46, 0.64), (0.60, 0.44, 0.22)), 0.07)
    well = disc(near_wheel, (0, 0.36, 0.80), 0.43, 0.36, 0.02)
    shell = np.maximum(shell, -well)
    tyre = disc(near_wheel, (0, 0.36, 0.66), 0.36, 0.14, 0.06)
    hub = ellipsoid(near_wheel, (0, 0.36, 0.79), (0.17, 0.17, 0.05))
    lamp = ellipsoid(q, (1.74, 0.66, 0.42), (0.15, 0.16, 0.16))
    bumper = np.minimum(
        box(q, (1.90, 0.38, 0), (0.05, 0.06, 0.66), 0.05), box(q, (-1.96, 0.38, 0), (0.05, 0.06, 0.68), 0.05)
    )
    case = box(points, (-0.15, 1.70, 0.02), (0.42, 0.13, 0.34), 0.06)
    rack = np.minimum(
        box(q, (-0.45, 1.56, 0), (0.03, 0.03, 0.46), 0.02), box(q, (0.15, 1.56, 0), (0.03, 0.03, 0.46), 0.02)
    )
    parts = np.stack([shell, tyre, np.minimum(np.minimum(hub, lamp), np.minimum(bumper, rack)), case])
    return parts.min(0), np.int32([PAINT, RUBBER, CHROME, LEATHER])[parts.argmin(0)]


def march(origins, rays, reach, steps=70):
    """Follow the rays: distance gone [n], and the least (clearance / way) met, which gives soft shadows."""
    gone = np.full(len(rays), 0.02, np.float32)
    clear = np.ones(len(rays), np.float32)
    active = np.arange(len(rays))
    for _ in range(steps):
        d, _material = distance(origins[active] + rays[active] * gone[active, None])
        clear[active] = np.minimum(clear[active], 9 * d / gone[active])
        gone[active] += d
        active = active[(d > 0.0012) & (gone[active] < reach)]
        if not len(active):
            break
    return gone, np.clip(clear, 0, 1)


def surroundings(rays):
    """What shines from the direction of `rays` [n, 3]: a bright window, warm walls, the table below."""
    up = rays[:, 1]
    light = p.ramp(up, [(-1, "#4a2c16"), (-0.05, "#8a5a34"), (0.02, "#3f332e"), (0.35, "#b7957a"), (1, "#e8dccb")])
    across = rays @ p.toward(-0.75, 0.0, -0.1)
    pane = p.step(0.30, 0.36, up) * p.step(0.86, 0.80, up) * p.step(-0.1, 0.02, across)
    pane *= 1 - 0.8 * p.step(0.03, 0.015, np.abs(up - 0.56))
    return light + pane[:, None] * p.rgb("#fff4e0") * 2.6


def coat(points, normals, material):
    """Colour of the surface and how strongly it mirrors, [n, 3] and [n]."""
    x, y, z = points.T
    side = np.abs(z)
    colour = np.where((y > 0.90)[:, None], p.rgb("#f1e6cf"), p.rgb("#12757c"))
    trim = p.step(0.018, 0.010, np.abs(y - 0.90)) * (material == PAINT)
    door = (
        (np.abs(side - 0.6) < 0.25) & (y > 0.42) & (y < 1.0) & ((np.abs(x - 0.32) < 0.011) | (np.abs(x + 0.62) < 0.011))
    )
    colour = np.where(door[:, None], colour * 0.25, colour)
    pane = (y > 0.985) & (y < 1.36)
    side_window = pane & (np.abs(normals[:, 2]) > 0.62) & (np.abs(x + 0.16) > 0.045) & (x < 0.52) & (x > -0.86)
    front = pane & (np.abs(normals[:, 2]) < 0.52) & (np.abs(normals[:, 0]) > 0.3) & (side < 0.48)
    glass = (side_window | front) & (material == PAINT)
    colour = np.where(glass[:, None], p.rgb("#1a2a33"), colour)
    lead = np.hypot(np.abs(x) - 1.14, y - 0.36)
    colour = np.where(
        (material == RUBBER)[:, None], np.where(((lead > 0.18) & (lead < 0.25))[:, None], 0.62, 0.012), colour
    )
    colour = np.where((material == CHROME)[:, None] | (trim > 0.5)[:, None], p.rgb("#c9c9c9"), colour)
    strap = np.minimum(np.abs(x + 0.38), np.abs(x - 0.08)) < 0.045
    leather = np.where(strap[:, None], p.rgb("#b98a4a"), p.rgb("#23457f"))
    colour = np.where((material == LEATHER)[:, None], leather, colour)
    mirror = np.select([glass, material == CHROME, trim > 0.5, material == PAINT], [0.55, 0.85, 0.8, 0.22], 0.05)
    return colour.astype(np.float32), mirror.astype(np.float32)


def gradient(points):
    """Surface normals by central differences over a tetrahedron."""
    corners = np.float32([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    n = sum(c * distance(points + 0.002 * c)[0][:, None] for c in corners)
    return n / np.linalg.norm(n, axis=-1, keepdims=True)


def shade(points, rays):
    """Light that leaves the car's surface towards the eye, [n, 3]."""
    n = gradient(points)
    material = distance(points)[1]
    colour, mirror = coat(points, n, material)
    start = points + n * 0.01
    shadow = march(start, np.broadcast_to(LIGHT, start.shape), 4.0, 28)[1]
    open_air = np.clip(sum(distance(points + n * h)[0] / h for h in (0.05, 0.15, 0.4)) / 3, 0, 1) ** 1.3
    sun = np.clip(n @ LIGHT, 0, 1) * shadow
    diffuse = (
        sun[:, None] * p.rgb("#ffe3b8") * 2.0 + (open_air * (0.5 + 0.5 * n[:, 1]))[:, None] * p.rgb("#cfd8e6") * 0.40
    )
    diffuse = diffuse + (open_air * np.clip(0.4 - n[:, 1], 0, 1))[:, None] * p.rgb("#b9743c") * 0.35
    cosine = np.clip(-(rays * n).sum(-1), 0, 1)
    bounced = rays + 2 * cosine[:, None] * n
    fresnel = mirror + (1 - mirror) * (1 - cosine) ** 5 * np.where(material == RUBBER, 0.1, 0.8)
    glint = np.clip(bounced @ LIGHT, 0, 1) ** 400 * shadow * 6 * (mirror > 0.1)
    kept = 1 - mirror * 0.8
    return (
        colour * diffuse * kept[:, None]
        + (fresnel * (0.25 + 0.75 * open_air))[:, None] * surroundings(bounced)
        + glint[:, None]
    )


def camera(u, v):
    """Unit rays [..., 3] through the finished pixels (u, v)."""
    ahead = (AIM - EYE) / np.linalg.norm(AIM - EYE)
    right = np.cross(ahead, np.float32([0, 1, 0]))
    right /= np.linalg.norm(right)
    down = np.cross(ahead, right)
    rays = ahead * FOCAL + right * (u - W * 0.5)[..., None] + down * (v - H * 0.56)[..., None]
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(np.float32)


def wood(rng, u, v):
    """Colour of table boards at (u, v) in the table's plane."""
    board = np.floor(v / 1.15)
    tone = 0.85 + 0.30 * np.modf(np.sin(board * 91.7) * 437.5)[0]
    size = 1400
    streaks = p.fbm(rng, (size, size), (130, 5), 6, 0.7)
    rings = p.fbm(rng, (size, size), (170, 22), 4, 0.5)
    at = [((a * s + o) % (size - 1)).astype(np.float32) for a, s, o in ((u, 95.0, 700), (v + board * 3.7, 95.0, 700))]
    grain = cv2.remap(streaks, *at, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    ring = cv2.remap(rings, *at, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    lines = 0.5 + 0.5 * np.sin(ring * 26)
    colour = p.mix(p.rgb("#8a4f26"), p.rgb("#d79a5c"), np.clip(0.45 + 0.55 * grain + 0.22 * (lines - 0.5), 0, 1))
    gap = np.abs(v / 1.15 - np.round(v / 1.15)) * 1.15
    return colour * (tone * (0.25 + 0.75 * p.step(0.008, 0.03, gap)))[..., None]


def room(rng, x, y):
    """The far, blurred room: warm walls, leaves and many round lights."""
    picture = p.ramp(y + 0.12 * x, [(0, "#2b241f"), (140, "#6e4a2e"), (230, "#a8713f"), (330, "#5a3a24")])
    picture = picture + (np.exp(-np.hypot(x - 120, (y - 60) * 1.4) / 190))[..., None] * p.rgb("#ffc98a") * 0.8
    leaves = p.step(0.05, 0.5, p.fbm(rng, x.shape, (130, 110), 3)) * p.step(430, 800, x)
    picture = p.blur(p.mix(picture, p.rgb("#3f5a34"), leaves * 0.85), 14)
    for _ in range(60):
        cx, cy, r = rng.uniform(0, W), rng.uniform(-10, 190), rng.uniform(9, 27)
        d = np.hypot(x - cx, y - cy)
        light = p.step(r + 1.2, r - 1.2, d) * (0.55 + 0.45 * (d / r) ** 3) * rng.uniform(0.05, 0.38)
        picture = picture + light[..., None] * p.rgb(
            ("#ffb45c", "#ffd9a0", "#ff8a4a", "#e8f0c0", "#ffe9cf")[rng.integers(5)]
        )
    return p.blur(picture, 1.5)


def table(rng, x, y):
    """The table: boards in perspective, the window's light on it and the car's soft shadow; and where it lies."""
    rays = camera(x, y)
    down = np.minimum(rays[..., 1], -1e-3)
    away = -EYE[1] / down
    u, v = EYE[0] + rays[..., 0] * away, EYE[2] + rays[..., 2] * away
    turned_u, turned_v = 0.93 * u - 0.37 * v, 0.37 * u + 0.93 * v
    colour = wood(rng, turned_u, turned_v)
    coarse = slice(None, None, 2 * p.SS)
    spots = np.stack([u[coarse, coarse], 0 * u[coarse, coarse], v[coarse, coarse]], -1).astype(np.float32)
    near = np.abs(spots[..., 0]) + np.abs(spots[..., 2]) < 7
    shadow, close = np.ones(near.shape, np.float32), np.ones(near.shape, np.float32)
    at = spots[near]
    shadow[near] = march(at, np.broadcast_to(LIGHT, at.shape), 5.0, 40)[1]
    close[near] = np.clip(distance(at + np.float32([0, 0.10, 0]))[0] / 0.45, 0, 1) ** 0.6
    shadow, close = (p.blur(cv2.resize(a, x.shape[::-1], interpolation=cv2.INTER_LINEAR), 1.2) for a in (shadow, close))
    pool = np.exp(-(((u + 0.3) / 6.5) ** 2) - (((v - 0.5) / 5.5) ** 2))
    light = (shadow * (0.35 + 1.25 * pool))[..., None] * p.rgb("#ffdcae") + (0.26 * close)[..., None] * p.rgb("#b9a89c")
    shown = colour * light
    glare = (1 - np.clip(-rays[..., 1], 0, 1)) ** 5 * (0.3 + 0.7 * shadow)
    shown = shown + (glare * 0.8)[..., None] * p.rgb("#d69a64")
    far = p.step(9.5, 24, away)
    soft = p.mix(shown, p.blur(shown, 2.5), p.step(8.5, 11, away))
    soft = p.mix(soft, p.blur(shown, 1.6), p.step(6.0, 4.6, away))
    return p.mix(soft, p.rgb("#8a5630"), far * 0.8), p.step(-0.062, -0.088, rays[..., 1])


def car(picture, x, y):
    """Paint the car into `picture`; it is marched at two samples a pixel inside its own window."""
    u, v = np.meshgrid(np.arange(190, 640, 0.5, np.float32) + 0.25, np.arange(90, 430, 0.5, np.float32) + 0.25)
    rays = camera(u, v).reshape(-1, 3)
    origins = np.broadcast_to(EYE, rays.shape)
    towards = -(origins * rays).sum(-1)
    ball = np.linalg.norm(origins + rays * towards[:, None] - np.float32([0, 0.8, 0]), axis=-1) < 2.35
    hit, light = np.zeros(len(rays), np.float32), np.zeros((len(rays), 3), np.float32)
    which = np.flatnonzero(ball)
    start = origins[which] + rays[which] * 4.2
    gone, _clear = march(start, rays[which], 6.5)
    met = gone < 6.5
    hit[which[met]] = 1
    light[which[met]] = shade(start[met] + rays[which[met]] * gone[met, None], rays[which[met]])
    layer = np.column_stack([light, hit]).reshape(u.shape + (4,))
    layer = cv2.resize(layer, None, fx=p.SS / 2, fy=p.SS / 2, interpolation=cv2.INTER_LINEAR)
    rows, cols = slice(90 * p.SS, 90 * p.SS + layer.shape[0]), slice(190 * p.SS, 190 * p.SS + layer.shape[1])
    picture[rows, cols] = picture[rows, cols] * (1 - layer[..., 3:]) + layer[..., :3]


def render(rng):
    """The picture, uint8 [480, 800, 3]."""
    x, y = p.grid(W, H)
    boards, mask = table(rng, x, y)
    picture = p.mix(room(rng, x, y), boards, mask)
    car(picture, x, y)
    return p.finish(picture, rng, vignette=0.45)


DRAGS = {
    "title": "Toy car",
    "grid": {"spacing": 24, "size": 2},
    "paths": p.drags_together(
        [[376, 172], [250, 285], [395, 262], [500, 285], [256, 330], [465, 352]],
        [[0, 0], [42, 10], [90, 22], [140, 36]],
        2.5,
    ),
    "pins": [[100, 100], [700, 100], [100, 430]],
}
