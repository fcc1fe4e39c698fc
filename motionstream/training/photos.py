"""Free-licence pictures for training, taken from Debian packages.

`python -m motionstream.training.photos --out DIR` downloads the packages of `PACKAGES` with `apt-get download`, unpacks
them with `dpkg -x`, and writes `DIR/photos/*.jpg`, `DIR/cutouts/*.png`, `DIR/objects/*.png` and `DIR/LICENCES.json`.
Some cut-outs are people and animals drawn from a game's animated models, see `figures`.
Objects are what was outlined by hand in some of the photos, in `outlines.json`: whole things with head, legs and tail.
Some of these photos are kept from training: a library of its own, `DIR/held-out`, for `eval things`.
"""

import argparse
import fnmatch
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from motionstream.errors import InputError, make_folder, writing
from motionstream.model.checkpoint import read_json
from motionstream.training import figures

PHOTO_SIDE = 512  # longest short side of a stored photo, pixels
CUTOUT_SIDE = 256  # longest long side of a stored cut-out, pixels
MIN_PHOTO_SIDE, MIN_CUTOUT_SIDE = 200, 40
FIGURES = 7  # drawn of each animated model
MAX_PIXELS = 40_000_000
NEAR = 0.008  # of a photo's shorter side: so far from a thing's outline its edge may be
SOFT = 0.8  # standard deviation, pixels, of the edge of an object
HELD_OUT = "held-out"  # the part of a library that no training sees
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
MODELS = {".g3d"}
NOT_FREE = re.compile(r"\bN[CD]\b|non-?free|missing|unknown|^none$|^$", re.I)


@dataclass(frozen=True)
class Package:
    """One Debian package: where its pictures lie (glob patterns on the path below the unpacked root) and its licence.

    `licence` stands for files that no stanza of the package's machine-readable copyright file names.
    """

    name: str
    licence: str
    photos: tuple[str, ...] = ()
    cutouts: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    limit: int = 10_000  # most cut-out files looked at, spread evenly over the sorted paths
    models: tuple[str, ...] = ()  # of which cut-outs are drawn


def _below(folder: str, names: str, end: str) -> tuple[str, ...]:
    return tuple(f"*/{folder}/{name}{end}" for name in names.split())


PACKAGES = (
    Package("gcompris-qt-data", "GPL-3+",
            photos=(*_below("activities", "categorization explore_farm_animals explore_world_animals explore_monuments "
                            "explore_world_music", "/*.webp"), "*/details/resource/image/*.webp"),
            cutouts=_below("activities", "lang/resource/words_sample solar_system leftright", "/*.webp"),
            reject=("*/alphabets/*", "*/numbers/*", "*/words_sample/*[0-9]*", "*/details/*_*[0-9].webp")),
    Package("endless-sky-high-dpi", "CC-BY-SA-4.0", photos=("*/images/land/*.jpg", "*/images/scene/*.jpg"),
            cutouts=("*/images/ship/*.png", "*/images/outfit/*.png"), limit=250),
    Package("scratch", "CC-BY-SA-3.0", photos=("*/Media/Backgrounds/*",), cutouts=("*/Costumes/*.png",),
            reject=("*/Letters/*", "*/Backgrounds/Abstract*")),
    Package("tuxpaint-data", "GPL-2+", photos=("*/templates/*.jpg",)),
    Package("lomiri-wallpapers-16.04", "CC-BY-4.0", photos=("*/backgrounds/*",)),
    Package("lomiri-wallpapers-20.04", "CC-BY-4.0", photos=("*/backgrounds/*",)),
    Package("ukui-wallpapers", "CC-BY-SA-3.0", reject=("*/warty*",), photos=_below(
        "*", "bridgecity bridgecity2 flamingos horse house mountain* sea still-life sunf", ".jpg")),
    # In Debian 13 and later only:
    Package("budgie-backgrounds", "CC0-1.0", photos=("*/backgrounds/*.jpg",), reject=("*/abstract*",)),
    Package("mate-backgrounds", "GPL-2+", photos=("*/nature/*",)),
    Package("lxqt-themes", "LGPL-2.1+", photos=("*/lxqt/wallpapers/*.jpg",)),
    Package("palapeli-data", "GPL-2+", photos=("*/collection/*.jpg",)),
    Package("plasma-workspace-wallpapers", "GPL-2+", photos=_below(
        "wallpapers", "Autumn BytheWater ColorfulCups EveningGlow FallenLeaf Grey Kite OneStandsOut Path",
        "/*/2560x1600.jpg")),
    Package("kalzium-data", "GPL-2+", photos=("*/toolpics/*",)),
    Package("tuxpaint-stamps-default", "GPL-2", cutouts=("*/stamps/*.png",), reject=("*/symbols/*",)),
    Package("openclipart-png", "public domain", limit=1200, cutouts=_below(
        "png", "animals food people plants recreation transportation tools office containers electronics buildings "
        "education science weather computer/hardware", "/*.png"), reject=("*/stickmen/*", "*/smilies/*", "*sign*")),
    Package("megaglest-data", "CC-BY-SA-3.0", models=_below("units/*/models", "*walk* *run* *stand* *attack*", ".g3d")),
)


