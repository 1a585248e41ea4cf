"""3D viewer: a web page with the people, cameras and pictures of a store at any time."""

from __future__ import annotations

import html
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from inspect import isawaitable
from ipaddress import ip_address
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body
from models.crops import Optics
from models.rendering.overlay import person_colour
from models.rotations import rotation_between
from pipeline.array_types import Floats, Pixels
from pipeline.batches import FitBatch
from pipeline.cameras import rectify_map
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.video import VideoInfo, read_frames

if TYPE_CHECKING:
    import viser


GREY: Final = (140, 140, 140)
CACHED_WINDOWS: Final = 4
PICTURE_SIDE_PX: Final = 480
"""Longer side of the cameras' pictures."""
POLL_S: Final = 0.5
"""Interval at which the store of a running pipeline is read."""


@dataclass(frozen=True)
class PosedFrame:
    """P people in one frame: N vertices, J joints, K keypoints; V cameras. NaN where there is no pose."""

    vertices: Floats
    """(P, N, 3) metres, world."""
    joints: Floats
    """(P, J, 3)"""
    points: Floats
    """(P, K, 3) fitted keypoints."""
    valid: NDArray[np.bool_]
    """(P,) false for a pose that is not accepted: bridged over a gap, or too far off."""
    point_px: Floats
    """(P, K) reprojection error, mean over the views that see the point."""
    camera_px: Floats
    """(V, P) mean reprojection error in each camera."""


class Frames:
    """Frames of a store, read on demand with a cache of windows; the store may grow."""

    def __init__(self, store: Store, body: Body) -> None:
        self.store, self.body = store, body
        self.bones = store.contents.skeleton.bone_ends
        """(N, 2) joint indices."""
        self._windows: OrderedDict[int, FitBatch] = OrderedDict()
        self.ids = torch.tensor(store.ids or (0,))  # id 0 is the first person's, in an empty store
        self._done = 0

    def count(self) -> int:
        """Count finished frames, by the windows that were unfinished at the last call."""
        while (
            self._done < self.store.contents.windows
            and self.store.array("done", self._done, self._done + 1)[0]
        ):
            self._done += 1
        return self.store.span(self._done - 1)[1] if self._done else 0

    def at(self, frame: int) -> PosedFrame:
        """Pose a finished frame."""
        k = frame // self.store.contents.window
        if k not in self._windows:
            self._windows[k] = self.store.read(k).people(self.ids)
            while len(self._windows) > CACHED_WINDOWS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(k)
        return self._posed(self._windows[k].frames(t := frame - self.store.span(k)[0], t + 1))

    def _posed(self, batch: FitBatch) -> PosedFrame:
        p, keypoints = batch.params, batch.keypoints
        with torch.inference_mode():
            vertices = self.body.vertices(p.global_orient[0], p.body_pose[0], p.betas, p.transl[0])
        points = batch.keypoints_3d[0, ..., :3].numpy()
        px = self.store.contents.rig.project(points.astype(np.float64)) - keypoints.xy_px[:, 0].numpy()
        error = np.linalg.norm(px, axis=-1)
        visible = np.isfinite(error) & (keypoints.confidence[:, 0].numpy() > 0)
        views = visible.sum(0)
        mean = np.where(visible, error, 0).sum(0) / np.where(views, views, np.nan)
        return PosedFrame(
            vertices=vertices.float().numpy(),
            joints=batch.joints[0].numpy(),
            points=points,
            valid=batch.valid[0].numpy(),
            point_px=mean.astype(np.float32),
            camera_px=batch.reprojection_px[:, 0].numpy(),
        )


