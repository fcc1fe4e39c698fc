"""The live canvas as a Gradio component: a picture that streams, and the pointers that drag it.

One component for every tab: a tab gives it a seat name, and serves that seat in `motionstream.ui.live`. The browser's
side is canvas.html, canvas.css and canvas.js, and for a tab with a panel of its own PANEL.html, PANEL.css and PANEL.js.
Everything that changes travels over the WebSocket, so the template has no variables and the canvas survives updates of
its value.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.data_classes import GradioModel

FOLDER = Path(__file__).parent
PANEL = "<!-- panel -->"  # where in canvas.html a tab's panel goes


class CanvasValue(GradioModel):
    """token: what the page's WebSocket proves itself with."""

    token: str | None = None


class LiveCanvas(gr.HTML):
    """A canvas that shows a stream and takes drags, pins and paths.

    seat: name of the seat on the WebSocket route, one for every canvas of the page; panel: name of the tab's own files.
    Event `start`, data {"prompt": str, "messages": [control messages made before the start], "panel": what the panel
    says}; it must run with show_progress="hidden".
    """

    data_model = CanvasValue

    def __init__(self, seat: str, panel: str | None = None, **kwargs):
        html, css, js = (_with_panel(panel, ending) for ending in ("html", "css", "js"))
        super().__init__(
            html_template=html,
            css_template=css,
            js_on_load=js,
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


def _with_panel(panel: str | None, ending: str) -> str:
    """canvas.ENDING with PANEL.ENDING in it; the panel's script runs before the canvas comes to life."""
    text = (FOLDER / f"canvas.{ending}").read_text(encoding="utf-8")
    own = (FOLDER / f"{panel}.{ending}").read_text(encoding="utf-8") if panel else ""
    if ending == "css":
        return text + own
    if ending == "js":
        return text.replace("/* panel */", f"{{\n{own}}}")  # a block: its names are its own
    return text.replace(PANEL, own)
