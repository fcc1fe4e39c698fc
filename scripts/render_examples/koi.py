"""A koi pond from above: three fish, lily pads and a lotus."""

import cv2
import numpy as np
import paint as p

W = H = 640
LIGHT = p.toward(-0.55, -0.6, 0.75)
# spine from nose to tail root, half width, colours (base, patches, spots), seed of the pattern
FISH = [
    ([(446, 92), (478, 128), (524, 146), (574, 136)], 18, ("#e9a63a", "#f6cf74", "#c9761d"), 5),
    ([(96, 440), (116, 496), (164, 530), (226, 532)], 22, ("#e8e2d8", "#20242c", "#d8482a"), 9),
    ([(210, 176), (252, 250), (330, 306), (432, 316)], 38, ("#fbf4e8", "#e2401f", "#f3622d"), 3),
]


def bottom(rng, x, y):
    """A bed of pebbles under green water that deepens towards one corner."""
    bed = np.full((H, W, 3), p.rgb("#173b34"), np.float32)
    tints = [p.rgb(c) for c in ("#5d7a5f", "#7c8a6a", "#3f6556", "#8f8a6d", "#4b6f6a", "#2f5548")]
    for _ in range(2600):
        at = rng.uniform(-10, W + 10, 2)
        size = rng.uniform(4, 9) + 3 * rng.pareto(3)
        axes, turn, tint = (size, size * rng.uniform(0.6, 0.95)), rng.uniform(0, 180), tints[rng.integers(6)]
        for grow, dx, light in (
            (1.18, 1.6, 0.25),
            (1.0, 0, 0.75),
            (0.78, -0.10 * size, 1.0),
            (0.45, -0.22 * size, 1.25),
        ):
            centre, radii = (np.array([at + dx, np.array(axes) * grow]) * 16).astype(int)
            cv2.ellipse(bed, centre, radii, turn, 0, 360, (tint * light).tolist(), -1, cv2.LINE_8, 4)
    bed = p.blur(cv2.resize(bed, x.shape[::-1], interpolation=cv2.INTER_LINEAR), 1.5)
    silt = p.fbm(rng, x.shape, (180, 180), 5, 0.55)
    picture = bed * (1.15 + 0.5 * silt)[..., None] * p.rgb("#b6f0d8")
    deep = p.step(40, 560, np.hypot(x - 210, y - 190))
    return p.mix(picture, p.rgb("#05302e"), 0.12 + 0.72 * deep)


