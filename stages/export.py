"""A person of finished results in a file for other tools; its suffix says for which."""

from __future__ import annotations

import io
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from models.body import Body
from models.export import (
    Take,
    axes_of,
    facing,
    facing_as_pose2sim,
    pose_blend_mm,
    posed_vertices,
    to_amass,
    to_bvh,
    to_glb,
    to_obj,
    to_trc,
)
from pipeline.errors import InputError
from pipeline.files import write_whole
from pipeline.store import Store

FORMATS: Final = MappingProxyType(
    {
        ".glb": "skinned, animated body: Blender, three.js, Windows",
        ".bvh": "skeleton's motion",
        ".trc": "BODY_25 markers: OpenSim, Pose2Sim",
        ".npz": "SMPL parameters under AMASS's names",
        ".obj": "mesh of one frame",
    }
)


def check_format(file: Path) -> None:
    """Raises ``InputError`` when the suffix names no format."""
    if file.suffix.lower() not in FORMATS:
        known = ", ".join(f"{suffix} ({what})" for suffix, what in FORMATS.items())
        raise InputError(
            f"{file}: the suffix says what is written, and there is none for this. Choose {known}."
        )


def export(
    results: Store, body: Body, file: Path, person: int = 0, start: int = 0, stop: int | None = None
) -> tuple[str, list[str]]:
    """Write frames ``start:stop`` of a person to ``file``, whole or not at all, over one that is there.

    ``body``: the one that the results were made with. ``.obj`` takes the frame ``start`` alone.

    Returns a sentence on what was written, and others on what the user must know.

    Raises ``InputError`` for an unknown suffix, another body, results that lack the person or frames, frames
    without a pose, and a file that cannot be written.
    """
    check_format(file)
    made_with = results.contents.body
    if body.sha256 != made_with["sha256"]:
        raise InputError(
            f"{body.name}: is not the body that {results.path} was made with, which was {made_with['name']} "
            f"(sha256 {made_with['sha256'][:12]}, this is {body.sha256[:12]}). Say where that is: --body."
        )
    suffix = file.suffix.lower()
    if suffix == ".obj" and stop is None:
        stop = start + 1
    take = read_take(results, person, start, stop)
    if suffix == ".obj" and len(take.time_s) != 1:
        last = start + len(take.time_s) - 1
        raise InputError(f"{file}: an .obj holds one frame, and {start} to {last} are more. Leave out --end.")
    known = take.valid if suffix == ".trc" else take.posed
    frames = f"frames {start} to {start + len(known) - 1}" if len(known) > 1 else f"frame {start}"
    if not known.any():
        what = "a valid pose" if suffix == ".trc" else "a pose"
        raise InputError(f"{results.path}: person {person} has nowhere {what} in {frames}. Choose others.")
    up = results.contents.rig.up
    turn = {".trc": facing_as_pose2sim(up), ".npz": facing(up, "z")}.get(suffix, facing(up))
    take = take.turned(turn, body)
    content: bytes
    match suffix:
        case ".glb":
            content = to_glb(take, body)
        case ".bvh":
            content = to_bvh(take, body).encode()
        case ".trc":
            content = to_trc(take, file.name).encode(errors="surrogateescape")
        case ".npz":
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **to_amass(take, body))  # type: ignore[arg-type]
            content = buffer.getvalue()
        case _:
            content = to_obj(posed_vertices(take, body, 0), body.faces).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as e:
        raise InputError(f"{file}: cannot be written ({e.strerror or e}). Choose another place.") from e
    unit = "centimetres" if suffix == ".bvh" else "metres"
    told = (
        f"person {person}, {frames}, {unit}, {'z' if suffix == '.npz' else 'y'} up: x, y, z of the file are "
        f"{axes_of(turn)} of the calibration's world"
    )
    if suffix == ".npz":
        told += f"; betas are those of the body {body.name}"
    return told, [*_gaps(take, suffix), *_left_out(take, body, suffix)]


def read_take(results: Store, person: int, start: int = 0, stop: int | None = None) -> Take:
    """Frames ``start:stop`` of a person, in the world of the calibration; without ``stop``, to the end.

    Raises ``InputError`` when there is no such person, or not all of these frames are there.
    """
    c = results.contents
    total = len(c.time_s)
    done = results.finished
    if stop is None and done < total:
        raise InputError(
            f"{results.path}: only {done} of {total} frames are done. Run the same `run` again to go on"
            + (f", or take those that are there: --end {done}." if done > start else ".")
        )
    stop = total if stop is None else stop
    results.check_frames(start, stop)
    if person not in results.ids:
        has = ", ".join(map(str, results.ids)) or "nobody"
        raise InputError(f"{results.path}: there is no person {person}; those there are: {has}.")

    def read(name: str) -> NDArray[np.float64]:
        return results.array(f"people/{person}/{name}", start, stop).astype(np.float64)

    vectors = np.concatenate([read("global_orient")[:, None], read("body_pose")], 1)
    rotations = np.full((*vectors.shape, 3), np.nan)
    posed = np.isfinite(vectors).all((1, 2))
    if posed.any():
        flat = Rotation.from_rotvec(vectors[posed].reshape(-1, 3)).as_matrix()
        rotations[posed] = flat.reshape(-1, 24, 3, 3)
    return Take(
        first=start,
        rate=c.rate,
        time_s=c.time_s[start:stop],
        rotations=rotations,
        betas=results.array(f"people/{person}/betas").astype(np.float64),
        transl=read("transl"),
        joints=read("joints"),
        points=read("keypoints_3d")[..., :3],
        valid=results.array(f"people/{person}/valid", start, stop),
    )


def _gaps(take: Take, suffix: str) -> list[str]:
    """What became of frames without a pose, and of those whose pose is not to be trusted."""
    frames, posed = len(take.time_s), take.posed
    lost, doubted = int((~posed).sum()), int((posed & ~take.valid).sum())
    if suffix == ".trc":
        gaps = int((~take.valid).sum())
        return [f"{gaps} of {frames} frames are not valid: they are left empty."] if gaps else []
    said = []
    if lost and suffix == ".npz":
        said.append(f"{lost} of {frames} frames have no pose: they are NaN.")
    elif lost:
        at = np.flatnonzero(posed)
        between = int((~posed[at[0] : at[-1]]).sum())
        said.append(
            f"{lost} of {frames} frames have no pose: {between} are interpolated between those around them, "
            f"{lost - between} before the first or after the last hold that one."
        )
    if doubted:
        marked = ", and valid says which" if suffix == ".npz" else ""
        said.append(
            f"{doubted} of {frames} frames have a pose that is not to be trusted: it is kept{marked}."
        )
    return said


def _left_out(take: Take, body: Body, suffix: str) -> list[str]:
    """What the format cannot say."""
    moved = pose_blend_mm(body, take.rotations[take.posed]) if suffix == ".glb" else 0
    if not moved:
        return []
    return [
        f"{body.name} has pose blend shapes, which glTF cannot express: they are left out, and move the skin "
        f"by up to {moved:.0f} mm here. Joints are exact; .obj has them."
    ]
