"""The same pictures as ``models/rendering/software.py`` by OpenGL, through EGL: no display is needed.

A context belongs to the thread that made it, and forked processes hang in it: each thread gets its own here,
and processes must be spawned. What draws may be a graphics card or a program such as llvmpipe, slower than
``software``: ``renderer`` says which.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.rendering.kernels import NEAR_M
from models.rendering.software import Picture, resolve, to_screen
from pipeline.cameras import Rig
from pipeline.errors import InputError

Floats = NDArray[np.float32]

SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "swiftshader")

# The vertices are on the screen already, lens and all, so w is 1 and everything is linear there, as 1/z is.
_VERTEX = """
#version 330
uniform vec2 size;
uniform float near;
in vec2 uv;
in float inverse_z;
in float light;
noperspective out vec2 sample_value;
void main() {
    gl_Position = vec4(2.0 * uv / size - 1.0, 1.0 - 2.0 * inverse_z * near, 1.0);
    sample_value = vec2(inverse_z, light);
}
"""
_FRAGMENT = """
#version 330
noperspective in vec2 sample_value;
out vec2 value;
void main() { value = sample_value; }
"""

_log = logging.getLogger(__name__)


def draw(
    vertices: Floats,
    faces: NDArray[np.int32],
    rig: Rig,
    view: int,
    colours: Floats,
    *,
    antialias: bool = True,
) -> Picture | None:
    """As ``software.draw``.

    Raises ``InputError`` when moderngl is not installed or finds no EGL.
    """
    screen = to_screen(vertices, faces, rig, view)
    gl = _context()
    if screen is None:
        return None
    samples = 2 if antialias else 1
    x0, y0, x1, y1 = screen.box
    width, height = (x1 - x0) * samples, (y1 - y0) * samples
    people, points = screen.inverse_z.shape
    # OpenGL's whole numbers are edges of samples, not centres. Its rows count upwards and so, from the top of
    # the picture, do ours: nothing is flipped but the sense of rotation.
    uv = (screen.uv - np.array([x0, y0], np.float32) + np.float32(0.5)) * samples
    light = screen.shade + 2 * np.arange(people, dtype=np.float32)[:, None]
    data = np.concatenate([uv, screen.inverse_z[..., None], light[..., None]], -1).astype(np.float32)
    every = (faces[None] + (np.arange(people, dtype=np.int32) * points)[:, None, None]).reshape(-1, 3)
    if not screen.inverse_z.all():
        every = every[(screen.inverse_z.reshape(-1)[every] > 0).all(1)]
    if not len(every):
        return None
    found = gl.fill(data.reshape(-1, 4), np.ascontiguousarray(every, np.int32), width, height)
    return resolve(found[..., 0], found[..., 1], colours, samples, (x0, y0))


def renderer() -> str:
    """OpenGL's name of what draws. Raises ``InputError`` as ``draw`` does."""
    return _context().name


@dataclass
class _Gl:
    """One thread's context."""

    context: Any
    program: Any
    name: str
    target: Any = None

    def fill(self, data: Floats, faces: NDArray[np.int32], width: int, height: int) -> Floats:
        """(height, width, 2) 1/z and 2 × person + brightness of each sample, 0 where nothing is."""
        gl = self.context
        if self.target is None or self.target.size[0] < width or self.target.size[1] < height:
            old = self.target.size if self.target else (0, 0)
            size = (max(old[0], -(-width // 256) * 256), max(old[1], -(-height // 256) * 256))
            if self.target:
                for attachment in (*self.target.color_attachments, self.target.depth_attachment):
                    attachment.release()
                self.target.release()
            colour = gl.renderbuffer(size, 2, dtype="f4")
            self.target = gl.framebuffer([colour], gl.depth_renderbuffer(size))
        box = (0, 0, width, height)
        self.target.use()
        self.target.viewport = box
        self.target.clear(0, 0, 0, 0, viewport=box)
        self.program["size"], self.program["near"] = (width, height), NEAR_M
        vertices, indices = gl.buffer(data), gl.buffer(faces)
        array = gl.vertex_array(self.program, [(vertices, "2f 1f 1f", "uv", "inverse_z", "light")], indices)
        array.render()
        out = np.empty((height, width, 2), np.float32)
        self.target.read_into(out, viewport=box, components=2, dtype="f4", alignment=1)
        for thing in (array, vertices, indices):
            thing.release()
        return out


_current: ContextVar[_Gl | None] = ContextVar("gl", default=None)
"""Of this thread: each one begins with the default."""


def _context() -> _Gl:
    found = _current.get()
    if found is None:
        found = _make()
        _current.set(found)
    return found


def _make() -> _Gl:
    try:
        import moderngl
    except ImportError as error:
        raise InputError(
            f"render.backend=moderngl: moderngl cannot be imported ({error}). Install it with "
            "pip install 'multispin[gl]', or use render.backend=software."
        ) from error
    try:
        # libEGL finds OpenGL's functions, too: a machine without a display often has no libGL.
        libraries: dict[str, Any] = {"backend": "egl", "libgl": "libEGL.so.1", "libegl": "libEGL.so.1"}
        with suppress(ImportError):
            # Mesa's software renderer and Triton each bring an LLVM, and Triton's crashes the process when it
            # comes second, which any torch optimiser makes it do.
            import triton._C.libtriton  # noqa: F401
        context = moderngl.create_context(require=330, standalone=True, **libraries)
    except Exception as error:  # moderngl raises the bare class
        raise InputError(
            f"render.backend=moderngl: EGL gives no OpenGL 3.3 context ({error}). Install a driver with EGL "
            "(Debian: libegl1 and libgl1-mesa-dri), or use render.backend=software."
        ) from error
    context.enable_only(moderngl.DEPTH_TEST | moderngl.CULL_FACE)
    context.front_face = "cw"
    name = str(context.info["GL_RENDERER"])
    _log.info("OpenGL draws with %s", name)
    return _Gl(context, context.program(vertex_shader=_VERTEX, fragment_shader=_FRAGMENT), name)