class Pictures:
    """Small undistorted pictures of one camera, decoded on demand.

    A step forward continues decoding; a step back or far ahead seeks a key frame in the reopened video.
    """

    MAX_STEP_FRAMES = 60
    """Decoding more costs more than reopening the file."""

    def __init__(
        self,
        video: VideoInfo | Path,
        index: NDArray[np.int64],
        lens: Optics,
        size: tuple[int, int],
    ) -> None:
        """index: (T,) of the video's frame at each time, −1 for none. lens, size: of the camera."""
        self._video, self._index = video, index
        k, dist, fisheye = lens
        scale = PICTURE_SIDE_PX / max(size)
        self.size = w, h = round(size[0] * scale), round(size[1] * scale)
        small = np.diag([w / size[0], h / size[1], 1.0]) @ k
        # A frustum of the viewer has square pixels and a central axis, so the picture is resampled to that.
        self.focal = float(min(small[0, 0], small[1, 1]))
        ideal = np.array([[self.focal, 0, (w - 1) / 2], [0, self.focal, (h - 1) / 2], [0, 0, 1]])
        self._maps = rectify_map(small, dist, fisheye, ideal, (w, h), cv2.CV_16SC2)
        self._number = -1
        """Of the last frame, which ``read_frames`` is asked for."""
        self._frames: Generator[av.VideoFrame | None, None, None] | None = None

    @property
    def vertical_fov(self) -> float:
        """Radians."""
        return 2 * float(np.arctan(self.size[1] / 2 / self.focal))

    def at(self, time: int) -> Pixels | None:
        """(h, w, 3) RGB; None where the camera has no frame or it cannot be decoded."""
        number = int(self._index[time])
        if number < 0:
            return None
        if self._frames is None or not self._number <= number <= self._number + self.MAX_STEP_FRAMES:
            self.close()
            self._frames = read_frames(self._video, iter(lambda: self._number, None))
        self._number = number
        frame = next(self._frames, None)
        if frame is None:
            return None
        small = frame.reformat(*self.size, format="rgb24").to_ndarray()
        flat: Pixels = cv2.remap(small, *self._maps, cv2.INTER_LINEAR).astype(np.uint8)
        return flat

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames = None


def error_colours(px: NDArray[np.floating[Any]], worst: float) -> Pixels:
    """Errors (...) → RGB (..., 3): green at 0, yellow half way, red from ``worst`` up; grey for NaN."""
    ramp = np.array([[0, 158, 115], [240, 200, 60], [200, 40, 40]], dtype=float)
    share = np.clip(np.nan_to_num(px, nan=0.0) / worst, 0, 1)
    rgb = np.stack([np.interp(share, [0, 0.5, 1], ramp[:, c]) for c in range(3)], -1)
    return np.where(np.isfinite(px)[..., None], rgb, GREY).astype(np.uint8)


