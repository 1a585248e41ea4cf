"""Detections on disk: what is written comes back, whenever the writer was stopped."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.detections import CHUNK, Detections, Detector
from pipeline.errors import InputError
from pipeline.formats.keypoints.files import MAX_PEOPLE
from pipeline.video import VideoInfo

DETECTOR = Detector("blazepose_33", {"finder": "a", "landmarks": "b"}, 8)
FRAMES = {"b": 2 * CHUNK + 5, "a": CHUNK}


@pytest.fixture
def videos(tmp_path: Path) -> dict[str, VideoInfo]:
    found = {}
    for name, frames in FRAMES.items():
        file = tmp_path / f"{name}.mp4"
        file.write_bytes(bytes(frames))
        found[name] = VideoInfo(file, (64, 48), 0, Fraction(30), np.arange(frames) / 30, "h264")
    return found


def people(name: str, frame: int) -> np.ndarray:
    """(D, 33, 3) known people, in some frames nobody, in one more than are kept."""
    count = MAX_PEOPLE + 1 if frame == 3 else frame % 3
    rng = np.random.default_rng([len(name), frame])
    return rng.uniform(1, 100, (count, 33, 3)).astype(np.float32)


def write_rest(found: Detections, stop: int | None = None) -> None:
    """Write chunks in turn, as many as ``stop``; each carries its number in the state."""
    written = 0
    while any(found.missing()):
        for v, (name, frames) in enumerate(zip(found.names, found.frames, strict=True)):
            k = found.chunks[v].stop
            state = found.states()[v]
            assert (state is None) == (k == 0)
            assert state is None or state.tolist() == [k - 1, 0.5]
            at = range(k * CHUNK, min((k + 1) * CHUNK, frames))
            if not at or written == stop:
                continue
            found.write(v, [people(name, t) for t in at], np.array([k, 0.5]))
            written += 1
        if written == stop:
            return


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_what_is_written_comes_back(videos: dict[str, VideoInfo], tmp_path: Path) -> None:
    path = tmp_path / "detections.zarr"
    write_rest(Detections.resume(path, DETECTOR, videos, 2))
    found = Detections(path)
    assert not any(found.missing())
    assert found.is_of(videos)
    assert found.names == ["a", "b"]
    cameras = found.people()
    for name, frames in FRAMES.items():
        camera = cameras[name]
        assert camera.numbers.tolist() == [*range(frames)]
        assert camera.known_order == "blazepose_33"
        assert camera.anybody()
        assert camera.file(frames) is None
        for t in (0, 1, 2, 3, CHUNK - 1):
            read, reason = camera.people(t, 33)
            assert np.array_equal(read, people(name, t)[:MAX_PEOPLE])
            assert bool(reason) == (len(read) == 0)


def test_stopped_within_any_write_it_goes_on_to_the_same_bytes(
    videos: dict[str, VideoInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rest(Detections.resume(tmp_path / "whole.zarr", DETECTOR, videos, 2))
    whole = files_of(tmp_path / "whole.zarr")
    before = Detections._array
    for array in ("people", "state", "chunks"):
        path = tmp_path / f"{array}.zarr"
        write_rest(Detections.resume(path, DETECTOR, videos, 2), stop=3)

        def stopped(self: Detections, video: int, name: str, last: str = array) -> object:
            if name == last:
                raise KeyboardInterrupt
            return before(self, video, name)

        found = Detections.resume(path, DETECTOR, videos, 2)
        monkeypatch.setattr(Detections, "_array", stopped)
        with pytest.raises(KeyboardInterrupt):
            found.write(1, [people("b", t) for t in range(2 * CHUNK, FRAMES["b"])], np.array([2, 0.5]))
        monkeypatch.undo()
        (path / "1" / "people" / "x.partial").touch()
        again = Detections.resume(path, DETECTOR, videos, 2)
        assert any(again.missing())
        write_rest(again)
        assert files_of(path) == whole


def test_a_part_grows_at_its_end_and_begins_anew_before_its_start(
    videos: dict[str, VideoInfo], tmp_path: Path
) -> None:
    path = tmp_path / "detections.zarr"

    def wanted(first: int, stop: int) -> tuple[Detections, list[range]]:
        frames = {"a": range(0), "b": range(first, stop)}
        found = Detections.resume(path, DETECTOR, videos, 2, frames)
        return found, found.missing(frames)

    def write(found: Detections, todo: list[range]) -> None:
        for k in todo[1]:
            at = range(k * CHUNK, min((k + 1) * CHUNK, FRAMES["b"]))
            found.write(1, [people("b", t) for t in at], np.array([k, 0.5]))

    found, todo = wanted(CHUNK + 7, CHUNK + 9)
    assert todo == [range(0), range(1, 2)]
    write(found, todo)
    part = found.people({"a": range(0), "b": range(CHUNK + 7, CHUNK + 9)})["b"]
    assert part.numbers.tolist() == [CHUNK + 7, CHUNK + 8]
    assert np.array_equal(part.people(CHUNK + 8, 33)[0], people("b", CHUNK + 8))
    assert part.file(CHUNK + 6) is part.file(CHUNK + 9) is None
    found, todo = wanted(CHUNK, 2 * CHUNK + 1)
    assert todo[1] == range(2, 3), "goes on from what is there"
    assert found.states()[1] is not None
    write(found, todo)
    assert not any(wanted(2 * CHUNK, 2 * CHUNK + 5)[1])
    (tmp_path / "results.zarr").mkdir()
    with pytest.raises(InputError, match=r"holds other frames.*--overwrite"):
        wanted(3, 5)
    (tmp_path / "results.zarr").rmdir()
    found, todo = wanted(3, 5)
    assert todo[1] == range(1)
    assert Detections(path).chunks == [range(0), range(0)], "nothing is left of what is not reached from here"
    write_rest(Detections.resume(path, DETECTOR, videos, 2))
    write_rest(Detections.resume(tmp_path / "whole.zarr", DETECTOR, videos, 2))
    assert files_of(path) == files_of(tmp_path / "whole.zarr")


def test_those_of_others_and_damaged_ones_are_refused(videos: dict[str, VideoInfo], tmp_path: Path) -> None:
    path = tmp_path / "detections.zarr"
    write_rest(Detections.resume(path, DETECTOR, videos, 2))
    with pytest.raises(InputError, match=r"was made with every 8, now 4\. Give the same, or remove it"):
        Detections.resume(path, replace(DETECTOR, every=4), videos, 2)
    videos["a"].path.write_bytes(b"another")
    assert not Detections(path).is_of(videos)
    with pytest.raises(InputError, match="was made with other videos"):
        Detections.resume(path, DETECTOR, videos, 2)
    chunk = path / "0" / "people" / "c.0.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 255
    chunk.write_bytes(content)
    with pytest.raises(InputError, match=r"people of a cannot be read"):
        Detections(path).people()["a"].people(0, 33)
    chunk.unlink()
    with pytest.raises(InputError, match=r"c\.0\.0\.0\.0.*\)\. Remove it, then run again"):
        Detections(path)
    zarr.open_group(path, mode="r+").attrs["version"] = 1
    with pytest.raises(InputError, match="detections of version 1, of which this software reads 3"):
        Detections(path)
    (path / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match="the detections cannot be read"):
        Detections(path)


@pytest.mark.parametrize("name", ["chunks/c/0", "state/c.0.0", "people/zarr.json", "state/zarr.json"])
@pytest.mark.parametrize("content", [b"", b"of others", None])
def test_a_damaged_file_of_any_array_is_told(
    videos: dict[str, VideoInfo], tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / "detections.zarr"
    write_rest(Detections.resume(path, DETECTOR, videos, 2))
    file = path / "0" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    elif name == "chunks/c/0":
        assert Detections(path).chunks == [range(0), range(3)], "detected again"
        return
    with pytest.raises(InputError, match=r"cannot be read .*Remove it, then run again"):
        read_all(Detections(path))


def read_all(found: Detections) -> None:
    found.states()
    for camera in found.people().values():
        camera.anybody()
