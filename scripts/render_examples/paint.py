"""The painter's box of the example images: noise, masks, light, and the way from linear light to a JPEG.

A picture is float32 linear light [H * SS, W * SS, 3]; geometry is given in the pixels of the finished picture, so that
a scene reads the same at any supersampling. Everything random comes from a seeded generator: the same script gives the
same picture.
"""

import cv2
import numpy as np

SS = 3  # samples per finished pixel along each side


def rgb(hex_colour: str) -> np.ndarray:
    """'#rrggbb' (sRGB) as linear light, float32 [3]."""
    s = np.array([int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4).astype(np.float32)


def grid(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every sample in finished pixels, float32 [H * SS, W * SS] each."""
    x = (np.arange(width * SS, dtype=np.float32) + 0.5) / SS
    y = (np.arange(height * SS, dtype=np.float32) + 0.5) / SS
    return np.broadcast_to(x, (height * SS, width * SS)), np.broadcast_to(y[:, None], (height * SS, width * SS))


def window(x: np.ndarray, cx: float, cy: float, radius: float) -> tuple[slice, slice]:
    """Rows and columns of the samples within `radius` pixels of (cx, cy): for objects smaller than the picture."""
    rows, cols = ((max(0, int((c - radius) * SS)), max(1, int((c + radius) * SS))) for c in (cy, cx))
    return slice(*rows), slice(*cols)


def shift(picture: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """`picture` moved by (dx, dy) pixels; what comes in repeats the border."""
    move = np.float32([[1, 0, dx * SS], [0, 1, dy * SS]])
    return cv2.warpAffine(picture, move, picture.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


def step(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Smooth step: 0 below `low`, 1 above `high` (either order), an S in between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: np.ndarray, b: np.ndarray, t: np.ndarray | float) -> np.ndarray:
    """a where t = 0, b where t = 1; a mask t [H, W] blends pictures or colours [..., 3]."""
    t = t[..., None] if isinstance(t, np.ndarray) and t.ndim == 2 else t
    return a + (b - a) * t


def ramp(value: np.ndarray, stops: list[tuple[float, str]]) -> np.ndarray:
    """Colour [..., 3] along `stops` (value, '#rrggbb'), linear in between."""
    at = [s[0] for s in stops]
    colours = np.stack([rgb(s[1]) for s in stops])
    return np.stack([np.interp(value, at, colours[:, c]) for c in range(3)], -1).astype(np.float32)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Smooth noise of unit variance, [H, W]; `cell` = feature size (x, y) in samples."""
    h, w = shape
    coarse = rng.standard_normal((int(h / cell[1]) + 4, int(w / cell[0]) + 4)).astype(np.float32)
    zoom = np.array([[1 / cell[0], 0, 1], [0, 1 / cell[1], 1]], np.float32)
    return 1.5 * cv2.warpAffine(coarse, zoom, (w, h), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)


def fbm(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float], octaves=5, gain=0.5) -> np.ndarray:
    """Fractal noise, roughly within -1..1; `cell` = largest feature (x, y) in finished pixels.

    Each octave has half the size and `gain` times the height of the one before. Octaves that the finished pixels can
    carry are made at that size and enlarged once: it looks the same and takes a fraction of the time.
    """
    h, w = shape
    coarse, fine = np.zeros((h // SS, w // SS), np.float32), np.zeros(shape, np.float32)
    norm = 2 * sum(gain ** (2 * k) for k in range(octaves)) ** 0.5
    for k in range(octaves):
        size = (cell[0] / 2**k, cell[1] / 2**k)
        if min(size) >= 3:
            coarse += gain**k / norm * noise(rng, coarse.shape, size)
        else:
            fine += gain**k / norm * noise(rng, shape, (size[0] * SS, size[1] * SS))
    return fine + cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)


def line_noise(rng: np.random.Generator, length: int, cell: float, octaves=6, gain=0.5) -> np.ndarray:
    """Fractal noise along a line, [length] samples; `cell` in finished pixels."""
    total = np.zeros(length, np.float32)
    at = np.arange(length) / SS
    for k in range(octaves):
        size = cell / 2**k
        knots = rng.standard_normal(int(length / SS / size) + 6)
        u = at / size + 1
        i = u.astype(int)
        f = u - i
        f = f * f * (3 - 2 * f)
        total += gain**k * (knots[i] * (1 - f) + knots[i + 1] * f)
    return total


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, sigma in finished pixels; wide blurs are worked out on a smaller copy."""
    sigma *= SS
    h, w = picture.shape[:2]
    shrink = max(1, int(sigma / 4))
    small = cv2.resize(picture, (max(1, w // shrink), max(1, h // shrink)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), max(sigma / shrink, 0.01), borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR) if shrink > 1 else small


def polygon(shape: tuple[int, int], points: np.ndarray) -> np.ndarray:
    """Mask 0..1 of the polygon through `points` [n, 2] in finished pixels."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(np.asarray(points) * SS * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def stroke(shape: tuple[int, int], points: np.ndarray, width: float) -> np.ndarray:
    """Mask 0..1 of a line of `width` pixels through `points` [n, 2]."""
    mask = np.zeros(shape, np.uint8)
    at = np.round(np.asarray(points) * SS * 16).astype(np.int32)
    cv2.polylines(mask, [at], False, 255, max(1, round(width * SS)), cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def spline(points: list[tuple[float, float]], closed=False, samples=24) -> np.ndarray:
    """Catmull-Rom curve through `points`, float32 [n, 2]."""
    p = np.asarray(points, np.float32)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, samples, endpoint=False, dtype=np.float32)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate(pieces + ([] if closed else [p[-2:-1]]))


def along_curve(x: np.ndarray, y: np.ndarray, curve: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every sample, in pixels: how far along `curve` [n, 2] its nearest point lies, and signed distance from it."""
    along, side = np.zeros(x.shape, np.float32), np.zeros(x.shape, np.float32)
    best = np.full(x.shape, np.inf, np.float32)
    ahead = np.gradient(curve, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    gone = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    for (px, py), (ax, ay), s in zip(curve.tolist(), ahead.tolist(), gone.tolist(), strict=True):
        dx, dy = x - px, y - py
        d = dx * dx + dy * dy
        nearer = d < best
        best = np.where(nearer, d, best)
        side = np.where(nearer, ax * dy - ay * dx, side)
        along = np.where(nearer, s + ax * dx + ay * dy, along)
    return along, np.copysign(np.sqrt(best), side)


def slopes(height: np.ndarray) -> np.ndarray:
    """Unit normals [H, W, 3] (x right, y down, z to the eye) of a height field in finished pixels."""
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=SS / 8)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=SS / 8)
    n = np.stack([-dx, -dy, np.ones_like(dx)], -1)
    return n / np.linalg.norm(n, axis=-1, keepdims=True)


def toward(x: float, y: float, z: float) -> np.ndarray:
    """Unit vector float32 [3]."""
    v = np.array([x, y, z], np.float32)
    return v / np.linalg.norm(v)


def lambert(normals: np.ndarray, light: np.ndarray, wrap=0.0) -> np.ndarray:
    """Diffuse light 0..1; `wrap` lets it reach round the edge, as in skin, cloth and leaves."""
    return np.clip((normals @ light + wrap) / (1 + wrap), 0, 1)


def shine(normals: np.ndarray, light: np.ndarray, power: float) -> np.ndarray:
    """Blinn highlight for an eye straight in front."""
    half = light + np.array([0, 0, 1], np.float32)
    return np.clip(normals @ (half / np.linalg.norm(half)), 0, 1) ** power


def finish(picture: np.ndarray, rng: np.random.Generator, bloom=0.12, vignette=0.35, grain=0.006) -> np.ndarray:
    """Develop linear light [H * SS, W * SS, 3] into sRGB, uint8 [H, W, 3]: bloom, vignette, film curve, grain."""
    bright = np.clip(picture - 0.7, 0, 4)
    picture = picture + bloom * (blur(bright, 6) + blur(bright, 24))
    h, w = picture.shape[:2]
    small = cv2.resize(picture, (w // SS, h // SS), interpolation=cv2.INTER_AREA)
    h, w = small.shape[:2]
    v, u = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(np.float32)
    small = small * (1 - vignette * step(0.5, 2.0, u * u + v * v))[..., None]
    shoulder = np.where(small > 0.6, 0.6 + 0.4 * (1 - np.exp(-(small - 0.6) / 0.4)), small)
    shoulder = np.clip(shoulder, 0, 1)
    s = np.where(shoulder <= 0.0031308, shoulder * 12.92, 1.055 * shoulder ** (1 / 2.4) - 0.055)
    s = s + grain * rng.standard_normal((h, w, 1)).astype(np.float32)
    return np.clip(s * 255 + 0.5, 0, 255).astype(np.uint8)


def drags_together(starts: list[list[float]], way: list[list[float]], seconds: float) -> list[dict]:
    """One path from each of `starts` (pixels), all going the same `way` (offsets, the first one 0, 0)."""
    return [{"points": [[x + dx, y + dy] for dx, dy in way], "seconds": seconds} for x, y in starts]
