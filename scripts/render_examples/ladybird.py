"""A ladybird on a leaf after rain."""

import numpy as np
import paint as p

W, H = 480, 800
LIGHT = p.toward(-0.50, -0.62, 0.70)
BEETLE = (236.0, 420.0, 92.0, -1.16)  # centre, half length, heading in radians (up and to the right)
LEAF = [(20, 812), (-16, 640), (10, 480), (84, 330), (190, 214), (322, 128), (446, 84), (476, 220), (470, 370),
        (420, 520), (330, 660), (214, 760), (130, 820)]  # fmt: skip
RIB = [(60, 830), (120, 690), (206, 520), (300, 340), (380, 200), (446, 86)]


def garden(rng, x, y):
    """Far leaves and light, well out of focus."""
    picture = p.ramp(
        y + 0.35 * x, [(0, "#e9f2b0"), (200, "#a9cc6c"), (460, "#4f8a45"), (760, "#1f4f33"), (1000, "#12352a")]
    )
    patches = p.fbm(rng, x.shape, (150, 170), 3, 0.5)
    picture = p.mix(picture, p.rgb("#1d4a30"), p.step(0.0, 0.6, patches) * 0.7)
    picture = p.mix(picture, p.rgb("#dfe89a"), p.step(0.1, 0.7, -patches) * 0.5)
    picture = p.blur(picture, 12)
    for _ in range(46):
        cx, cy, r = rng.uniform(-10, W + 10), rng.uniform(-10, H), rng.uniform(10, 34)
        d = np.hypot(x - cx, y - cy)
        light = (
            p.step(r + 1.5, r - 1.5, d) * (0.6 + 0.4 * (d / r) ** 3) * rng.uniform(0.03, 0.26) * p.step(760, 100, cy)
        )
        picture = picture + light[..., None] * p.rgb(("#f6ffd0", "#d8f29a", "#fff3b8", "#b9e68a")[rng.integers(4)])
    return p.blur(picture, 1.6)


def leaf(rng, picture, x, y):
    """The leaf: ribs, bulging fields between them, a net of fine veins, light through the blade."""
    mask = p.polygon(x.shape, p.spline(LEAF, closed=True))
    s, t = p.along_curve(x, y, p.spline(RIB, samples=36))
    reach = np.abs(t)
    vein = (s - 0.75 * reach - 0.0009 * reach**2 + 6 * np.sin(reach / 30)) / 62 + np.where(t > 0, 0.5, 0.0)
    off = np.abs(vein - np.round(vein)) * 62
    main = np.exp(-((reach / np.clip(7.5 - s / 120, 1.5, 7)) ** 2))
    side_vein = np.exp(-((off / (2.6 - 0.006 * reach)) ** 2)) * p.step(0, 8, reach)
    cells = p.fbm(rng, x.shape, (13, 13), 2, 0.5)
    net = np.clip(1 - 7 * np.abs(cells), 0, 1)
    mottle = p.fbm(rng, x.shape, (120, 120), 5, 0.55)
    field = np.abs(np.sin(np.pi * vein))
    height = 7 * field**0.7 + 6.0 * main + 1.6 * cells - 0.6 * net + 3 * mottle
    n = p.slopes(p.blur(height.astype(np.float32), 0.7))
    light = 0.40 + 0.85 * p.lambert(n, LIGHT, 0.15)
    tint = p.ramp(
        0.55 * mottle + 0.35 * field + y / 1500, [(0, "#9cc94a"), (0.4, "#6aa836"), (0.8, "#3f8a2e"), (1.2, "#2c6a2a")]
    )
    tint = p.mix(tint, p.rgb("#c9e58a"), np.clip(0.9 * main + 0.5 * side_vein + 0.10 * net, 0, 1))
    colour = tint * light[..., None] + (p.shine(n, LIGHT, 18) * 0.16)[..., None] * p.rgb("#eaffff")
    edge = p.blur(mask, 2.2)
    colour = colour + (p.step(1.0, 0.55, edge) * 0.35)[..., None] * p.rgb("#d8f08a")
    shade = p.blur(p.shift(mask, 26, 40), 20)
    picture = picture * (1 - 0.55 * shade)[..., None]
    picture = p.mix(picture, colour, mask)
    blurred = p.blur(picture, 3.2)
    return p.mix(p.mix(picture, blurred, p.step(640, 790, y)), blurred, p.step(210, 90, y) * 0.9)


