"""Render the example pictures and write their drags: `python scripts/render_examples [--only NAME ...] [--out DIR]`."""

import argparse
import importlib
import json
from pathlib import Path

import cv2
import numpy as np

SCENES = {"balloon": 1, "boat": 2, "planet": 3, "koi": 4, "car": 5, "ladybird": 6}  # name -> seed


def write(name: str, seed: int, folder: Path) -> None:
    """Write NAME.jpg and NAME.json into `folder`."""
    scene = importlib.import_module(name)
    picture = scene.render(np.random.default_rng(seed))
    height, width = picture.shape[:2]
    cv2.imwrite(str(folder / f"{name}.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    drags = {"version": 1, "image": f"{name}.jpg", "title": "", "prompt": "", "width": width, "height": height}
    drags |= scene.DRAGS
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in drags.items())
    (folder / f"{name}.json").write_text(f"{{\n{lines}\n}}\n")
    print(f"{name}: {width}x{height}, {(folder / f'{name}.jpg').stat().st_size // 1000} KB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "examples")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        write(name, SCENES[name], args.out)


if __name__ == "__main__":
    main()
