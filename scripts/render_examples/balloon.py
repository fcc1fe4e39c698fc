"""Hot-air balloon over misty hills at sunrise."""

import numpy as np
import paint as p

W, H = 800, 480
SUN = (655.0, 262.0)
BALLOON = (300.0, 168.0, 108.0)  # centre and radius of the envelope


def sky(rng, x, y):
    """Gradient, the sun's glow, and thin clouds lit from the sun's side."""
    picture = p.ramp(y, [(0, "#3f6fa8"), (120, "#7fa3c6"), (215, "#e6c3a8"), (275, "#ffd9a0"), (330, "#f6c79a")])
    d = np.hypot(x - SUN[0], (y - SUN[1]) * 1.25)
    picture = picture + np.exp(-d / 190)[..., None] * p.rgb("#ff9a4a") * 0.75
    picture = picture + np.exp(-((d / 60) ** 2))[..., None] * p.rgb("#ffe3b0") * 1.2
    picture = p.mix(picture, p.rgb("#fff3d8") * 3.0, p.step(25, 22, np.hypot(x - SUN[0], y - SUN[1])))
    cloud = p.fbm(rng, x.shape, (260, 60), 6, 0.55)
    density = p.step(0.02, 0.75, cloud + 0.25 * np.sin(y / 40))
    lit = np.clip(0.55 + 1.6 * (cloud - p.shift(cloud, -10, -4)), 0, 1.3)
    colour = p.mix(p.rgb("#8f8fae"), p.rgb("#ffe2c4") * 1.15, lit)
    return p.mix(picture, colour, density * 0.75 * p.step(300, 150, y))


def forest(rng, x, y, line, size):
    """Mask of conifers of up to `size` pixels that stand along `line` [W * SS], and where they catch the light."""
    mask, lit = np.zeros(x.shape, np.float32), np.zeros(x.shape, np.float32)
    for centre in np.cumsum(rng.uniform(size * 0.10, size * 0.42, int(W / size * 5))):
        if centre > W + size:
            break
        tall = size * rng.uniform(0.45, 1.0)
        foot = line[min(len(line) - 1, int(centre * p.SS))] + 0.25 * size
        columns = slice(max(0, int((centre - tall / 2) * p.SS)), int((centre + tall / 2) * p.SS))
        rows = slice(max(0, int((foot - tall * 1.4) * p.SS)), int((foot + 2) * p.SS))
        dx = x[rows, columns] - centre
        down = np.clip((y[rows, columns] - (foot - 1.25 * tall)) / (1.25 * tall), 0, 1)
        tiers = down * 9 + 0.35 * np.sin(dx * 3 + centre)
        width = tall * 0.27 * down**0.8 * (0.55 + 0.6 * (tiers - np.floor(tiers)))
        tree = np.clip((width - np.abs(dx)) * p.SS + 0.5, 0, 1) * (down > 0)
        mask[rows, columns] = np.maximum(mask[rows, columns], tree)
        side = p.step(-0.2, 0.9, dx / np.maximum(width, 0.3)) * (0.4 + 0.6 * (tiers - np.floor(tiers)))
        lit[rows, columns] = lit[rows, columns] * (1 - tree) + tree * side
    return mask, lit


def hills(rng, picture, x, y):
    """Seven ridges from far to near, each with its own haze and a bank of mist at its foot."""
    rows = [  # base, height, cell, trees, colour, lit colour
        (285, 22, 260, 0, "#c7a3a0", "#f3c79f"),
        (305, 20, 200, 0, "#a68f9d", "#e5b394"),
        (325, 18, 170, 0, "#857f97", "#cfa08c"),
        (352, 13, 170, 7, "#5f6a85", "#a98a80"),
        (382, 13, 190, 15, "#41546a", "#8f806c"),
        (418, 11, 210, 28, "#283e49", "#79744e"),
        (466, 11, 260, 52, "#14262a", "#5d5c34"),
    ]
    for k, (base, height, cell, trees, dark, light) in enumerate(rows):
        line = base - height * p.line_noise(rng, W * p.SS, cell, 3 if trees else 6)
        mask = np.clip((y - line) * p.SS + 0.5, 0, 1)
        if trees:
            wood, lit = forest(rng, x, y, line, trees)
            mask = np.maximum(mask, wood)
        else:
            relief = p.slopes(9 * p.fbm(rng, x.shape, (70, 30), 6, 0.6))
            lit = p.lambert(relief, p.toward(0.8, -0.4, 0.35), 0.25)
        glow = lit * (0.25 + 1.2 * np.exp(-np.abs(x - SUN[0]) / 420))
        grain = 1 + (0.05 + 0.03 * k) * p.fbm(rng, x.shape, (3 + trees / 5, 4 + trees / 3), 3, 0.7)
        colour = p.mix(p.rgb(dark), p.rgb(light), np.clip(glow, 0, 1)) * grain[..., None]
        picture = p.mix(picture, colour, mask)
        mist = p.step(line - 0.3 * trees, line + 42 + 0.6 * trees, y) * mask * (0.85 - 0.07 * k)
        drift = np.clip(0.62 + 0.7 * p.fbm(rng, x.shape, (150, 20), 4), 0, 1)
        warm = p.mix(p.rgb("#c4bcc9"), p.rgb("#ffd9ae"), np.exp(-np.abs(x - SUN[0]) / 260))
        picture = p.mix(picture, warm * (1 - 0.05 * k), mist * drift)
    return picture


