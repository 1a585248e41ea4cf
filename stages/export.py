"""A person of finished results in a file for other tools; its suffix says for which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body
from models.formats import find_format
from models.formats.take import Take, pose_blend_mm
from models.formats.traits import Traits, axes_of
from pipeline.errors import InputError
from pipeline.files import write_whole, writing
from pipeline.store import Store


def export(
    results: Store, body: Body, file: Path, person: int = 0, start: int = 0, stop: int | None = None
) -> tuple[str, list[str]]:
    """Write frames ``start:stop`` of a person to ``file``, whole or not at all, over one that is there.

    ``body``: the one that the results were made with. ``.obj`` takes the frame ``start`` alone.

    Returns a sentence on what was written, and others on what the user must know.

    Raises ``InputError`` for an unknown suffix, another body, results that lack the person or frames, frames
    without a pose, and a file that cannot be written.
    """
    export_format = find_format(file)
    traits = export_format.TRAITS
    made_with = results.contents.body
    if body.sha256 != made_with["sha256"]:
        raise InputError(
            f"{body.name}: is not the body that {results.path} was made with, which was {made_with['name']} "
            f"(sha256 {made_with['sha256'][:12]}, this is {body.sha256[:12]}). Say where that is: --body."
        )
    if traits.single_frame and stop is None:
        stop = start + 1
    take = read_take(results, person, start, stop)
    if traits.single_frame and len(take.time_s) != 1:
        last = start + len(take.time_s) - 1
        raise InputError(
            f"{file}: an {traits.suffix} holds one frame, and {start} to {last} are more. Leave out --end."
        )
    known = take.valid if traits.gaps == "empty" else take.posed
    frames = f"frames {start} to {start + len(known) - 1}" if len(known) > 1 else f"frame {start}"
    if not known.any():
        what = "a valid pose" if traits.gaps == "empty" else "a pose"
        raise InputError(f"{results.path}: person {person} has nowhere {what} in {frames}. Choose others.")
    up = results.contents.rig.up
    turn = traits.turn(up)
    take = take.turned(turn, body)
    with writing(file, "Choose another place."):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, export_format.encode(take, body, file.name))
    told = (
        f"person {person}, {frames}, {traits.unit}, {'xyz'[int((turn @ up).argmax())]} up: x, y, z of the "
        f"file are {axes_of(turn)} of the calibration's world"
    )
    if traits.betas:
        told += f"; betas are those of the body {body.name}"
    return told, [*_gaps(take, traits), *_left_out(take, body, traits)]


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
        rotations[posed] = roma.rotvec_to_rotmat(torch.from_numpy(vectors[posed])).numpy()
    return Take(
        first=start,
        rate=c.rate,
        time_s=c.time_s[start:stop],
        rotations=rotations,
        betas=results.array(f"people/{person}/betas").astype(np.float64),
        transl=read("transl"),
        joints=read("joints"),
        points=read("keypoints_3d")[..., :3],
        point_names=c.keypoint_skeleton.names,
        valid=results.array(f"people/{person}/valid", start, stop),
    )


def _gaps(take: Take, traits: Traits) -> list[str]:
    """Sentences on frames without a pose, and on those whose pose is not to be trusted."""
    frames, posed = len(take.time_s), take.posed
    lost, doubted = int((~posed).sum()), int((posed & ~take.valid).sum())
    if traits.gaps == "empty":
        gaps = int((~take.valid).sum())
        return [f"{gaps} of {frames} frames are not valid: they are left empty."] if gaps else []
    said = []
    if lost and traits.gaps == "nan":
        said.append(f"{lost} of {frames} frames have no pose: they are NaN.")
    elif lost:
        at = np.flatnonzero(posed)
        between = int((~posed[at[0] : at[-1]]).sum())
        said.append(
            f"{lost} of {frames} frames have no pose: {between} are interpolated between those around them, "
            f"{lost - between} before the first or after the last hold that one."
        )
    if doubted:
        marked = ", and valid says which" if traits.gaps == "nan" else ""
        said.append(
            f"{doubted} of {frames} frames have a pose that is not to be trusted: it is kept{marked}."
        )
    return said


def _left_out(take: Take, body: Body, traits: Traits) -> list[str]:
    """Sentences on what the format cannot hold."""
    moved = 0.0 if traits.blend_shapes else pose_blend_mm(body, take.rotations[take.posed])
    if not moved:
        return []
    return [
        f"{body.name} has pose blend shapes, which {traits.suffix} cannot hold: they are left out, and move "
        f"the skin by up to {moved:.0f} mm here. Joints are exact; .obj has them."
    ]