def unpack(package: str, folder: Path) -> Path:
    """Download and unpack one Debian package to `folder/package`; returns that root. RuntimeError when apt cannot."""
    root = folder.resolve() / package
    if root.exists():
        return root
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not on this machine: run this tool on Debian or Ubuntu")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:  # so that what is there is whole
        _run(["apt-get", "download", package], scratch, "if this release of Debian has it, run apt-get update")
        unfinished = Path(scratch, "root")
        _run(["dpkg", "-x", *map(str, Path(scratch).glob("*.deb")), str(unfinished)], scratch, "make room")
        for path in list(unfinished.rglob("*.rcc")):
            for name, data in resources(path.read_bytes()):
                target = unfinished / "rcc" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        unfinished.rename(root)
    return root


def _run(command: list[str], folder: str, remedy: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}; {remedy}")


def resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The pictures in a Qt resource file (format 1 to 3): (path, content); zstd-compressed entries are left out."""
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    stack = [(0, "")]
    while stack:
        index, folder = stack.pop()
        entry = tree + index * (14 if version < 2 else 22)
        name_at, flags, first, second = struct.unpack(">IHII", data[entry:entry + 14])
        length = struct.unpack(">H", data[names + name_at:names + name_at + 2])[0] if index else 0
        path = folder + data[names + name_at + 6:names + name_at + 6 + 2 * length].decode("utf-16-be")
        if flags & 2:
            stack += [(child, f"{path}/" if index else "") for child in range(second, second + first)]
        elif Path(path).suffix.lower() in SUFFIXES and not flags & 4 and ".." not in path:
            start = contents + second
            content = data[start + 4:start + 4 + struct.unpack(">I", data[start:start + 4])[0]]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content


def read_notices(root: Path) -> list[tuple[list[str], str, str]]:
    """(patterns, licence, copyright) of each `Files:` stanza of the package's copyright file, in its order."""
    rows = []
    for notice in sorted(root.glob("usr/share/doc/*/copyright")):
        for stanza in re.split(r"\n\s*\n", notice.read_text(errors="replace")):
            fields = dict(re.findall(r"^(\S+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M))
            if "Files" in fields:
                licence = fields.get("License", "").strip().split("\n")[0]
                rows.append((fields["Files"].replace(",", " ").split(), licence,
                             " ".join(fields.get("Copyright", "").split())[:300]))
    return rows


def licence_of(notices: list[tuple[list[str], str, str]], path: Path, default: str) -> tuple[str, str]:
    """(licence, copyright) of a file by the last stanza that names the end of its path or its bare name.

    A package may store its source's pictures in another format, so path ends are compared with the stanza's suffix.
    """
    found = (default, "")
    path = Path(str(path).removeprefix("usr/share/doc/"))  # no source folder, though many sources have a doc/
    for patterns, licence, holder in notices:
        if any(p == "*" or Path(p).name == path.name
               or fnmatch.fnmatch(f"/{path.with_suffix(Path(p).suffix or path.suffix)}", f"*/{p}") for p in patterns):
            found = (licence, holder)
    return found


def candidates(
    root: Path, patterns: tuple[str, ...], reject: tuple[str, ...], suffixes: set[str] = SUFFIXES
) -> list[Path]:
    """Sorted files below `root` (relative paths) that match a pattern and no reject pattern; no links."""
    files = (p for p in root.rglob("*") if p.suffix.lower() in suffixes and p.is_file() and not p.is_symlink())
    paths = sorted(p.relative_to(root) for p in files)
    return [p for p in paths if any(fnmatch.fnmatch(f"/{p}", q) for q in patterns)
            and not any(fnmatch.fnmatch(f"/{p}", q) for q in reject)]


def read(path: Path, mode: str) -> np.ndarray | None:
    """A picture file as uint8 "RGB" or "RGBA"; None when damaged, above 40 megapixels, or not transparent for RGBA."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS or (mode == "RGBA" and not image.has_transparency_data):
                return None
            image.draft("RGB", (2048, 2048))
            return np.asarray(image.convert("RGBA").convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def fit(image: np.ndarray, scale: float) -> np.ndarray:
    """Shrink by `scale`; scales of 1 and more leave the picture as it is."""
    return image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def is_photo(image: np.ndarray, least_contrast: float) -> bool:
    """Whether an RGB picture has a photo's texture and tones; `least_contrast` is a standard deviation of grey levels.

    Drawings and charts (equal neighbours, one level in most pixels) and plain sky fail.
    """
    grey = cv2.cvtColor(fit(image, 256 / min(image.shape[:2])), cv2.COLOR_RGB2GRAY)
    equal = np.mean(grey[:, 1:] == grey[:, :-1])
    return grey.std() > least_contrast and equal < 0.6 and np.bincount(grey.ravel()).max() < 0.4 * grey.size


def is_new(image: np.ndarray, marks: list[np.ndarray]) -> bool:
    """Whether an RGB picture's difference hash (256 bits) is unlike all of `marks`; if so, it is added to them."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (17, 16), interpolation=cv2.INTER_AREA)
    mark = (grey[:, 1:] > grey[:, :-1]).ravel()
    new = all(np.count_nonzero(mark != other) > 24 for other in marks)
    if new:
        marks.append(mark)
    return new


def views(image: np.ndarray) -> Iterator[np.ndarray]:
    """The picture and, when its short side is 900 px or more, its tiles (2 or 3 a side, no overlap)."""
    yield image
    height, width = image.shape[:2]
    if min(height, width) >= 900:
        rows, columns = (3, 2) if height > width else (2, 3)
        for row in np.array_split(image, rows, axis=0):
            yield from np.array_split(row, columns, axis=1)


def trim_cutout(image: np.ndarray) -> np.ndarray | None:
    """Trim an RGBA picture to its alpha box, at most 256 px; None when it is no solid, coloured object.

    Kept: box filled to 15-95 %, most of the area in one piece, colours that vary and are not black on white (no text,
    silhouettes nor line drawings).
    """
    solid = image[..., 3] > 127
    if not solid.any():
        return None
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    box = np.s_[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    image, solid = image[box].astype(np.float32), solid[box]
    sizes = cv2.connectedComponentsWithStats(solid.astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    colours = image[solid][:, :3]
    grey = colours.mean(1)
    if (min(solid.shape) < MIN_CUTOUT_SIDE or not 0.15 <= solid.mean() <= 0.95 or sizes.max() < 0.8 * solid.sum()
            or colours.std(0).max() < 14 or np.mean((grey < 15) | (grey > 245)) > 0.7):
        return None
    image[..., :3] *= image[..., 3:] / 255  # premultiplied, so that shrinking mixes no hidden colours in
    image = fit(image, CUTOUT_SIDE / max(solid.shape))
    image[..., :3] *= 255 / np.maximum(image[..., 3:], 1)
    return np.clip(image, 0, 255).round().astype(np.uint8)


def collect(
    root: Path, package: Package, out: Path, marks: list[np.ndarray], held_out: set[str]
) -> dict[str, dict[str, str]]:
    """Select, draw and write the pictures of one unpacked package; their manifest rows by file name. Extends `marks`.

    held_out: names of photos, less the tiles' numbers, that belong in that part of the library.
    """
    manifest, notices = {}, read_notices(root)

    def keep(kind: str, path: Path, image: np.ndarray, ending: str) -> None:
        licence, holder = licence_of(notices, path, package.licence)
        name = re.sub(r"[^\w.-]+", "_", f"{package.name}-{'-'.join(path.with_suffix('').parts[-4:])}{ending}")
        if kind == "photos" and name.rpartition("-")[0] in held_out:
            kind = f"{HELD_OUT}/{kind}"
        if not NOT_FREE.search(licence):
            (out / kind).mkdir(parents=True, exist_ok=True)
            other = kind.removeprefix(f"{HELD_OUT}/") if HELD_OUT in kind else f"{HELD_OUT}/{kind}"
            (out / other / name).unlink(missing_ok=True)  # of a library written before it was held out, or was no more
            Image.fromarray(image).save(out / kind / name, **({"quality": 92} if name.endswith(".jpg") else {}))
            manifest[f"{kind}/{name}"] = {"package": package.name, "licence": licence, "copyright": holder,
                                          "origin": str(path)}

    for path in candidates(root, package.photos, package.reject):
        image = read(root / path, "RGB")
        if image is None or min(image.shape[:2]) < MIN_PHOTO_SIDE:
            continue
        for number, view in enumerate(views(image)):
            small = fit(view, PHOTO_SIDE / min(view.shape[:2]))
            if is_photo(small, 18 if number == 0 else 28) and is_new(small, marks):
                keep("photos", path, small, f"-{number}.jpg")
    paths = candidates(root, package.cutouts, package.reject)
    for path in paths[::-(-len(paths) // package.limit) or 1]:
        image = read(root / path, "RGBA")
        cutout = None if image is None else trim_cutout(image)
        if cutout is not None and is_new(cutout[..., :3] * (cutout[..., 3:] > 127), marks):
            keep("cutouts", path, cutout, ".png")
    for number, path in enumerate(candidates(root, package.models, package.reject, MODELS)):
        meshes = figures.read_model(root / path)
        for view in range(FIGURES if meshes else 0):
            cutout = trim_cutout(figures.draw(meshes, np.random.default_rng([number, view]), CUTOUT_SIDE))
            if cutout is not None:
                keep("cutouts", path, cutout, f"-{number}-{view}.png")
    return manifest


def read_outlines() -> dict[str, dict[str, list[np.ndarray]]]:
    """What was outlined by hand, by part of the library ("" or HELD_OUT) and name of the photo.

    Polygons [N, 2], each of one whole thing, from 0 to 1 of the photo's width and height.
    """
    parts = json.loads(Path(__file__).with_name("outlines.json").read_text())
    return {
        part: {name: [np.array(outline) / 1000 for outline in things] for name, things in photos.items()}
        for part, photos in parts.items()
    }


def cut_out(photo: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """The thing within an outline [N, 2] of an RGB photo [H, W, 3], bool [H, W].

    Near the outline GrabCut looks for the edge; what is thinner than that nearness stays as it was drawn.
    """
    drawn = np.zeros(photo.shape[:2], np.uint8)
    cv2.fillPoly(drawn, [np.round(outline * photo.shape[1::-1] * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    reach = max(2, round(NEAR * min(drawn.shape)))
    around, wide = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1)) for r in (reach, 2 * reach))
    inner = cv2.erode(drawn, around, borderValue=1)
    thin = drawn & ~cv2.dilate(inner, wide)
    labels = np.where(drawn, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[(inner | thin) > 0] = cv2.GC_FGD
    labels[cv2.dilate(drawn, around) == 0] = cv2.GC_BGD
    if (labels == cv2.GC_BGD).any() and (labels == cv2.GC_FGD).any():
        x, y, width, height = cv2.boundingRect(cv2.dilate(drawn, np.ones((8 * reach, 8 * reach))))
        box = np.s_[y:y + height, x:x + width]  # colours further away tell nothing of this edge
        near = labels[box].copy()
        cv2.grabCut(photo[box].copy(), near, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
        labels[box] = near
    return (labels & 1) > 0


def write_objects(folder: Path, outlined: dict[str, list[np.ndarray]]) -> int:
    """Write `folder/objects/PHOTO-K.png` (RGBA, the photo's size) for what is outlined in its photos; their number."""
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    for path in folder.glob("objects/*.png"):  # of outlines that are others now
        path.unlink()
    for name, outlines in outlined.items():
        photo = read(folder / f"photos/{name}.jpg", "RGB")
        if photo is None:
            continue  # its package could not be had
        for number, outline in enumerate(outlines):
            alpha = cv2.GaussianBlur(np.uint8(255) * cut_out(photo, outline), (0, 0), SOFT)
            near = cv2.dilate(alpha, np.ones((9, 9))) > 0  # black further away: small files
            image = np.dstack([photo * near[..., None], alpha])
            Image.fromarray(image).save(folder / "objects" / f"{name}-{number}.png")
    return len(list(folder.glob("objects/*.png")))


@dataclass(frozen=True)
class PhotoLibrary:
    """The pictures of a library folder, uint8; `objects` holds (index into `photos`, mask [H, W])."""

    photos: list[np.ndarray]  # RGB [H, W, 3]
    cutouts: list[np.ndarray]  # RGBA [H, W, 4], trimmed
    objects: list[tuple[int, np.ndarray]]


def load_library(folder: str | Path) -> PhotoLibrary:
    """Read a folder written by this tool. `InputError` when it has no photos, or names the picture that is amiss."""
    photos, cutouts, objects = (
        sorted(Path(folder).glob(names)) for names in ("photos/*.jpg", "cutouts/*.png", "objects/*.png"))
    if not photos:
        raise InputError(f"no photos in {folder}: run python -m motionstream.training.photos --out {folder}")
    index = {path.stem: number for number, path in enumerate(photos)}
    for path in objects:
        if path.stem.rpartition("-")[0] not in index:
            raise InputError(f"{path} is of no photo in {folder}: remove it, or write the library anew")
    return PhotoLibrary([_whole(path, "RGB") for path in photos], [_whole(path, "RGBA") for path in cutouts],
                        [(index[path.stem.rpartition("-")[0]], _whole(path, "RGBA")[..., 3]) for path in objects])


def _whole(path: Path, mode: str) -> np.ndarray:
    image = read(path, mode)
    if image is None:
        raise InputError(f"{path} is damaged or no {mode} picture: remove it, or write the library anew")
    return image


def write_library(folder: Path, packages: list[Package]) -> tuple[int, int]:
    """Numbers of pictures and objects. `InputError` if no package could be had."""
    manifest, marks, outlined = {}, [], read_outlines()
    held_out = {name.rpartition("-")[0] for name in outlined[HELD_OUT]}  # with all their tiles
    for package in packages:
        try:
            root = unpack(package.name, folder / "unpacked")
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        manifest |= collect(root, package, folder, marks, held_out)
    if not manifest:
        raise InputError("no package could be had: see above")
    licences = folder / "LICENCES.json"
    before = read_json(licences) if licences.is_file() else {}  # of packages that are left out this time
    manifest = {name: row for name, row in before.items() if (folder / name).exists()} | manifest
    licences.write_text(json.dumps(manifest, indent=1, sort_keys=True))
    return len(manifest), sum(write_objects(folder / part, photos) for part, photos in outlined.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the library folder to write")
    parser.add_argument("--packages", nargs="+", choices=[p.name for p in PACKAGES], default=[p.name for p in PACKAGES])
    args = parser.parse_args()
    try:
        make_folder(args.out)
        with writing(args.out):
            pictures, objects = write_library(args.out, [p for p in PACKAGES if p.name in args.packages])
    except InputError as error:
        parser.error(str(error))
    print(f"{pictures} pictures and {objects} objects in {args.out}")


if __name__ == "__main__":
    main()