def drops(rng, picture, x, y):
    """Drops of water: dark towards the light, bright where they gather it, one sharp highlight; painted in place."""
    blade = p.spline(LEAF, closed=True)
    inside = p.polygon(x.shape, blade)
    bx, by, size, _ = BEETLE
    placed = 0
    while placed < 34:
        cx, cy, r = rng.uniform(0, W), rng.uniform(190, 700), 3.0 + min(2.2 * rng.pareto(1.6), 13)
        if inside[int(cy * p.SS), int(cx * p.SS)] < 1 or np.hypot(cx - bx, cy - by) < 1.5 * size + r:
            continue
        placed += 1
        rows, cols = p.window(x, cx, cy, 2.4 * r + 4)
        dx, dy = (x[rows, cols] - cx) / r, (y[rows, cols] - cy) / r
        d = np.hypot(dx, dy)
        mask = np.clip((1 - d) * r * p.SS + 0.5, 0, 1)
        toward = dx * LIGHT[0] + dy * LIGHT[1]
        below = picture[rows, cols]
        shadow = np.exp(-((np.hypot(dx - 0.30, dy - 0.38) / 1.02) ** 6)) * 0.5
        glow = np.exp(-((np.hypot(dx - 0.42, dy - 0.52) / 0.42) ** 2)) * 0.8
        drop = below * (0.62 - 0.75 * toward * np.clip(d, 0, 1))[..., None] + (glow * mask)[..., None] * p.rgb(
            "#d9f58a"
        )
        rim = np.clip(d, 0, 1) ** 8 * 0.35
        drop = drop * (1 - rim)[..., None]
        glint = np.exp(-((np.hypot(dx + 0.36, dy + 0.44) / 0.17) ** 4)) + 0.3 * np.exp(
            -((np.hypot(dx - 0.45, dy - 0.5) / 0.12) ** 2)
        )
        drop = drop + (glint * 1.6)[..., None]
        picture[rows, cols] = p.mix(below * (1 - shadow * (1 - mask))[..., None], drop, mask)


def dome(a, b, centre, radii, heading):
    """Normals [.., 3] on screen and mask of an ellipsoid seen from above; a forward, b to the right."""
    u, v = (a - centre) / radii[0], b / radii[1]
    r = np.hypot(u, v)
    z = np.sqrt(np.clip(1 - r * r, 0.0, 1))
    na, nb, nz = u / radii[0], v / radii[1], z / radii[2]
    c, s = np.cos(heading), np.sin(heading)
    n = np.stack([na * c - nb * s, na * s + nb * c, nz + 1e-4], -1)
    return n / np.linalg.norm(n, axis=-1, keepdims=True), np.clip((1 - r) * BEETLE[2] * 0.8 * p.SS + 0.5, 0, 1)


def lacquer(colour, n):
    """A glossy shell: soft light, a window's and the sky's reflection, green light from the leaf at the edge."""
    light = 0.22 + 0.95 * p.lambert(n, LIGHT, 0.12)
    bounce = 2 * n[..., 2:] * n - np.float32([0, 0, 1])
    pane = p.step(-0.78, -0.70, bounce[..., 0]) * p.step(-0.22, -0.30, bounce[..., 0])
    pane *= p.step(-0.92, -0.84, bounce[..., 1]) * p.step(-0.34, -0.42, bounce[..., 1])
    pane *= 1 - 0.75 * p.step(0.03, 0.015, np.abs(bounce[..., 0] + 0.5))
    rim = np.clip(1 - n[..., 2], 0, 1) ** 3
    sky = p.step(0.2, -0.9, bounce[..., 1]) * (0.05 + 0.5 * rim)
    shaded = colour * light[..., None] + (0.95 * pane)[..., None] + sky[..., None] * p.rgb("#dff0ff") * 0.6
    return shaded + (rim * p.step(0.0, 0.9, n[..., 1]) * 0.30)[..., None] * p.rgb("#a8d860")