def caustics(rng, shape):
    """The net that waves throw on what lies under them, 0..1."""
    bend = 14 * p.SS * p.fbm(rng, shape, (90, 90), 3, 0.5)
    net = np.zeros(shape, np.float32)
    rows, cols = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    for size in (64, 50):
        wave = p.fbm(rng, shape, (size, size), 2, 0.35)
        wave = cv2.remap(wave, cols + bend, rows - bend, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
        net += np.clip(1 - 5.5 * np.abs(wave), 0, 1) ** 2.2
    return np.clip(net, 0, 1.6) * np.clip(0.6 + 1.2 * p.fbm(rng, shape, (160, 160), 3), 0.1, 1.3)


def fin(x, y, root, heading, lean, length, spread):
    """A fan of soft rays that leaves `root` at angle `heading` + `lean`: opacity 0..1."""
    dx, dy = x - root[0], y - root[1]
    angle = np.arctan2(dy, dx) - heading - lean
    angle = (angle + np.pi) % (2 * np.pi) - np.pi
    reach = np.hypot(dx, dy) / length
    edge = 1 - 0.35 * (angle / spread) ** 2 + 0.05 * np.sin(angle * 34)
    fan = p.step(spread, spread * 0.86, np.abs(angle)) * p.step(edge, edge - 0.10, reach)
    rays = 0.62 + 0.38 * np.sin(angle * 46 + 2 * reach) ** 2
    return fan * rays * (1 - 0.50 * np.clip(reach, 0, 1) ** 1.5)


def fins(x, y, spine, width):
    """Opacity of all fins of a fish, and its tail."""
    ahead = np.gradient(spine, axis=0)
    heading = np.arctan2(ahead[:, 1], ahead[:, 0])
    total = np.zeros(x.shape, np.float32)
    for at, out, lean, length, spread in ((0.24, 0.75, 0.85, 1.55, 0.42), (0.58, 0.6, 0.55, 0.85, 0.36)):
        k = int(at * (len(spine) - 1))
        across = np.array([-np.sin(heading[k]), np.cos(heading[k])]) * width * out
        total = np.maximum(total, fin(x, y, spine[k] + across, heading[k], lean, width * length, spread))
        total = np.maximum(total, fin(x, y, spine[k] - across, heading[k], -lean, width * length, spread))
    for lean, length in ((0.24, 2.7), (0.0, 1.9), (-0.22, 2.5)):
        total = np.maximum(total, fin(x, y, spine[-7], heading[-1], lean, width * length, 0.27))
    return total


def skin(rng, shape, s, t, width, length, colours):
    """Pattern and scales of a koi: base colour, patches and spots; eyes beside the nose."""
    blotch, spots = p.fbm(rng, shape, (62, 62), 4, 0.45), p.fbm(rng, shape, (34, 34), 4, 0.5)
    base, patch, spot = (p.rgb(c) for c in colours)
    colour = p.mix(np.broadcast_to(base, shape + (3,)), patch, p.step(-0.06, 0.03, blotch))
    colour = p.mix(colour, spot, p.step(0.24, 0.34, spots) * 0.9)
    column = t / (0.19 * width)
    row = s * length / (0.19 * width) + 0.5 * (np.floor(column) % 2)
    cell = np.hypot(row % 1 - 0.15, column % 1 - 0.5)
    colour = colour * (1 - 0.20 * p.step(0.45, 0.80, cell) * p.step(0.20, 0.28, s))[..., None]
    for side in (-1, 1):
        eye = np.hypot((s - 0.085) * length, t - side * 0.42 * width) / (0.085 * width)
        colour = p.mix(colour, p.rgb("#0b0d10"), p.step(1.1, 0.8, eye))
    return colour


def fish(rng, x, y, spine, width, colours):
    """Colour and opacity of one koi, fins included."""
    along, t = p.along_curve(x, y, spine)
    length = np.linalg.norm(np.diff(spine, axis=0), axis=1).sum()
    s = along / length
    half = width * np.interp(s, [0, 0.015, 0.05, 0.11, 0.20, 0.32, 0.45, 0.60, 0.75, 0.88, 1],
                             [0, 0.22, 0.48, 0.70, 0.88, 0.99, 1.0, 0.84, 0.57, 0.34, 0.24])  # fmt: skip
    u = np.clip(t / np.maximum(half, 1e-3), -1, 1)
    body = np.clip((half - np.abs(t)) * p.SS + 0.5, 0, 1) * (s > 0) * (s < 1)
    ahead = np.gradient(spine, axis=0)
    ahead = ahead / np.linalg.norm(ahead, axis=1, keepdims=True)
    colour = skin(rng, x.shape, s, t, width, length, colours)
    k = np.clip(s * (len(spine) - 1), 0, len(spine) - 1).astype(int)
    n = np.stack([-ahead[k, 1] * u, ahead[k, 0] * u, np.sqrt(np.clip(1 - u * u, 0.02, 1))], -1)
    colour = colour * (0.34 + 0.80 * p.lambert(n, LIGHT, 0.3))[..., None]
    colour = colour + (p.shine(n, LIGHT, 24) * 0.35)[..., None]
    ridge = np.exp(-((t / (0.09 * width)) ** 2)) * p.step(0.30, 0.37, s) * p.step(0.72, 0.58, s)
    colour = p.mix(colour, colour * 0.5, ridge * 0.85)
    web = fins(x, y, spine, width)
    base, patch, _ = (p.rgb(c) for c in colours)
    veil = p.mix(base, patch, 0.20) * (0.70 + 0.35 * web)[..., None]
    return p.mix(veil, colour, body), np.maximum(body, 0.9 * web)


def pads(rng, picture, x, y):
    """Lily pads that float on the water, each with veins, a curled rim and a soft shadow; paints into `picture`."""
    for cx, cy, radius, turn in ((560, 470, 92, 2.6), (470, 590, 70, 4.4), (84, 96, 84, 0.7), (196, 40, 52, 2.0),
                                 (612, 318, 46, 3.6), (36, 610, 58, 5.4)):  # fmt: skip
        rows, cols = p.window(x, cx, cy, radius * 1.1 + 40)
        dx, dy = x[rows, cols] - cx, y[rows, cols] - cy
        angle = (np.arctan2(dy, dx) - turn + np.pi) % (2 * np.pi) - np.pi
        r = np.hypot(dx, dy) / radius
        wave = 1 + 0.018 * np.sin(angle * 7 + cx) + 0.012 * np.sin(angle * 13)
        shape = p.step(wave, wave - 2.0 / radius, r) * np.maximum(
            p.step(0.16, 0.19, np.abs(angle)), p.step(0.10, 0.06, r)
        )
        below = picture[rows, cols] * (1 - 0.62 * p.blur(p.shift(shape, 9, 13), 7))[..., None]
        vein = np.abs(np.sin(angle * 9.0)) * r
        vein = p.step(0.06, 0.0, vein - 0.02) * p.step(0.02, 0.2, r)
        mottle = p.fbm(rng, dx.shape, (22, 22), 5, 0.6)
        tint = p.ramp(r + 0.25 * mottle, [(0, "#a9bf5a"), (0.45, "#6f9a3e"), (0.9, "#47782f"), (1.05, "#6a5a30")])
        height = 5 * r**3 + 1.0 * mottle + 1.2 * vein + 0.5 * np.sin(angle * 9) * r
        light = 0.35 + 1.0 * p.lambert(p.slopes(height.astype(np.float32)), LIGHT, 0.1)
        leaf = p.mix(tint, p.rgb("#c6d68a"), vein * 0.55) * light[..., None]
        picture[rows, cols] = p.mix(below, leaf, shape)


def petal(picture, dx, dy, reach, broad, turn, brightness):
    """One cupped petal from the heart outwards along `turn`, with its shadow on the petals below."""
    u = (dx * np.cos(turn) + dy * np.sin(turn)) / reach
    v = (-dx * np.sin(turn) + dy * np.cos(turn)) / broad
    width = np.sqrt(np.clip(u, 0, 1) * np.clip(1 - u, 0, 1)) * 2 * (1 - 0.25 * u)
    mask = np.clip((width - np.abs(v)) * broad * p.SS + 0.5, 0, 1) * (u > 0) * (u < 1)
    cup = v / np.maximum(width, 0.05)
    facing = np.cos(turn) * LIGHT[0] + np.sin(turn) * LIGHT[1]
    light = 0.78 + 0.28 * facing * (0.4 + u) - 0.22 * cup**2 + 0.08 * np.sin(v * 9) * u
    tint = p.ramp(u, [(0, "#fff1d2"), (0.35, "#ffdbe2"), (0.8, "#f08cb0"), (1, "#d9538c")])
    tint = p.mix(tint * (light * brightness)[..., None], p.rgb("#ffe9f0"), p.step(0.80, 1.0, np.abs(cup)) * 0.25)
    return p.mix(picture * (1 - 0.30 * p.blur(mask, 2.0))[..., None], tint, mask)


def lotus(picture, x, y, cx, cy, size):
    """A pink lotus: four rings of petals from the outside in; paints into `picture`."""
    rows, cols = p.window(x, cx, cy, size + 30)
    dx, dy = x[rows, cols] - cx, y[rows, cols] - cy
    flower = picture[rows, cols] * (1 - 0.5 * np.exp(-((np.hypot(dx - 7, dy - 10) / (0.95 * size)) ** 4)))[..., None]
    for ring, (count, reach, broad) in enumerate(((9, 1.0, 0.30), (8, 0.82, 0.27), (7, 0.62, 0.22), (5, 0.40, 0.16))):
        for k in range(count):
            turn = 2 * np.pi * (k + 0.5 * (ring % 2)) / count + 0.35 * ring
            flower = petal(flower, dx, dy, reach * size, broad * size, turn, 0.86 + 0.06 * ring)
    heart = np.hypot(dx, dy) / (0.17 * size)
    seeds = 0.8 + 0.3 * np.sin(dx * 1.9) * np.sin(dy * 1.9)
    gold = p.rgb("#f4c542") * (seeds * (1.1 - 0.3 * heart))[..., None]
    picture[rows, cols] = p.mix(flower, gold, p.step(1.0, 0.85, heart))


def render(rng):
    """The picture, uint8 [640, 640, 3]."""
    x, y = p.grid(W, H)
    net = caustics(rng, x.shape)
    picture = bottom(rng, x, y) * (0.85 + 0.9 * p.blur(net, 1.5))[..., None]
    for points, width, colours, seed in FISH:
        spine = p.spline(points, samples=30)
        rows, cols = p.window(x, *spine.mean(0), 3 * width + np.ptp(spine, axis=0).max() / 2 + 20)
        colour, cover = fish(np.random.default_rng(seed), x[rows, cols], y[rows, cols], spine, width, colours)
        below = picture[rows, cols] * (1 - 0.65 * p.blur(p.shift(cover, 18, 28), 7))[..., None]
        colour = p.mix(
            colour * (0.92 + 0.40 * net[rows, cols])[..., None], p.rgb("#1f5a4c"), 0.05 if width > 30 else 0.25
        )
        picture[rows, cols] = p.mix(below, colour, cover)
    sheen = np.clip(p.fbm(rng, x.shape, (210, 120), 5, 0.5) + 0.05, 0, 1) * p.step(620, 120, y + 0.4 * x)
    picture = picture + (sheen * 0.10)[..., None] * p.rgb("#cfe6ff")
    pads(rng, picture, x, y)
    lotus(picture, x, y, 548, 436, 62)
    return p.finish(picture, rng, vignette=0.5)


DRAGS = {
    "title": "Koi pond",
    "grid": {"spacing": 22, "size": 2},
    "paths": p.drags_together(
        [[232, 222], [290, 268], [350, 306], [470, 322]], [[0, 0], [-30, -30], [-55, -66], [-68, -112]], 2.5
    ),
    "pins": [[548, 436], [90, 100], [480, 590]],
}
