"""FBX: the skinned, animated body, by Blender, which turns a .glb into it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from models.body import Body
from models.formats import glb
from models.formats.amass import contents
from models.formats.long_take import LongTake
from models.formats.traits import Traits
from pipeline.errors import InputError

TRAITS: Final = Traits(
    suffix=".fbx",
    description="skinned, animated body by Blender, where that is installed",
    blend_shapes=False,
)

_SCRIPT: Final = """
import sys, bpy
source, target, rate, base = sys.argv[-4:]
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
scene.render.fps, scene.render.fps_base = int(rate), 1.0
bpy.ops.import_scene.gltf(filepath=source)
for thing in [x for x in bpy.data.objects if x.type == "MESH" and not x.modifiers]:
    bpy.data.objects.remove(thing)  # the importer's shape of a bone
scene.render.fps_base = float(base)
scene.frame_start, scene.frame_end = (round(frame) for frame in bpy.data.actions[0].frame_range)
bpy.ops.export_scene.fbx(filepath=target, add_leaf_bones=False, bake_anim_simplify_factor=0.0)
"""
"""Blender's program. A rate of 30000/1001 is 30 by 1.001 there; keys must lie on whole frames, so the .glb is
at 30 and the 1.001 comes after it."""


def blender() -> list[str] | None:
    """Command that runs ``_SCRIPT`` in Blender or its module bpy; None where neither is there."""
    if find_spec("bpy") is not None:
        return [sys.executable, "-c", _SCRIPT]
    program = shutil.which("blender")
    if program is None:
        return None
    return [program, "--background", "--factory-startup", "--python-expr", _SCRIPT, "--"]


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """Body of the ``.glb`` as Blender writes it, a key a frame. Raises ``InputError`` without Blender."""
    command = blender()
    if command is None:
        raise InputError(
            f"{name}: FBX is written by Blender, and neither blender nor its module bpy is there. Write a "
            ".glb, which Blender opens and exports as FBX."
        )
    rate = Fraction(-(-take.rate // 1))
    whole = replace(take, rate=rate, time_s=np.arange(len(take)) / float(rate))
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "take.glb", Path(folder) / "take.fbx"
        with source.open("wb") as stream:
            stream.writelines(glb.encode(whole, body, source.name))
        numbers = [str(int(rate)), str(float(rate / take.rate))]
        ran = subprocess.run(
            [*command, source, target, *numbers], capture_output=True, text=True, check=False
        )
        if not target.exists():
            raise InputError(f"{name}: Blender wrote nothing: {(ran.stderr or ran.stdout).strip()[-500:]}")
        yield from contents(target)