def limbs(x, a, b):
    """Opacity of six jointed legs and two feelers (polylines in the beetle's own frame, half lengths)."""
    cx, cy, size, heading = BEETLE
    turn = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
    total = np.zeros(x.shape, np.float32)
    for points, width in (
        ([(0.40, 0.50), (0.62, 0.86), (0.86, 0.98), (0.96, 0.96)], 4.2),
        ([(0.05, 0.70), (0.08, 1.05), (-0.06, 1.22), (-0.16, 1.24)], 4.6),
        ([(-0.40, 0.62), (-0.66, 0.94), (-0.94, 1.00), (-1.04, 0.98)], 4.6),
        ([(1.02, 0.16), (1.17, 0.27), (1.28, 0.27)], 2.6),
    ):
        for side in (-1, 1):
            line = p.spline([(px, py * side) for px, py in points]) @ turn * size + (cx, cy)
            total = np.maximum(total, p.stroke(x.shape, line, width))
    return total


def beetle(rng, picture, x, y):
    """Shadow, legs, head, neck shield and wing cases with their seven spots."""
    cx, cy, size, heading = BEETLE
    dx, dy = (x - cx) / size, (y - cy) / size
    a, b = dx * np.cos(heading) + dy * np.sin(heading), -dx * np.sin(heading) + dy * np.cos(heading)
    legs = limbs(x, a, b)
    shell_n, shell = dome(a, b, -0.12, (0.88, 0.80, 0.74), heading)
    neck_n, neck = dome(a, b, 0.62, (0.30, 0.50, 0.40), heading)
    head_n, head = dome(a, b, 0.88, (0.20, 0.27, 0.22), heading)
    cover = np.maximum.reduce([shell, neck, head])
    shadow = np.maximum(p.blur(p.shift(cover, 17, 21), 8), 0.8 * p.blur(p.shift(legs, 5, 6), 2.5))
    contact = p.blur(cover, 5)
    picture = picture * (1 - 0.80 * np.maximum(shadow, 0.7 * contact))[..., None]
    sheen = 0.35 + 0.65 * p.step(0.2, 0.9, p.blur(p.shift(legs, 0.8, 0.9), 0.6))
    picture = p.mix(picture, p.mix(p.rgb("#3a332c"), p.rgb("#0a0908"), sheen), legs)
    black = np.broadcast_to(p.rgb("#0d0b0b"), x.shape + (3,))
    patch = np.exp(-((np.hypot(a - 0.93, np.abs(b) - 0.15) / 0.075) ** 4))
    picture = p.mix(picture, lacquer(p.mix(black, p.rgb("#f2ead8"), patch), head_n), head)
    collar = p.step(0.13, 0.10, np.hypot((a - 0.70) * 0.9, (np.abs(b) - 0.37) * 0.8))
    picture = p.mix(picture, lacquer(p.mix(black, p.rgb("#f2ead8"), collar), neck_n), neck)
    red = p.ramp(a + 0.12 * p.fbm(rng, x.shape, (60, 60), 4), [(-1.0, "#a80f0a"), (-0.2, "#d81e10"), (0.7, "#ee4419")])
    spots = np.zeros(x.shape, np.float32)
    for at, out, r in ((0.60, 0.0, 0.17), (0.28, 0.44, 0.155), (-0.22, 0.30, 0.175), (-0.58, 0.42, 0.13)):
        d = np.hypot(a - at, (np.abs(b) - out) * 1.05)
        spots = np.maximum(spots, p.step(r + 0.012, r - 0.012, d))
    colour = p.mix(red, p.rgb("#100c0c"), spots)
    seam = np.exp(-((b / 0.013) ** 2)) * p.step(0.75, 0.6, a)
    return p.mix(picture, lacquer(colour * (1 - 0.8 * seam)[..., None], shell_n), shell)


def render(rng):
    """The picture, uint8 [800, 480, 3]."""
    x, y = p.grid(W, H)
    picture = leaf(rng, garden(rng, x, y), x, y)
    drops(rng, picture, x, y)
    return p.finish(beetle(rng, picture, x, y), rng, vignette=0.5)


DRAGS = {
    "title": "Ladybird on a leaf",
    "grid": {"spacing": 46, "size": 3},
    "paths": [{"points": [[236, 420], [262, 372], [292, 322], [322, 268]], "seconds": 2.5}],
    "pins": [[70, 640], [420, 130], [414, 474]],
}
