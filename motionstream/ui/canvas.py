"""The live canvas as a Gradio component: a picture that streams, and the pointers that drag it.

One component for every tab: a tab gives it a seat name, and serves that seat in `motionstream.ui.live`. The browser's
side is canvas.html, canvas.css and canvas.js. Everything that changes travels over the WebSocket, so the template has
no variables and the canvas survives updates of its value.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.data_classes import FileData, GradioModel

FOLDER = Path(__file__).parent


class CanvasValue(GradioModel):
    """token: what the page's WebSocket proves itself with; clip: the finished MP4, offered for download."""

    token: str | None = None
    clip: FileData | None = None


class LiveCanvas(gr.HTML):
    """A canvas that shows a stream and takes drags, pins and paths.

    seat: name of the seat on the WebSocket route, one for every canvas of the page. Event `start`, data
    {"prompt": str, "messages": [control messages made before the start]}; it must run with show_progress="hidden".
    """

    data_model = CanvasValue

    def __init__(self, seat: str, **kwargs):
        super().__init__(
            html_template=(FOLDER / "canvas.html").read_text(encoding="utf-8"),
            css_template=(FOLDER / "canvas.css").read_text(encoding="utf-8"),
            js_on_load=(FOLDER / "canvas.js").read_text(encoding="utf-8"),
            apply_default_css=False,
            seat=seat,
            **kwargs,
        )

    def postprocess(self, value: CanvasValue | None) -> CanvasValue | None:
        return value

    def preprocess(self, payload: CanvasValue | None) -> CanvasValue | None:
        return payload

    def example_payload(self) -> None:
        return None

    def example_value(self) -> None:
        return None

    def api_info(self) -> dict[str, str]:
        return {"type": "object"}
