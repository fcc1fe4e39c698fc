"""The app: `python app.py`, on a laptop or as a Hugging Face Space. `python app.py --help` lists the settings.

Start-up loads the model, measures what this machine can do (`motionstream.machine`), builds the page and serves it.
Nothing is read or loaded when this file is imported.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__" and not (
    (port := os.environ.get("GRADIO_SERVER_PORT", "7860")).isdecimal() and 0 < int(port) < 2**16
):
    # Here already: Gradio reads it when it is imported, and breaks.
    print(f"app.py: GRADIO_SERVER_PORT is {port!r}, no port: set it to a free one from 1024 to 65535, or unset it",
          file=sys.stderr)
    sys.exit(2)

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder

from motionstream.errors import InputError, writing
from motionstream.machine import (
    PROBE_ASPECT,
    Choice,
    parse_resolution,
    pick_device,
    pick_dtype,
    pick_size,
    size_for,
    time_size,
    tune,
)
from motionstream.model.checkpoint import Model, load_model
from motionstream.model.device import free_bytes, on_zero_gpu
from motionstream.streaming import Chunk, room_for_stream, stream
from motionstream.tracks import StaticTracks, Tracks
from motionstream.ui.camera import CameraTab
from motionstream.ui.canvas import CanvasValue, LiveCanvas
from motionstream.ui.drag import DragTab
from motionstream.ui.engine import Engine
from motionstream.ui.live import Live
from motionstream.ui.tab import Example, read_examples
from motionstream.ui.transfer import TransferTab

EXAMPLES = Path(__file__).parent / "examples"
PING_SECONDS = 120.0  # that a browser may take to answer a ping: the largest photo goes up at 1 Mbit/s meanwhile
STREAMS_ON_ZERO_GPU = 16  # it queues them itself
HEADER = """
<header class="ms-header">
  <h1>MotionStream</h1>
  <p>Grab any point of a photo and drag. The picture follows while you move, and streams on for as long as you like.</p>
</header>
"""
PAGE_CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container .html-container { padding: 0; }
@media (max-width: 640px) { .gradio-container .main { padding: 8px 14px !important; } }
.ms-header h1 { font-size: 30px; font-weight: 700; letter-spacing: -.02em; margin: 8px 0 2px; }
.ms-header p { font-size: 15px; color: var(--body-text-color-subdued); margin: 0; max-width: 62ch; }
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the environment gives the defaults that a Space sets."""
    parser = argparse.ArgumentParser(prog="app.py", description="Serve MotionStream to a browser.")
    parser.add_argument("--model", default=os.environ.get("MOTIONSTREAM_MODEL") or "embedded",
                        help="name, folder or Hub repository (default: $MOTIONSTREAM_MODEL or the embedded student)")
    parser.add_argument("--resolution", metavar="BUDGET|WxH", help="tokens per latent frame, or a fixed size in pixels"
                        " (default: the largest trained size that this machine plays in real time)")
    parser.add_argument("--low-memory", action="store_true", help="less GPU memory, slower")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks, which takes a"
                        " minute for each size of pictures: best with a fixed one")
    parser.add_argument("--fp8", action="store_true", help="linear layers in 8-bit floating point")
    parser.add_argument("--port", type=int, help="default: $GRADIO_SERVER_PORT, or the first free port from 7860")
    parser.add_argument("--share", action="store_true", help="make a temporary public address")
    return parser.parse_args(argv)


def check_cache() -> None:
    """`InputError` if clips cannot be put where Gradio serves files from: the folder may be another user's."""
    folder = Path(get_upload_folder())
    with writing(folder, "set GRADIO_TEMP_DIR to a folder that can be written to"):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryDirectory(dir=folder).cleanup()


def load_engine(arguments: argparse.Namespace) -> Engine:
    """The model at the number format and size that suit this machine; `InputError` if either cannot be had."""
    device = pick_device()
    model = load_model(arguments.model, device, pick_dtype(device), low_memory=arguments.low_memory)
    tune(model, arguments.compile, arguments.fp8)
    preset, run = model.preset, partial(dragged, model)
    choice = None if arguments.resolution is None else parse_resolution(arguments.resolution, preset)
    if device == "cpu":
        return Engine(model, choice or pick_size(preset, run))
    choice = choice or Choice(max(preset.budgets))
    return Engine(model, choice if on_zero_gpu() else time_size(preset, choice, run))


def loaded(arguments: argparse.Namespace) -> Engine:
    """`load_engine`, in the thread where it should run."""
    if on_zero_gpu():
        # In the thread that imports it, PyTorch takes a GPU for there, until one is.
        import spaces  # noqa: F401

        return load_engine(arguments)
    # A thread keeps the workers of what it has computed until it ends. Were they this one's, there would be more of
    # them than cores beside a stream's, and OpenMP would put them to sleep between any two operations.
    with ThreadPoolExecutor(1) as passing:
        return passing.submit(load_engine, arguments).result()