def envelope(v):
    """Radius of the envelope at height v (both in units of the largest radius; -1 = crown, 1.42 = mouth)."""
    round_part = np.sqrt(np.clip(1 - v * v, 0, 1))
    taper = np.sqrt(1 - 0.42**2) - (v - 0.42) * 0.46 - 0.24 * np.clip(v - 0.42, 0, 1) ** 2
    return np.where(v < 0.42, round_part, taper) * (v < 1.42)


def cloth(rng, x, y, u, v, radius):
    """Colour, normals and mask of the envelope: 20 bulging gores in two patterns."""
    across = np.clip(u / np.maximum(radius, 1e-3), -1, 1)
    turn = (np.arcsin(across) + 0.35) / (2 * np.pi) * 20
    gore, part = np.floor(turn), turn - np.floor(turn)
    zigzag = 0.10 * np.abs(part - 0.5) * 2
    band = v + zigzag
    colour = np.where((gore % 2 == 0)[..., None], p.rgb("#d8362a"), p.rgb("#f0dfc2"))
    colour = np.where(((band > -0.18) & (band < 0.28))[..., None], p.rgb("#1f5f78"), colour)
    colour = np.where(((band > -0.07) & (band < 0.17))[..., None], p.rgb("#f2a93b"), colour)
    colour = np.where((band < -0.80)[..., None], p.rgb("#1f5f78"), colour)
    colour = np.where((v > 1.06)[..., None], p.rgb("#8f1f1d"), colour)
    slope = np.where(v < 0.42, v, 0.55)
    bulge = (part - 0.5) * 0.55
    nx = np.sin(np.arcsin(across) + bulge)
    nz = np.sqrt(np.clip(1 - across**2, 0.0, 1)) + 0.02
    n = np.stack([nx, np.broadcast_to(slope, nx.shape), nz * np.sqrt(np.clip(1 - slope**2, 0.05, 1))], -1)
    n = n + 0.03 * np.stack([p.fbm(rng, x.shape, (5, 9), 3), p.fbm(rng, x.shape, (9, 5), 3), 0 * x], -1)
    n /= np.linalg.norm(n, axis=-1, keepdims=True)
    seam = 0.62 + 0.38 * p.step(0.0, 0.07, np.minimum(part, 1 - part))
    return colour * seam[..., None], n


def balloon(rng, picture, x, y, cx, cy, size):
    """The envelope, its ropes and the basket, lit by a low sun and by the burner."""
    u, v = (x - cx) / size, (y - cy) / size
    radius = envelope(v)
    colour, n = cloth(rng, x, y, u, v, radius)
    mask = np.clip((radius - np.abs(u)) * size * p.SS + 0.5, 0, 1) * (v > -1.02)
    key = p.lambert(n, p.toward(0.86, 0.12, 0.42), 0.25)
    fill = 0.5 - 0.5 * n[..., 1]
    rim = (1 - np.clip(n[..., 2], 0, 1)) ** 3 * p.step(-0.1, 0.7, n[..., 0])
    burner = np.exp(-(((v - 1.15) / 0.42) ** 2)) * 0.55
    light = key[..., None] * p.rgb("#ffd9a4") * 1.75 + (0.10 + 0.20 * fill)[..., None] * p.rgb("#9fbbe6")
    light = light + burner[..., None] * p.rgb("#ff9d45")
    shaded = colour * light + (rim * 0.5)[..., None] * p.rgb("#ffcf94")
    shaded = shaded + (p.shine(n, p.toward(0.86, 0.05, 0.45), 30) * 0.14)[..., None]
    picture = p.mix(picture, shaded, mask)
    top, bottom, half = cy + 1.62 * size, cy + 1.84 * size, 0.135 * size
    for side in (-1, -0.35, 0.35, 1):
        rope = p.stroke(x.shape, [(cx + side * 0.2 * size, cy + 1.40 * size), (cx + side * half, top)], 0.012 * size)
        picture = p.mix(picture, p.rgb("#3a2a20"), rope)
    flame = np.exp(-(((x - cx) / (0.035 * size)) ** 2) - ((y - cy - 1.47 * size) / (0.075 * size)) ** 2)
    picture = picture + flame[..., None] * p.rgb("#ffb35a") * 2.2
    box = np.array([(cx - half, top), (cx + half, top), (cx + half * 0.86, bottom), (cx - half * 0.86, bottom)])
    weave = 0.75 + 0.25 * np.sin(x * 2.4 + np.floor(y / 2.1) * np.pi) * np.sin(y * 3.0)
    lit = 0.28 + 0.95 * p.step(cx - half, cx + half, x)
    wicker = p.rgb("#8a5a30") * (weave * lit)[..., None]
    wicker = p.mix(wicker, p.rgb("#c98d52") * 1.1, p.step(top + 0.035 * size, top + 0.02 * size, y))
    return p.mix(picture, wicker, p.polygon(x.shape, box))


def render(rng):
    """The picture, uint8 [480, 800, 3]."""
    x, y = p.grid(W, H)
    picture = sky(rng, x, y)
    picture = balloon(rng, picture, x, y, 560, 205, 17)
    picture = p.blur(hills(rng, picture, x, y), 0.35)
    picture = balloon(rng, picture, x, y, *BALLOON)
    shafts = np.exp(-np.hypot(x - SUN[0], y - SUN[1]) / 260) * 0.16
    return p.finish(picture + shafts[..., None] * p.rgb("#ffb877"), rng)


DRAGS = {
    "title": "Balloon at sunrise",
    "grid": {"spacing": 14, "size": 2},
    "paths": p.drags_together(
        [[300, 95], [228, 165], [300, 170], [372, 165], [300, 250], [300, 362]],
        [[0, 0], [30, -18], [72, -30], [120, -34]],
        2.5,
    ),
    "pins": [[120, 400], [400, 420], [690, 380], [558, 160]],
}
