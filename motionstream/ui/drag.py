"""The Drag tab: a photo, a pointer, and the picture follows."""

from __future__ import annotations

from motionstream.ui.live import Seat
from motionstream.ui.tab import CanvasTab, Example


class DragTab(CanvasTab):
    """Nothing but the canvas; its examples bring paths and pins of their own."""

    title = "Drag"
    seat = "drag"

    def picture_facts(self, seat: Seat, example: Example | None) -> dict:
        """The example's controls in pixels of the picture."""
        if example is None:
            return {}
        height, width = seat.picture.shape[:2]
        return {"prompt": example.prompt, **example.controls(width, height)}
