"""The Camera tab: a camera moves through the picture, on a path or steered live.

What the visitor sees of the depth, and of the way that the tracks will take, is made when a setting changes; a stream
then starts from the same depth. Where the weights of Depth Anything, the default, are not there yet, they are fetched
when the first visitor opens the tab, and planes do until then. Commands of the panel:

    {"kind": "depth", "method": "planes" | "depth-anything" | "moge" | "upload", "bright_is_near": bool}
    {"kind": "planes", "sides": [left, top, right, bottom]}      the back wall, as shares of the picture's sides
    {"kind": "upload", "what": "depth" | "cameras"}              what the next binary message is, if no picture
    {"kind": "fan", "plan": {...}}     asks for the tracks that `camera.Plan` gives
    {"kind": "save", "plan": {...}}    asks for the newest stream's cameras as a file, or the plan's if there was none

Live messages go to the stream itself, see `motionstream.controls.camera`.
"""

from __future__ import annotations

import importlib.util
import threading
from collections import defaultdict
from dataclasses import dataclass, field, fields

import numpy as np

from motionstream.controls.camera import POINTS, CameraRecipe, Plan, pivot_of, recorded
from motionstream.controls.depth import (
    Depth,
    DepthAnything,
    DepthMap,
    MoGe,
    depth_from_values,
    depth_picture,
    fit_depth,
    guess_bright_is_near,
    is_depth_file,
    read_depth,
)
from motionstream.controls.paths import ENDS, MOVES, PERIOD, Keyframes
from motionstream.controls.planes import ScenePlanes, Standing, guess_planes
from motionstream.errors import InputError
from motionstream.tracks import ChunkRequest
from motionstream.ui.clip import ClipEncoder, jpeg
from motionstream.ui.engine import Engine, News
from motionstream.ui.live import Seat
from motionstream.ui.tab import CanvasTab, Example
from motionstream.video import fit_image

PLANES, UPLOAD, BEST = "planes", "upload", "depth-anything"
LEARNED = {BEST: DepthAnything(), "moge": MoGe()}
FAN_TRACKS, FAN_POINTS, FAN_FPS = 96, 17, 4.0  # tracks that show the way, their points, points a second
SHOWN_SIDE = 320  # pixels of the depth's picture


@dataclass
class View:
    """One visitor's scene: the depth of the picture and what it comes from; the cameras of their newest stream."""

    method: str = ""  # none: the best that is there
    planes: ScenePlanes = field(default_factory=ScenePlanes)
    uploaded: np.ndarray | None = None  # as `read_depth` gave it, fitted to the picture
    bright_is_near: bool = False
    depth: Depth | None = None
    map: np.ndarray | None = None
    keyframes: Keyframes | None = None
    coming: str = ""  # what the next binary message is, if no picture
    recipe: CameraRecipe | None = None  # of the newest stream
    lengths: list[int] = field(default_factory=list)  # of its chunks, frames
    taken: Keyframes | None = None
    making: threading.Lock = field(default_factory=threading.Lock)  # held while a new picture gets its depth