def serve_viewer(
    store: Store,
    body: Body,
    videos: Sequence[VideoInfo | Path | None],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    live: bool = False,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until Ctrl-C; ``ready`` is called with its address.

    videos: V, None for a camera without. live: follow a store that is being written. Memory is independent of
    the length: a few windows, and one picture of each camera.

    Raises ``InputError``: viser is not installed, or no window is done and ``live`` is off.
    """
    try:
        import viser
    except ImportError as error:
        raise InputError("the viewer needs viser: pip install -e '.[view]'") from error
    frames = Frames(store, body)
    if not frames.count() and not live:
        raise InputError(f"{store.path}: no frame is done yet. Add --live to wait.")
    with _own_pages_only(host):
        server = viser.ViserServer(host=host, port=port, label="Multi-SPIN", verbose=False)
    try:
        page = _Page(server, frames, videos, live)
        with closing(page):
            ready(f"http://{host}:{server.get_port()}")
            page.run()
    finally:
        server.stop()


def is_own_page(host: str, headers: Mapping[str, str | None]) -> bool:
    """True for a request from the viewer's own page, at an address of this machine.

    Any web page in the same browser can reach this machine, and can let a name of its own resolve to it (DNS
    rebinding). So ``Host`` must be an address, this machine's name or ``host``, and ``Origin``, if sent, the
    same.
    """
    requested = headers.get("Host") or ""
    try:
        name = urlsplit(f"//{requested}").hostname or ""
    except ValueError:
        return False
    machine = gethostname().lower()
    if name not in {host.lower(), "localhost", machine, f"{machine}.local"}:
        try:
            ip_address(name)
        except ValueError:
            return False
    origin = headers.get("Origin")
    return origin is None or origin in (f"http://{requested}", f"https://{requested}")


@contextmanager
def _own_pages_only(host: str) -> Iterator[None]:
    """Make a viser server that starts in the block refuse requests that ``is_own_page`` rejects.

    viser has no setting for this: its call of the websockets library is wrapped.
    """
    from websockets.asyncio import server as sockets

    serve = sockets.serve

    def checked_serve(*args: Any, process_request: Any, **options: Any) -> Any:
        async def checked(connection: Any, request: Any) -> Any:
            headers = {name: ", ".join(request.headers.get_all(name)) or None for name in ("Host", "Origin")}
            if not is_own_page(host, headers):
                return connection.respond(403, "Not for pages of other sites.\n")
            answer = process_request(connection, request)
            return await answer if isawaitable(answer) else answer

        return serve(*args, process_request=checked, **options)

    vars(sockets)["serve"] = checked_serve
    try:
        yield
    finally:
        vars(sockets)["serve"] = serve


def wait_for_store(path: Path) -> None:
    """Wait until a run has created its store."""
    while not (path / "zarr.json").is_file():
        time.sleep(POLL_S)


class _Page:
    """Scene and controls. viser's threads only wake the loop in ``run``, which does all drawing."""

    def __init__(
        self, server: viser.ViserServer, frames: Frames, videos: Sequence[VideoInfo | Path | None], live: bool
    ) -> None:
        self._server, self._frames, self._live = server, frames, live
        c = frames.store.contents
        self._rate = float(c.rate)
        self._ids, self._total = frames.ids.tolist(), len(c.time_s)
        self._people = len(self._ids)
        self._count = frames.count()
        self._drawn: tuple[object, ...] = ()
        self._wake = threading.Event()
        self._scene_is_set = False
        self._pictures = [
            None
            if video is None
            else Pictures(
                video, c.frame_index[v], Optics(c.rig.K[v], c.rig.dist[v], c.rig.fisheye[v]), (int(w), int(h))
            )
            for (v, video), (w, h) in zip(enumerate(videos), c.rig.size, strict=True)
        ]
        self._add_controls()
        self._add_people()
        self._add_cameras()

    def _add_controls(self) -> None:
        gui = self._server.gui
        gui.configure_theme(show_logo=False, show_share_button=False)  # sharing uses a foreign server
        self._slider = gui.add_slider("Frame", 0, max(1, self._count - 1), 1, 0)
        self._steps = gui.add_button_group("Step", ("|<", "<", ">", ">|"))
        self._play = gui.add_button("Play", icon=None)
        self._playing = False
        self._speed = gui.add_dropdown("Speed", ("0.25x", "0.5x", "1x", "2x"), initial_value="1x")
        self._follow = gui.add_checkbox("Follow the run", self._live, visible=self._live)
        with gui.add_folder("Show"):
            names = ("Mesh", "Skeleton", "Keypoints", "Cameras", "Pictures")
            self._show = {name: gui.add_checkbox(name, True) for name in names}
            self._show_person = [
                gui.add_checkbox(f"Person {self._ids[p]}", True, visible=self._people > 1)
                for p in range(self._people)
            ]
        with gui.add_folder("Colours"):
            self._colours = gui.add_dropdown("By", ("person", "error"), initial_value="person")
            self._worst = gui.add_slider("Red at, px", 5, 100, 1, 30)
        self._status = gui.add_html("")
        for control in (self._slider, self._speed, self._follow, self._colours, self._worst):
            control.on_update(lambda _: self._wake.set())
        for box in (*self._show.values(), *self._show_person):
            box.on_update(lambda _: self._wake.set())
        self._clicks: list[str] = []

        def click(button: str) -> None:
            self._clicks.append(button)
            self._wake.set()

        self._play.on_click(lambda _: click("play"))
        self._steps.on_click(lambda event: click(str(event.target.value)))

    def _add_people(self) -> None:
        scene = self._server.scene
        # Shadows are slow without a graphics card; the environment map would be loaded from a foreign server.
        scene.configure_default_lights(cast_shadow=False)
        scene.configure_environment_map(None)
        scene.add_light_ambient("/light", intensity=1.2)
        vertices = np.zeros((len(self._frames.body.v_template), 3), np.float32)
        ends = np.zeros((*self._frames.bones.shape, 3), np.uint8)
        dots = np.zeros((len(self._frames.store.contents.keypoint_skeleton), 3), np.uint8)
        self._handles = []
        """Mesh, skeleton and keypoints of each person."""
        for p in range(self._people):
            mesh = scene.add_mesh_simple(
                f"/people/{p}/mesh", vertices, self._frames.body.faces, color=person_colour(self._ids[p]),
                visible=False,
            )  # fmt: skip
            skeleton = scene.add_line_segments(
                f"/people/{p}/skeleton", ends.astype(np.float32), ends, thickness=3, thickness_units="screen",
                visible=False,
            )  # fmt: skip
            points = scene.add_point_cloud(
                f"/people/{p}/keypoints", dots.astype(np.float32), dots, point_size=0.025,
                point_shape="circle", precision="float32", visible=False,
            )  # fmt: skip
            self._handles.append((mesh, skeleton, points))

    def _add_cameras(self) -> None:
        rig = self._frames.store.contents.rig
        spread = float(np.linalg.norm(rig.centres - rig.centres.mean(0), axis=1).max())
        self._frusta: list[viser.CameraFrustumHandle] = []
        for v, name in enumerate(rig.names):
            w, h = (int(x) for x in rig.size[v])
            pictures = self._pictures[v]
            fov = pictures.vertical_fov if pictures else 2 * float(np.arctan(h / 2 / rig.K[v, 1, 1]))
            frustum = self._server.scene.add_camera_frustum(
                f"/cameras/{v}", fov=fov, aspect=w / h, scale=max(0.1, 0.12 * spread), thickness=2,
                thickness_units="screen", color=GREY, jpeg_quality=80, cast_shadow=False,
                receive_shadow=False, wxyz=_wxyz(torch.from_numpy(rig.R[v]).mT), position=rig.centres[v],
            )  # fmt: skip
            self._server.scene.add_label(f"/cameras/{v}/name", name)

            def look_through(event: Any, v: int = v) -> None:
                with event.client.atomic():
                    event.client.camera.wxyz = self._frusta[v].wxyz
                    event.client.camera.position = self._frusta[v].position

            frustum.on_click(look_through)
            self._frusta.append(frustum)

    def _set_scene(self, posed: PosedFrame) -> None:
        """Place the floor and the initial view, at the first frame with a pose."""
        joints = posed.joints[np.isfinite(posed.joints).all((1, 2))].astype(np.float64)
        if not len(joints):
            return
        self._scene_is_set = True
        rig = self._frames.store.contents.rig
        up = rig.up
        height = float((posed.vertices @ up)[np.isfinite(posed.vertices).all(-1)].min())
        centre = joints[:, 0].mean(0)
        scene = self._server.scene
        scene.set_up_direction((float(up[0]), float(up[1]), float(up[2])))
        vertical = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        scene.add_grid(
            "/floor", width=20, height=20, wxyz=_wxyz(rotation_between(vertical, torch.from_numpy(up))),
            position=centre - up * (centre @ up - height), cell_color=(225, 225, 225),
            section_color=(200, 200, 200),
        )  # fmt: skip
        side = rig.centres[0] - centre
        side -= up * (side @ up)
        side = np.cross(up, side) * 0.5 + side
        length = float(np.linalg.norm(side))
        if length < 1e-6:
            side, length = np.linalg.svd(up[None])[2][1], 1.0
        camera = self._server.initial_camera
        camera.up = (float(up[0]), float(up[1]), float(up[2]))
        camera.position = centre + side / length * 3.4 + up * 1.1
        camera.look_at = centre - up * 0.05

    def run(self) -> None:
        """Draw what the controls state, forever."""
        polled, now = 0.0, time.monotonic()
        position = 0.0  # of playback, frames
        while True:
            before, now = now, time.monotonic()
            if self._live and now - polled > POLL_S:
                polled = now
                self._grow()
            self._handle_clicks()
            # Every time: a page that does not have the new end yet may have sent an older frame back.
            if self._follow.value and self._count:
                _set_value(self._slider, self._count - 1)
            if self._playing and self._count:
                if int(position) != int(self._slider.value):
                    position = float(self._slider.value)
                position += (now - before) * self._rate * float(self._speed.value.removesuffix("x"))
                if position >= self._count:
                    position = 0.0
                if int(position) != int(self._slider.value):
                    _set_value(self._slider, int(position))
            if self._count:
                self._draw(min(int(self._slider.value), self._count - 1))
            self._wake.wait(1 / 120 if self._playing else 0.1)
            self._wake.clear()

    def _grow(self) -> None:
        count = self._frames.count()
        if count != self._count:
            self._count = count
            self._slider.max = max(1, count - 1)
        self._live = count < self._total

    def _handle_clicks(self) -> None:
        while self._clicks:
            button = self._clicks.pop(0)
            _set_value(self._follow, False)
            if button == "play":
                self._playing = not self._playing
                self._play.label = "Pause" if self._playing else "Play"
                continue
            frame, last = int(self._slider.value), max(0, self._count - 1)
            target = {"|<": 0, "<": frame - 1, ">": frame + 1, ">|": last}[button]
            _set_value(self._slider, min(max(target, 0), last))

    def _draw(self, frame: int) -> None:
        wanted = (
            frame,
            self._count,
            tuple(box.value for box in (*self._show.values(), *self._show_person)),
            self._colours.value,
            self._worst.value,
        )
        if wanted == self._drawn:
            return
        posed = self._frames.at(frame)
        if not self._scene_is_set:
            self._set_scene(posed)
        with_pictures = self._show["Cameras"].value and self._show["Pictures"].value
        images = [p.at(frame) if p and with_pictures else None for p in self._pictures]
        with self._server.atomic():
            for p in range(self._people):
                self._draw_person(p, posed)
            self._draw_cameras(posed, images)
            self._status.content = self._table(frame, posed)
        self._server.flush()
        self._drawn = wanted

    def _draw_person(self, p: int, posed: PosedFrame) -> None:
        visible = bool(np.isfinite(posed.vertices[p]).all()) and self._show_person[p].value
        own = person_colour(self._ids[p])
        mesh, skeleton, points = self._handles[p]
        mesh.visible = visible and self._show["Mesh"].value
        skeleton.visible = visible and self._show["Skeleton"].value
        points.visible = visible and self._show["Keypoints"].value
        if not visible:
            return
        mesh.vertices = posed.vertices[p]
        mesh.color = self._colour(posed.camera_px[:, p], own)
        # The mesh is translucent over skeleton and points, and more so for a pose that is not accepted.
        inside = skeleton.visible or points.visible
        mesh.opacity = 0.35 if not posed.valid[p] else 0.75 if inside else None
        skeleton.points = posed.joints[p][self._frames.bones]
        dark = (np.array(own) * 0.45).astype(np.uint8)
        skeleton.colors = np.broadcast_to(dark, skeleton.points.shape).copy()
        points.points = posed.points[p]
        colours = error_colours(posed.point_px[p], float(self._worst.value))
        by_error = self._colours.value == "error"
        points.colors = colours if by_error else np.broadcast_to(dark, colours.shape).copy()

    def _colour(self, px: Floats, own: tuple[int, int, int]) -> tuple[int, int, int]:
        """Colour of the mean of the finite errors (N,), or ``own`` where errors are not shown."""
        if self._colours.value != "error":
            return own
        mean = np.array(px[np.isfinite(px)].mean() if np.isfinite(px).any() else np.nan)
        r, g, b = error_colours(mean, float(self._worst.value)).tolist()
        return r, g, b

    def _draw_cameras(self, posed: PosedFrame, images: Sequence[Pixels | None]) -> None:
        for px, frustum, image in zip(posed.camera_px, self._frusta, images, strict=True):
            frustum.visible = self._show["Cameras"].value
            frustum.color = self._colour(px, GREY)
            frustum.image = image

    def _table(self, frame: int, posed: PosedFrame) -> str:
        c = self._frames.store.contents
        notes = []
        for p in range(self._people):
            who = f"person {self._ids[p]} " if self._people > 1 else ""
            if not np.isfinite(posed.vertices[p]).all():
                notes.append(f"{who}not seen")
            elif not posed.valid[p]:
                notes.append(f"{who}not accepted: bridged, or too far off")
        state = f"{self._count} of {self._total} frames done" if self._count < self._total else ""
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td style='text-align:right'>"
            + ", ".join("–" if np.isnan(x) else f"{x:.1f} px" for x in posed.camera_px[v])
            + "</td></tr>"
            for v, name in enumerate(c.rig.names)
        )
        lines = [f"frame {frame} · {c.time_s[frame]:.3f} s", *notes, state]
        head = "<br>".join(line for line in lines if line)
        table = f"<table style='width:100%'>{rows}</table>"
        return f"<div style='font-size:.8em;padding:.3em .8em'>{head}{table}</div>"

    def close(self) -> None:
        for pictures in self._pictures:
            if pictures is not None:
                pictures.close()


def _set_value(control: Any, value: float) -> None:
    control.value = value  # of any type, as mypy loses viser's setter


def _wxyz(rotation: torch.Tensor) -> NDArray[np.float64]:
    """Unit quaternion (4,), real part first, of a rotation (3, 3)."""
    return np.asarray(roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(rotation)))
