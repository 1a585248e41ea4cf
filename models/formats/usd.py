"""USD: the skinned, animated body, by Pixar's usd-core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import roma
import torch

from models.body import Body
from models.formats.amass import contents
from models.formats.long_take import LongTake
from models.formats.take import rest_joints, rest_vertices, skin_weights
from models.formats.traits import Traits
from pipeline.errors import InputError

TRAITS: Final = Traits(
    suffix=".usd",
    description="skinned, animated body: Houdini, Omniverse, Maya, Unreal",
    blend_shapes=False,
)
_FRAMES_A_SAVE: Final = 10_000
"""Frames from one saving to the next: each writes the times anew."""


def encode(take: LongTake, body: Body, name: str) -> Iterator[bytes]:
    """Skinned, animated body of UsdSkel; gaps are filled.

    Metres, y up; a time code is a frame of the take, from 0. Rest pose and skin weights are the body's in the
    shape of the take. Pose blend shapes cannot be expressed (``pose_blend_mm``).

    Raises ``InputError`` without usd-core.
    """
    try:
        from pxr import Gf, Sdf, Usd, UsdGeom, UsdSkel, Vt
    except ImportError:
        raise InputError(f"{name}: writing USD needs usd-core: pip install 'multispin[usd]'.") from None
    take = take.without_gaps()
    rest, vertices = rest_joints(body, take.betas), rest_vertices(body, take.betas)
    parents = body.skeleton.parents
    steps = rest - np.where(np.arange(len(rest))[:, None] > 0, rest[[*parents]], 0)
    paths: list[str] = []
    for joint, parent in zip(body.skeleton.names, parents, strict=True):
        paths.append(f"{paths[parent]}/{joint}" if parent >= 0 else joint)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "take.usd"
        stage = Usd.Stage.CreateNew(str(file))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        stage.SetTimeCodesPerSecond(float(take.rate))
        stage.SetFramesPerSecond(float(take.rate))
        stage.SetStartTimeCode(0)
        stage.SetEndTimeCode(len(take) - 1)
        root = UsdSkel.Root.Define(stage, "/person")
        stage.SetDefaultPrim(root.GetPrim())
        skeleton = UsdSkel.Skeleton.Define(stage, "/person/skeleton")
        skeleton.CreateJointsAttr(paths)
        skeleton.CreateBindTransformsAttr([Gf.Matrix4d().SetTranslate(Gf.Vec3d(*p)) for p in rest.tolist()])
        skeleton.CreateRestTransformsAttr([Gf.Matrix4d().SetTranslate(Gf.Vec3d(*p)) for p in steps.tolist()])
        mesh = UsdGeom.Mesh.Define(stage, "/person/body")
        mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(vertices.astype(np.float32)))
        mesh.CreateFaceVertexCountsAttr(Vt.IntArray(len(body.faces), 3))
        mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(body.faces.astype(np.int32).ravel()))
        mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        joints, weights = skin_weights(body)
        indices, most = Vt.IntArray.FromNumpy(joints.astype(np.int32).ravel()), joints.shape[1]
        skin = UsdSkel.BindingAPI.Apply(mesh.GetPrim())
        skin.CreateSkeletonRel().SetTargets([skeleton.GetPath()])
        skin.CreateJointIndicesPrimvar(False, most).Set(indices)
        skin.CreateJointWeightsPrimvar(False, most).Set(
            Vt.FloatArray.FromNumpy(weights.astype(np.float32).ravel())
        )
        motion = UsdSkel.Animation.Define(stage, "/person/motion")
        motion.CreateJointsAttr(paths)
        motion.CreateScalesAttr(Vt.Vec3hArray(len(paths), Gf.Vec3h(1)))
        UsdSkel.BindingAPI.Apply(skeleton.GetPrim()).CreateAnimationSourceRel().SetTargets([motion.GetPath()])
        moves, turns = motion.CreateTranslationsAttr(), motion.CreateRotationsAttr()
        saved = 0
        for piece in take.pieces():
            quaternions = roma.rotmat_to_unitquat(torch.from_numpy(piece.rotations)).float().numpy()
            places = np.tile(steps.astype(np.float32), (len(quaternions), 1, 1))
            places[:, 0] += piece.transl
            with Sdf.ChangeBlock():
                for i, (place, turn) in enumerate(zip(places, quaternions, strict=True)):
                    moves.Set(Vt.Vec3fArray.FromNumpy(place), piece.first - take.first + i)
                    turns.Set(Vt.QuatfArray.FromNumpy(turn), piece.first - take.first + i)
            done = piece.first - take.first + len(quaternions)
            if done - saved >= _FRAMES_A_SAVE:
                stage.Save()  # what is in the file is not kept in memory
                saved = done
        stage.Save()
        yield from contents(file)