class CameraTab(CanvasTab):
    """See the module's docstring."""

    title = "Camera"
    seat = panel = "camera"
    commands = (*CanvasTab.commands, "depth", "planes", "upload", "fan", "save")

    def __init__(self, engine: Engine, examples: list[Example]):
        super().__init__(engine, examples)
        self._lock = threading.Lock()
        self._waiting: list[Seat] = []  # for the weights that are being fetched

    def facts(self) -> dict:
        methods = {PLANES: ScenePlanes.label}
        methods |= {name: m.label for name, m in LEARNED.items() if importlib.util.find_spec(m.package) is not None}
        return {"paths": list(MOVES), "ends": ENDS, "methods": methods}

    def welcome(self, seat: Seat) -> None:
        shown = seat.shown is not None
        self._view(seat).coming = ""  # it was for the connection that was lost
        super().welcome(seat)
        if shown:
            self._send_depth(seat)
            self._send_cameras(seat)
        elif self._view(seat).method != BEST:
            self._await_weights(seat)

    def show(self, seat: Seat, *args) -> None:
        view = self._view(seat)
        with view.making:
            view.uploaded = view.taken = None
            view.method = "" if view.method == UPLOAD else view.method
            view.depth = view.map = None
            super().show(seat, *args)
            view.planes = guess_planes(seat.picture)
            self._estimate(seat)

    def command(self, seat: Seat, message: dict | bytes) -> None:
        view = self._view(seat)
        if isinstance(message, bytes):
            return self._take(seat, message)
        kind = message["kind"]
        if kind == "save":
            return self._save(seat, _plan(message.get("plan")))
        if kind == "fan":
            return self._send_fan(seat, _plan(message.get("plan")))
        if seat.streaming:
            raise InputError("a stream is running: stop it before you change the depth")
        if kind == "upload":
            view.coming = message.get("what") if message.get("what") in ("depth", "cameras") else ""
        elif kind == "planes":
            view.planes, view.method = _planes(message.get("sides")), PLANES
            self._estimate(seat)
        else:
            self._choose(seat, message.get("method"), message.get("bright_is_near"))

    def base(self, seat: Seat, data: object) -> CameraRecipe:
        """data: the plan."""
        view = self._view(seat)
        with view.making:  # the picture is seen before its depth is there
            view.recipe = self._recipe(view, _plan(data))
        view.lengths, view.taken = [], None
        return view.recipe

    def _pass_on(self, news: News, seat: Seat, encoder: ClipEncoder) -> None:
        super()._pass_on(news, seat, encoder)
        view = self._view(seat)
        if view.recipe is None:  # the visitor has been forgotten
            return
        if news.chunk is not None:
            view.lengths.append(len(news.chunk.frames))
        elif view.lengths:
            messages = defaultdict(list)
            for entry in news.recipe["controls"]:
                if entry["message"]["kind"] in ("camera", "steer"):
                    messages[entry["chunk"]].append(entry["message"])
            view.taken = self._cameras(seat, view.recipe, messages, view.lengths)

    def _view(self, seat: Seat) -> View:
        if seat.own is None:
            seat.own = View()
        return seat.own

    def _take(self, seat: Seat, data: bytes) -> None:
        """A binary message: a depth map, a camera file, or a picture."""
        view = self._view(seat)
        coming, view.coming = view.coming, ""
        if coming == "cameras":
            view.keyframes = Keyframes.from_json(data)
            self._send_cameras(seat, uploaded=True)
        elif coming == "depth" or is_depth_file(data):
            if seat.streaming:
                raise InputError("a stream is running: stop it before you change the depth")
            height, width = seat.picture.shape[:2]
            values = fit_depth(read_depth(data), width, height)
            near = not is_depth_file(data) and guess_bright_is_near(values)  # a picture's brightness may mean either
            depth_from_values(values, near)  # says what is wrong with it, before anything is changed
            view.uploaded, view.method, view.bright_is_near = values, UPLOAD, near
            self._estimate(seat)
        else:
            super().command(seat, data)

    def _choose(self, seat: Seat, method: object, bright_is_near: object) -> None:
        view = self._view(seat)
        if not isinstance(method, str) or method not in (PLANES, UPLOAD, *LEARNED):
            raise InputError("there is no depth of that kind: choose another one")
        if method == UPLOAD and view.uploaded is None:
            raise InputError("upload a depth map first")
        before = view.method, view.bright_is_near
        view.method, view.bright_is_near = method, bool(bright_is_near)
        if method in LEARNED and not LEARNED[method].ready():
            seat.send({"kind": "note", "text": f"fetching {LEARNED[method].label} …"})
        try:
            self._estimate(seat)
        except InputError:
            view.method, view.bright_is_near = before
            self._send_depth(seat)  # the panel shows what is in force
            raise

    def _estimate(self, seat: Seat) -> None:
        """Makes the depth of the seat's picture, and shows it."""
        view = self._view(seat)
        chosen = bool(view.method)
        if not chosen:
            view.method = BEST if LEARNED[BEST].ready() else PLANES
        if view.method == UPLOAD:
            depth: Depth = DepthMap(depth_from_values(view.uploaded, view.bright_is_near))
        else:
            depth = LEARNED.get(view.method, Standing(view.planes))
        height, width = seat.picture.shape[:2]
        camera = Plan().camera(width, height)
        try:
            view.map = depth.estimate(seat.picture, camera, camera, None)
        except InputError:
            if chosen:
                raise
            view.method = PLANES  # nobody asked for weights that cannot be used
            return self._estimate(seat)
        view.depth = depth
        self._send_depth(seat)

    def _await_weights(self, seat: Seat) -> None:
        """Has the weights of the best depth fetched, once for all who wait; their panels then ask for that depth,
        unless they chose one of their own."""
        with self._lock:
            self._waiting.append(seat)
            if len(self._waiting) == 1:
                threading.Thread(target=self._fetch, name="depth", daemon=True).start()

    def _fetch(self) -> None:
        try:
            there = LEARNED[BEST].fetch()
        finally:  # who comes later tries again
            with self._lock:
                waiting, self._waiting = self._waiting, []
        for seat in waiting if there else []:
            seat.send({"kind": "ready", "method": BEST})

    def _send_depth(self, seat: Seat) -> None:
        view = self._view(seat)
        if view.map is None:  # it is sent when it is there
            return
        height, width = seat.picture.shape[:2]
        scale = SHOWN_SIDE / max(width, height)
        picture = fit_image(depth_picture(view.map), round(width * scale), round(height * scale))
        header = {"kind": "depth", "method": view.method, "bright_is_near": view.bright_is_near}
        if view.method == PLANES:
            planes = view.planes
            header["planes"] = [planes.left, planes.top, planes.right, planes.bottom]
            header["vanishing"] = planes.vanishing_point
        seat.send(header, jpeg(picture))

    def _send_cameras(self, seat: Seat, uploaded: bool = False) -> None:
        """uploaded: just now, to be taken at once."""
        keyframes = self._view(seat).keyframes
        count = len(keyframes.cameras) if keyframes else 0
        seat.send({"kind": "keyframes", "count": count, "uploaded": uploaded})

    def _send_fan(self, seat: Seat, plan: Plan) -> None:
        """The first seconds of the tracks, as [[x, y, x, y, ...], ...] in pixels of the picture."""
        if self._view(seat).map is None:  # comes again with the depth
            return
        height, width = seat.picture.shape[:2]
        source = self._recipe(self._view(seat), plan, FAN_TRACKS).build()
        tracks = source.tracks_for(ChunkRequest(0, 0, FAN_POINTS, width, height, FAN_FPS, {0: seat.picture}))
        lines = [tracks.points[tracks.visible[:, n], n] for n in range(tracks.N)]
        seat.send({"kind": "fan", "lines": [line.round(1).ravel().tolist() for line in lines if len(line)]})

    def _save(self, seat: Seat, plan: Plan) -> None:
        view = self._view(seat)
        fps = self.engine.model.preset.fps
        keyframes = view.taken or self._cameras(seat, self._recipe(view, plan), {}, [round(PERIOD * fps) + 1])
        seat.send({"kind": "cameras", "text": keyframes.to_json()})

    def _cameras(self, seat: Seat, recipe: CameraRecipe, messages: dict, lengths: list[int]) -> Keyframes:
        height, width = seat.picture.shape[:2]
        rig = recipe.rig(width, height, pivot_of(recipe.first))
        return recorded(rig, (width, height), messages, lengths, self.engine.model.preset.fps)

    def _recipe(self, view: View, plan: Plan, count: int = POINTS) -> CameraRecipe:
        if view.map is None:
            raise InputError("there is no depth of this picture yet: try again in a moment, or choose another depth")
        return CameraRecipe(plan, view.depth, view.map, view.keyframes, count)  # whose file may be chosen on the way


def _plan(data: object) -> Plan:
    names = {one.name for one in fields(Plan)}
    if not isinstance(data, dict) or set(data) != names:
        raise InputError(f"a camera plan must have {', '.join(sorted(names))}: reload the page")
    return Plan(**data)


def _planes(sides: object) -> ScenePlanes:
    if not isinstance(sides, list) or len(sides) != 4:
        raise InputError("the back wall has four sides: left, top, right, bottom")
    return ScenePlanes(*sides)