def dragged(model: Model, picture: np.ndarray, sharp: np.ndarray | None) -> Iterator[Chunk]:
    """A stream to measure: of one thing that is dragged across the picture."""
    path = np.linspace(0.3, 0.7, 3 * model.preset.chunk_frames(1))[:, None] * picture.shape[1::-1]
    grid = Tracks.rigid_grid(path, picture.shape[0] / 12, 3, np.arange(9))
    return stream(model, picture, StaticTracks(grid), sharp=sharp)


def stream_limit(engine: Engine) -> int:
    """How many visitors may stream at once: as many as are played in real time and have room, at least one."""
    model, choice = engine.model, engine.choice
    if on_zero_gpu():
        return STREAMS_ON_ZERO_GPU
    limit = (choice.fps or 0) / model.preset.fps
    if model.device.type != "cpu":
        size = size_for(model.preset, choice, *PROBE_ASPECT)
        limit = min(limit, free_bytes(model.device) / room_for_stream(model, *size))
    return max(1, int(limit))


def build(engine: Engine, examples: Sequence[Example], limit: int) -> tuple[gr.Blocks, Live]:
    """The page and its visitors; `serve` puts both on a port."""
    tabs = [tab(engine, examples) for tab in (DragTab, TransferTab, CameraTab)]
    live = Live({tab.seat: tab for tab in tabs}, limit)
    canvases = []

    def admit(request: gr.Request) -> dict[LiveCanvas, CanvasValue]:
        return dict.fromkeys(canvases, CanvasValue(token=live.admit(request.session_hash)))

    def leave(request: gr.Request) -> None:
        live.leave(request.session_hash)

    with gr.Blocks(title="MotionStream", fill_width=True, analytics_enabled=False) as demo:
        gr.HTML(HEADER)
        for tab in tabs:
            with gr.Tab(tab.title, id=tab.seat):  # the canvas opens it again by that
                canvases.append(tab.build(live))
        demo.load(admit, outputs=canvases, queue=False, show_progress="hidden", api_visibility="private")
        demo.unload(leave)  # comes when a page is left, and also when its connection breaks for a moment
    return demo, live


def serve(demo: gr.Blocks, live: Live, port: int | None = None, share: bool = False) -> str:
    """Starts serving in the background -> the address. `InputError` if the port cannot be had."""
    font = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "monospace"]
    # Text and buttons that can be read: a contrast of 4.5 at least, where Gradio's own shades have 2.5.
    shades = {"color_accent": "*primary_700", "body_text_color_subdued": "*neutral_500"}
    shades |= {"input_placeholder_color": "*neutral_600", "input_placeholder_color_dark": "*neutral_300"}
    for name, shade in (("", "*primary_700"), ("_hover", "*primary_800")):
        shades |= {f"button_primary_background_fill{name}{mode}": shade for mode in ("", "_dark")}
    theme = gr.themes.Base(primary_hue="emerald", neutral_hue="slate", font=font, font_mono=mono).set(**shades)
    theme.color_accent_dark = "*primary_600"  # `set` knows none, but the page heeds it
    try:
        if port == 0:
            raise OverflowError("whichever is free: Gradio does not learn which one it got")
        _, local, public = demo.launch(
            server_port=port,
            share=share,
            theme=theme,
            css=PAGE_CSS,
            ssr_mode=False,  # the server-side renderer's proxy refuses WebSockets
            run_history=False,
            footer_links=[],
            max_file_size=0,  # uploads come over our WebSocket; Gradio's own route takes any size from anybody
            app_kwargs={"routes": [live.route]},
            prevent_thread_lock=True,
            quiet=True,
        )
    except (OSError, OverflowError) as error:  # in use, not allowed, or no port at all
        wanted = "there is no free port" if port is None else f"port {port} cannot be used"
        raise InputError(f"{wanted}: choose a free one from 1024 to 65535 with --port") from error
    settings = demo.server.config  # read anew for every WebSocket
    settings.ws_per_message_deflate = False  # JPEGs do not deflate
    settings.ws_ping_timeout = PING_SECONDS  # a pong waits behind an uploaded photo, and behind a slow command
    return public or local


if __name__ == "__main__":
    arguments = parse_arguments()
    try:
        check_cache()
        engine = loaded(arguments)
        print(engine.describe(), flush=True)
        demo, live = build(engine, read_examples(EXAMPLES), stream_limit(engine))
        address = serve(demo, live, arguments.port, arguments.share)
    except InputError as error:
        print(f"app.py: {error}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or visitors' clips would stay on the disk
    print(f"MotionStream runs on {address}", flush=True)
    demo.block_thread()
