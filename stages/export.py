"""A person of finished results in a file for other tools; its suffix says for which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from models.body import Body
from models.formats import FOLDERS, ExportFormat, FolderFormat, find_format, glb
from models.formats.long_take import PIECE, LongTake
from models.formats.take import Take, TakeViews, pose_blend_mm
from models.formats.traits import Traits, as_it_is, axes_of
from pipeline.errors import InputError
from pipeline.files import write_bytes_atomically, writing
from pipeline.store import Store

Gaps = Literal["hold", "nan", "interpolate"]
"""Frames without a pose: that of the frame before, none, or between those around."""


@dataclass(frozen=True)
class ExportOptions:
    """Part of the results that is written, and how."""

    start: int = 0
    stop: int | None = None
    """The frame after the last; None for the end, in a format of one frame for that after ``start``."""
    gaps: Gaps | None = None
    """None: as the format has it."""
    fps: Fraction | None = None
    """None: the rate of the results."""
    cameras: Mapping[str, str] | None = None
    """Video of each camera of the results, '' for none; None where no cameras are written."""


def options_of(
    start: int, stop: int | None, gaps: str | None, fps: str | None, cameras: Mapping[str, str] | None
) -> ExportOptions:
    """Options as they are given on the command line. Raises ``InputError``."""
    if gaps not in (None, *get_args(Gaps)):
        raise InputError(f"--gaps {gaps}: expected {', '.join(get_args(Gaps))}")
    try:
        rate = None if fps is None else Fraction(fps.replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate is not None and not 0 < rate <= 10_000:
        raise InputError(f"--fps {fps}: expected frames a second, such as 60 or 30000/1001")
    return ExportOptions(start, stop, cast("Gaps | None", gaps), rate, cameras)


def export_people(
    results: Store, body: Body, file: Path, people: Sequence[int], options: ExportOptions
) -> Iterator[tuple[Path, str, list[str]]]:
    """Write people, each to a file of their own where the format holds one: ``take_p1.glb``.

    Gives, for each file, its path, a sentence on what was written, and others on what the user must know. Of
    several people those are left out who have nothing to show in these frames. Raises ``InputError`` as
    ``export_person`` does, and where there is nobody.
    """
    if not people:
        raise InputError(f"{results.path}: has nobody in it, so there is nothing to write.")
    export_format = find_format(file)
    suffix = export_format.TRAITS.suffix
    present, absent = _present(results, export_format.TRAITS, people, options)
    if any(export_format is folder_format for folder_format in FOLDERS):
        told, warnings = _export_folder(results, body, file, present, options)
        yield file, told, absent + warnings
        return
    for person in present:
        name = (
            f"{file.name[: -len(suffix)]}_p{person}{file.name[-len(suffix) :]}"
            if len(people) > 1
            else file.name
        )
        told, warnings = export_person(results, body, file.with_name(name), person, options)
        if len(people) > 1:
            warnings = [f"person {person}: {warning}" for warning in warnings]
        yield file.with_name(name), told, absent + warnings
        absent = []


def _present(
    results: Store, traits: Traits, people: Sequence[int], options: ExportOptions
) -> tuple[Sequence[int], list[str]]:
    """Those of several people who have what the file shows in the frames that are written, and sentences on
    the others; everybody where nobody has."""
    start, stop = _span(traits, options)
    name, what = ("valid", "a valid pose") if _only_valid(traits, options) else ("global_orient", "a pose")
    present = []
    for person in people if len(people) > 1 else ():
        values = results.array(f"people/{person}/{name}", start, stop)
        if (values if name == "valid" else np.isfinite(values)).any():
            present.append(person)
    if not present:
        return people, []
    absent = [person for person in people if person not in present]
    return present, [f"person {p} has nowhere {what} in these frames, and is left out." for p in absent]


def _span(traits: Traits, options: ExportOptions) -> tuple[int, int | None]:
    """First frame that is written, and the one after the last; None for the end."""
    one = traits.single_frame and options.stop is None
    return options.start, options.start + 1 if one else options.stop


def _only_valid(traits: Traits, options: ExportOptions) -> bool:
    """True where poses that are not valid are not written."""
    return traits.gaps == "empty" and options.gaps is None


def export_person(
    results: Store, body: Body, file: Path, person: int = 0, options: ExportOptions | None = None
) -> tuple[str, list[str]]:
    """Write a person to ``file``, whole or not at all, over one that is there.

    ``body``: the one that the results were made with. Returns a sentence on what was written, and others on
    what the user must know.

    Raises ``InputError`` for an unknown suffix, another body, results that lack the person or frames, frames
    without a pose, and a file that cannot be written.
    """
    options = options or ExportOptions()
    export_format = find_format(file)
    traits = export_format.TRAITS
    take, turn, warnings = _take(results, body, file, person, options)
    if options.cameras is not None:
        if traits.suffix != ".glb":
            raise InputError(f"{file}: only a .glb holds cameras. Leave out --cameras.")
        content = glb.encode(
            take, body, file.name, glb.scene_cameras(results.contents.rig, turn, options.cameras)
        )
    else:
        content = cast(ExportFormat, export_format).encode(take, body, file.name)
    with writing(file, "Choose another place."):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(file, content)
    return _told(results, body, traits, f"person {person}", take, turn), warnings


def _export_folder(
    results: Store, body: Body, folder: Path, people: Sequence[int], options: ExportOptions
) -> tuple[str, list[str]]:
    """Write people to the files of a folder that is not there yet, or is empty."""
    export_format = cast(FolderFormat, find_format(folder))
    if options.cameras is not None:
        raise InputError(f"{folder}: only a .glb holds cameras. Leave out --cameras.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already. Move it away, or choose another name.")
    takes, said = [], list[str]()
    for person in people:
        take, turn, warnings = _take(results, body, folder, person, options)
        takes.append(take)
        said += [f"person {person}: {warning}" for warning in warnings]
    with writing(folder, "Choose another place."):
        for name, content in export_format.files(takes, body):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    who = f"person {people[0]}" if len(people) == 1 else f"people {', '.join(map(str, people))}"
    return _told(results, body, export_format.TRAITS, who, takes[0], turn), said


def _take(
    results: Store, body: Body, file: Path, person: int, options: ExportOptions
) -> tuple[LongTake, NDArray[np.float64], list[str]]:
    """Motion of a person as it is to be written, how its world was turned, and sentences for the user."""
    traits = find_format(file).TRAITS
    start, stop = _span(traits, options)
    made_with = results.contents.body
    if body.sha256 != made_with["sha256"]:
        raise InputError(
            f"{body.name}: is not the body that {results.path} was made with, which was {made_with['name']} "
            f"(sha256 {made_with['sha256'][:12]}, this is {body.sha256[:12]}). Say where that is: --body."
        )
    take = read_take(results, person, start, stop, views=traits.views)
    if traits.single_frame and len(take) != 1:
        last = start + len(take) - 1
        raise InputError(
            f"{file}: an {traits.suffix} holds one frame, and {start} to {last} are more. Leave out --end."
        )
    only_valid = _only_valid(traits, options)
    if not (take.valid if only_valid else take.posed).any():
        what = "a valid pose" if only_valid else "a pose"
        frames = _frames(take)
        raise InputError(f"{results.path}: person {person} has nowhere {what} in {frames}. Choose others.")
    if options.gaps == "nan" and traits.gaps == "bridged":
        raise InputError(
            f"{file}: a {traits.suffix} needs a pose in every frame. Choose --gaps hold or interpolate."
        )
    if options.fps is not None and traits.views:
        raise InputError(f"{file}: shows the videos' frames. Leave out --fps.")
    warnings = _gaps(take, traits, options.gaps)
    if options.gaps in ("hold", "interpolate"):
        take = take.filled(body, hold=options.gaps == "hold")
    if options.fps is not None:
        take = take.resampled(options.fps, body)
    turn = traits.turn(results.contents.rig.up)
    return take.turned(turn, body), turn, [*warnings, *_left_out(take, body, traits)]


def _frames(take: LongTake) -> str:
    last = take.first + len(take) - 1
    return f"frames {take.first} to {last}" if last > take.first else f"frame {last}"


def _told(
    results: Store, body: Body, traits: Traits, who: str, take: LongTake, turn: NDArray[np.float64]
) -> str:
    up = results.contents.rig.up
    told = f"{who}, {_frames(take)}, {traits.unit}"
    if traits.turn is as_it_is:
        told += ", in the calibration's world"
    else:
        told += (
            f", {'xyz'[int((turn @ up).argmax())]} up: x, y, z of the file are {axes_of(turn)} of the "
            "calibration's world"
        )
    return told + (f"; betas are those of the body {body.name}" if traits.betas else "")


def read_take(
    results: Store, person: int, start: int = 0, stop: int | None = None, *, views: bool = False
) -> LongTake:
    """Frames ``start:stop`` of a person, in the world of the calibration; without ``stop``, to the end.

    views: with the pictures of the person.

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
    results.find_people(str(person))

    return LongTake(
        first=start,
        rate=c.rate,
        time_s=c.time_s[start:stop],
        posed=np.concatenate(
            [_posed(results, person, a, min(a + PIECE, stop)) for a in range(start, stop, PIECE)]
        ),
        valid=results.array(f"people/{person}/valid", start, stop),
        betas=results.array(f"people/{person}/betas").astype(np.float64),
        point_names=c.keypoint_skeleton.names,
        angle_names=tuple(c.angles),
        cut=lambda a, b: _read_frames(results, person, start + a, start + b, views=views),
        events_s=results.events(person),
        piece=PIECE,
    )


