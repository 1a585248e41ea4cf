"""Numbering of keypoint files: which frame a number belongs to, as stated or as found."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.findings import Code, Finding
from pipeline.formats.keypoints.files import KeypointFiles
from pipeline.settings import StatedKeypoints

_STEPS: Final = range(2, 11)
"""Steps, frames from one file to the next, that are tried."""
_MIN_FILES: Final = 10
"""Fewest files of a camera by which a step is found."""


@dataclass(frozen=True)
class Numbered:
    """Cameras by name, the count of their video's frames and their keypoint files, where they have such."""

    names: tuple[str, ...]
    frames: tuple[int | None, ...]
    files: tuple[KeypointFiles | None, ...]

    def with_files(self) -> list[tuple[str, int | None, KeypointFiles]]:
        return [(n, t, f) for n, t, f in zip(self.names, self.frames, self.files, strict=True) if f]


@dataclass(frozen=True)
class Numbering:
    """Number of the file that belongs to a camera's frame 0, and frames from one number to the next."""

    first: int = 0
    step: Fraction = Fraction(1)

    def of(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of these frames; −1 for a frame of −1, and where no number belongs to a frame."""
        every, a_frame = self.step.numerator, self.step.denominator
        there = (frames >= 0) & (frames % every == 0)
        return np.where(there, np.maximum(self.first + frames * a_frame // every, -1), -1)

    def frame(self, number: int) -> int:
        """Frame of a number, rounded down where it belongs to none."""
        return int((number - self.first) * self.step // 1)


def find_numbering(
    cameras: Numbered,
    stated: StatedKeypoints,
    pictures: int | None,
    notes: list[tuple[str, str]],
    findings: list[Finding],
) -> Numbering:
    """Numbering of the keypoint files of all cameras.

    As stated; else the one by which every camera has a file for each frame of its video, or for every n-th;
    else by frames, from the first number on where that lies past the end of the video. pictures: number of
    the first picture, where pictures stand for a video, which have the numbers of their keypoints.
    """
    step = Fraction(str(stated.step).replace(" ", "")) if stated.step is not None else None
    both = [(t, f) for _, t, f in cameras.with_files() if t is not None]
    if stated.first_frame is not None or step is not None:
        return Numbering(stated.first_frame or 0, step or Fraction(1))
    if pictures is not None:
        lows = {int(f.numbers[0]) for t, f in both if f.numbers[-1] - f.numbers[0] + 1 == t}
        return Numbering(
            lows.pop() if len(lows) == 1 and len(both) == sum(map(bool, cameras.frames)) else pictures
        )
    # Numbered 1 to N for N frames: counted from 0, the last file of every camera would belong to no frame.
    if both and all(f.numbers[0] >= 1 and f.numbers[-1] == t for t, f in both):
        notes.append(("frame numbers", "keypoint files count from 1, since their last is the videos' length"))
        return Numbering(1)
    if both and all(f.numbers[0] >= t for t, f in both):
        first = min(int(f.numbers[0]) for _, f in both)
        sentence = (
            f"the numbers of the keypoint files begin past their videos' last frames: file {first} is taken "
            f"as the first frame's; recording.yaml: keypoints: {{first_frame: {first}}} states it"
        )
        findings.append(Finding("keypoints_renumbered", sentence))
        return Numbering(first)
    seen = np.unique(np.concatenate([f.numbers for _, f in both])) if both else np.empty(0, np.int64)
    steps = {_step_of(t, f.numbers if f.lists_empty_frames else seen) for t, f in both}
    found = steps.pop() if len(steps) == 1 else None
    if found is None:
        return Numbering()
    first = min(int(f.numbers[0]) for _, f in both)
    shown = f"file n is taken as frame {found} n" if found > 1 else f"file {1 / found} n is taken as frame n"
    offset = f", first_frame: {first}" if first else ""
    sentence = (
        f"{len(both[0][1])} keypoint files, whose numbers go up by {max(1, 1 / found)}, are for the "
        f"{both[0][0]} frames of a video: {shown}; recording.yaml: keypoints: {{step: {found}{offset}}} "
        "states it, {step: 1} that file n is frame n"
    )
    findings.append(Finding("keypoints_renumbered", sentence))
    return Numbering(first, found)


def _step_of(frames: int, numbers: NDArray[np.int64]) -> Fraction | None:
    """Step by which numbers fit a video of ``frames`` frames; None for a step of 1, or none.

    numbers: of a camera's files, or of the frames in which a camera shows a person.
    """
    low, high, count = int(numbers[0]), int(numbers[-1]), len(numbers)
    if count < _MIN_FILES:
        return None
    gap = int(np.gcd.reduce(np.diff(numbers)))
    if gap > 1 and low in (0, 1, gap) and (high - low) // gap + 1 == frames:
        return Fraction(1, gap)
    for every in _STEPS:
        if gap == 1 and low in (0, 1) and count == high - low + 1 == -(-frames // every):
            return Fraction(every)
    return None


def numbering_doubts(cameras: Numbered, numbering: Numbering) -> list[Finding]:
    """Keypoint files that are missing, that belong to no frame, or that count from another number."""
    doubts = []
    for name, frames, camera in cameras.with_files():
        low, high = int(camera.numbers[0]), int(camera.numbers[-1])
        # Numbers that belong to frames: all of them, or every so many.
        apart = numbering.step.denominator
        expected = None if frames is None else -(-frames // numbering.step.numerator)
        shifted = expected == (high - low) // apart + 1 and low != numbering.first
        if shifted:
            doubts.append(_shifted(cameras, name, numbering.first))
        end = high if expected is None else numbering.first + (expected - 1) * apart
        first, last = (low, high) if expected is None or shifted else (numbering.first, end)
        wanted = np.arange(first, last + 1, apart)
        lacking = wanted[~np.isin(wanted, camera.numbers)]
        if len(lacking) and camera.lists_empty_frames:
            counted = len(lacking) > 1 and lacking[0] == high + 1 and low == first
            sentence = (
                f"{len(lacking)} of {len(wanted)} keypoint files of {name} are missing, the first of them "
                f"number {lacking[0]}"
            )
            if counted:
                sentence += (
                    ": file n is taken as frame n. If frames without a file were not counted, the files "
                    "after these are too early: number them by frame; where these come first, recording.yaml "
                    f"can state it, keypoints: {{first_frame: {first - len(lacking)}}}"
                )
            code: Code = "keypoints_renumbered" if counted else "keypoints_missing"
            doubts.append(Finding(code, sentence, name, len(lacking)))
        if frames is not None and (beyond := int((camera.numbers > end).sum())):
            sentence = (
                f"{beyond} keypoint {camera.unit} of {name} are not used: their numbers are past its video's "
                f"last frame, {frames - 1}"
            )
            doubts.append(Finding("keypoints_past_end", sentence, name, beyond))
    return doubts


def _shifted(cameras: Numbered, name: str, first: int) -> Finding:
    """A camera has as many files as frames, but from another number on than the first frame's."""
    there = cameras.with_files()
    frames, camera = next((t, f) for n, t, f in there if n == name)
    low, high = int(camera.numbers[0]), int(camera.numbers[-1])
    # It is one number for all cameras: what mends one must not spoil another.
    fits_all = all(f.numbers[0] >= low and (t is None or f.numbers[-1] < low + t) for _, t, f in there)
    remedy = (
        f"state it in recording.yaml, keypoints: {{first_frame: {low}}}"
        if fits_all
        else f"number its {camera.unit} from {first} on, as those of the others"
    )
    sentence = (
        f"keypoint {camera.unit} of {name} are numbered {low} to {high}, and its video has {frames} frames: "
        f"file {first} is taken as the first frame's. If number {low} is the first, {remedy}"
    )
    return Finding("keypoints_renumbered", sentence, name)
