"""The bundled student shows what a prompt asks for: the light that its training clips showed, and things that fall."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from motionstream.machine import Choice, fit_pictures
from motionstream.model.checkpoint import Model, load_model
from motionstream.streaming import stream
from motionstream.tracks import ChunkRequest, Tracks
from motionstream.training.effects import EFFECTS
from motionstream.video import read_image

EXAMPLES = Path(__file__).parent.parent / "examples"


class Nothing:
    """Nobody drags."""

    def tracks_for(self, request: ChunkRequest) -> Tracks:
        return Tracks.empty(request.frames)


@pytest.fixture(scope="module")
def student() -> Model:
    return load_model("embedded")


def shown(model: Model, name: str, prompt: str) -> tuple[np.ndarray, np.ndarray]:
    """Picture, and frames of the third chunk, at the smallest trained size."""
    image, _ = fit_pictures(model.preset, Choice(min(model.preset.budgets)), read_image(EXAMPLES / f"{name}.jpg"))
    for chunk in stream(model, image, Nothing(), prompt=prompt, seed=0):
        if chunk.index == 2:
            return image, chunk.frames


def colours(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(frame.astype(np.float32), (12, 7), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("effect", ["night", "sunset", "cold", "fog"])
def test_light_is_what_training_showed(student, effect):
    errors, changes = [], []
    for name in ("boat", "koi"):
        image, frames = shown(student, name, effect)
        asked = np.clip(EFFECTS[effect](image[None].astype(np.float32), None)[0], 0, 255)
        errors.append(np.abs(colours(frames[-1]) - colours(asked)).mean())
        changes.append(np.abs(colours(image) - colours(asked)).mean())
    assert np.mean(errors) < 0.25 * np.mean(changes)


@pytest.mark.parametrize("effect", ["snow", "rain"])
def test_bright_things_fall(student, effect):
    (image, dry), (_, wet) = (shown(student, "boat", prompt) for prompt in ("", effect))
    specks = (wet.astype(int).min(-1) > dry.max(-1).astype(int) + 40).any(0)
    found = cv2.connectedComponents(specks.astype(np.uint8))[0] - 1
    assert 5 <= found and specks.mean() < 0.1