def _posed(results: Store, person: int, start: int, stop: int) -> NDArray[np.bool_]:
    """(T,) there is a pose."""
    parts = [
        results.array(f"people/{person}/{name}", start, stop).reshape(stop - start, -1)
        for name in ("global_orient", "body_pose", "transl")
    ]
    return np.asarray(np.isfinite(np.concatenate(parts, 1)).all(1))


def _read_frames(results: Store, person: int, start: int, stop: int, *, views: bool) -> Take:
    """Frames ``start:stop`` of a person who is there."""
    c = results.contents
    seen = results.array(f"people/{person}/keypoints_2d", start, stop) if views else None

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
        person=person,
        angles=read("angles") if c.angles else np.empty((stop - start, 0)),
        angle_names=tuple(c.angles),
        views=TakeViews(c.rig, c.frame_index[:, start:stop], seen) if seen is not None else None,
    )


def _gaps(take: LongTake, traits: Traits, chosen: Gaps | None) -> list[str]:
    """Sentences on frames without a pose, and on those whose pose is not to be trusted."""
    frames, posed = len(take), take.posed
    lost, doubted = int((~posed).sum()), int((posed & ~take.valid).sum())
    how = chosen or {"bridged": "interpolate"}.get(traits.gaps, traits.gaps)
    if how == "empty":
        gaps = int((~take.valid).sum())
        return [f"{gaps} of {frames} frames are not valid: they are left empty."] if gaps else []
    said = []
    if lost and how in ("nan", "left out"):
        said.append(f"{lost} of {frames} frames have no pose: they are {'NaN' if how == 'nan' else how}.")
    elif lost:
        at = np.flatnonzero(posed)
        between = int((~posed[at[0] : at[-1]]).sum())
        middle = "hold the one before" if how == "hold" else "are interpolated between those around them"
        said.append(
            f"{lost} of {frames} frames have no pose: {between} {middle}, "
            f"{lost - between} before the first or after the last hold that one."
        )
    if doubted:
        marked = ", and valid says which" if how == "nan" and traits.gaps == "nan" else ""
        said.append(
            f"{doubted} of {frames} frames have a pose that is not to be trusted: it is kept{marked}."
        )
    return said


def _left_out(take: LongTake, body: Body, traits: Traits) -> list[str]:
    """Sentences on what the format cannot hold."""
    moved = 0.0 if traits.blend_shapes else _blend_mm(take, body)
    if not moved:
        return []
    return [
        f"{body.name} has pose blend shapes, which {traits.suffix} cannot hold: they are left out, and move "
        f"the skin by up to {moved:.0f} mm here. Joints are exact; .obj has them."
    ]


def _blend_mm(take: LongTake, body: Body) -> float:
    """``pose_blend_mm`` of up to two dozen frames spread over the take's poses."""
    if not body.posedirs.any():
        return 0.0
    posed = np.flatnonzero(take.posed)
    chosen = posed[:: -(-len(posed) // 24)].tolist()
    return pose_blend_mm(body, np.concatenate([take.cut(t, t + 1).rotations for t in chosen]))
