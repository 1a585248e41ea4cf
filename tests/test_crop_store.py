"""Crops of videos: where they look, what they hold, and that they go on where they stopped."""

from __future__ import annotations

import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import builders
import cv2
import numpy as np
import pytest
import zarr

from models.crops import Optics, crop_rgb
from models.training import crop_store
from models.training.crop_store import CropPlan, CropStore
from models.training.recorded import plan_of_results
from pipeline.contents import Contents
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.video import VideoInfo, VideoWriter, probe
from stages import crops
from stages.crops import crops_of_results

SIZE, FRAMES = 64, builders.FRAMES + 3


def level(view: int, number: int) -> float:
    """Brightness of a video's frame."""
    return 30 + 7.0 * number + 40 * view


def film(folder: Path) -> list[VideoInfo | None]:
    """A video for each of the builders' cameras, whose every frame has a brightness and a ramp of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(-15, 15, 640)[None, :, None] + np.linspace(-10, 10, 480)[:, None, None]
    videos: list[VideoInfo | None] = []
    for v, name in enumerate(builders.rig().names):
        with VideoWriter(folder / f"{name}.mp4", Fraction(30), crf=8, preset="ultrafast", threads=1) as file:
            for number in range(FRAMES):
                file.write(np.repeat((level(v, number) + ramp).clip(0, 255).astype(np.uint8), 3, 2))
        videos.append(probe(folder / f"{name}.mp4"))
    return videos


def reconstructed(path: Path, contents: Contents | None = None) -> Store:
    store = Store.create(path, contents or builders.contents())
    for k in range(3):
        store.write(builders.batch(k))
    return store


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("filmed")
    return SimpleNamespace(videos=film(folder), store=reconstructed(folder / "results.zarr"))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (crop_store, crops):
        monkeypatch.setattr(module, "BLOCK", 4)


def test_a_camera_without_a_video_gives_no_black_crops(filmed: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of_results(filmed.store, SIZE, fps=1000)
    with pytest.raises(InputError, match=f"no video of {filmed.store.contents.rig.names[1]} to cut"):
        next(crops_of_results(filmed.store, [filmed.videos[0], None], plan, tmp_path / "crops.zarr"))
    assert not (tmp_path / "crops.zarr").exists()


def test_crops_are_those_of_the_frames(filmed: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of_results(filmed.store, SIZE, fps=1000)
    valid = np.concatenate([builders.batch(k).valid[:, 0].numpy() for k in range(3)])
    assert set(plan.label[:, 1].tolist()) == set(np.flatnonzero(valid).tolist())
    assert len(plan.box) == 2 * valid.sum()
    written = list(crops_of_results(filmed.store, filmed.videos, plan, tmp_path / "crops.zarr"))
    assert written[-1] == len(plan.box)
    assert len(written) == plan.blocks > 2
    store = CropStore(tmp_path / "crops.zarr")
    assert store.next_block == plan.blocks
    index, rig = builders.contents().frame_index, builders.rig()
    ramp = np.linspace(-15, 15, 640)[None] + np.linspace(-10, 10, 480)[:, None]
    for row, (_, time, view) in enumerate(plan.label):
        picture = store.picture(row)
        assert picture.shape == (96, 96, 3)
        whole = (level(view, index[view, time]) + ramp).clip(0, 255).astype(np.uint8)
        lens = Optics(rig.K[view], rig.dist[view])
        want = crop_rgb(np.repeat(whole[..., None], 3, 2), plan.box[row], SIZE, 16, lens)[..., 0]
        inner = cv2.erode((want > 0).astype(np.uint8), np.ones((5, 5))) > 0
        assert inner.any()
        assert np.abs(picture.mean(-1)[inner] - want[inner]).max() < 4
    assert plan.nbytes == len(plan.box) * 96 * 96 * 3
    on_disk = sum(f.stat().st_size for f in (tmp_path / "crops.zarr").rglob("*") if f.is_file())
    assert on_disk < plan.nbytes
    pictures = zarr.open_group(tmp_path / "crops.zarr", mode="r")["pictures"]
    assert len([f for f in (tmp_path / "crops.zarr/pictures").rglob("*") if f.is_file()]) <= plan.blocks + 1
    assert pictures.chunks == (1, 96, 96, 3)


def test_fewer_frames_a_second_are_some_of_all(filmed: SimpleNamespace) -> None:
    every, some = (plan_of_results(filmed.store, SIZE, fps) for fps in (1000, 10))
    assert set(some.label[:, 1].tolist()) == {t for t in every.label[:, 1].tolist() if t % 3 == 0}


def test_what_was_stopped_goes_on_to_the_same(
    filmed: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of_results(filmed.store, SIZE, fps=1000)
    *_, _ = crops_of_results(filmed.store, filmed.videos, plan, tmp_path / "whole.zarr")
    broken = tmp_path / "broken.zarr"
    stream = crops_of_results(filmed.store, filmed.videos, plan, broken)
    assert [next(stream), next(stream)] == [4, 8]
    stream.close()
    assert CropStore(broken).next_block == 2
    with pytest.raises(InputError, match="not finished"):
        CropStore.open_finished(broken, Path("results.zarr"), plan.made_of, SIZE)
    (broken / "pictures" / "x.partial").write_bytes(b"half")  # as of a writer that was killed
    asked = []
    decoded = crops._decode
    monkeypatch.setattr(crops, "_decode", lambda v, index: asked.append(index[0, 0]) or decoded(v, index))
    rest = list(crops_of_results(filmed.store, filmed.videos, plan, broken))
    assert rest == [*range(12, len(plan.box), 4), len(plan.box)]
    index = builders.contents().frame_index
    assert asked == [index[0, plan.label[8, 1]]]  # frames before are not decoded again
    assert not [*broken.rglob("*.partial")]
    a, b = (zarr.open_group(p, mode="r")["pictures"][:] for p in (tmp_path / "whole.zarr", broken))
    assert np.array_equal(a, b)
    assert list(crops_of_results(filmed.store, filmed.videos, plan, broken)) == []


def test_other_crops_are_not_written_over(filmed: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of_results(filmed.store, SIZE, fps=10)
    *_, _ = crops_of_results(filmed.store, filmed.videos, plan, tmp_path / "crops.zarr")
    for other in (
        plan_of_results(filmed.store, 96, fps=10),
        plan_of_results(filmed.store, SIZE, fps=1000),
        replace(plan, made_of="else"),
    ):
        with pytest.raises(InputError, match="crops of something else"):
            CropStore.resume(tmp_path / "crops.zarr", other)
    with pytest.raises(InputError, match="64 pixels, not 96"):
        CropStore.open_finished(tmp_path / "crops.zarr", Path("results.zarr"), plan.made_of, 96)
    with pytest.raises(InputError, match="crops of something else than"):
        CropStore.open_finished(tmp_path / "crops.zarr", Path("results.zarr"), "else", SIZE)
    with pytest.raises(InputError, match="the crops cannot be read"):
        CropStore(tmp_path)


def test_room_on_the_disk_is_asked_for_before(
    filmed: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of_results(filmed.store, SIZE, fps=10)
    full = SimpleNamespace(free=plan.nbytes - 1)
    monkeypatch.setattr(crop_store.shutil, "disk_usage", lambda path: full)
    with pytest.raises(InputError, match=r"GB are still to be written"):
        CropStore.resume(tmp_path / "crops.zarr", plan)
    assert not list(tmp_path.iterdir()), "or a smaller plan would find a store of something else"


def test_a_disk_that_fills_up_says_so(
    filmed: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of_results(filmed.store, SIZE, fps=10)
    store = CropStore.resume(tmp_path / "crops.zarr", plan)

    class Full:
        def __setitem__(self, at: slice, value: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_pictures", Full())
    with pytest.raises(InputError, match=r"pictures 0–3 .*No space left"):
        store.write(0, [np.zeros((96, 96, 3), np.uint8)] * 4)
    with pytest.raises(ValueError, match="3 pictures for block 0"):
        store.write(0, [np.zeros((96, 96, 3), np.uint8)] * 3)


def test_an_unfinished_reconstruction_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "results.zarr", builders.contents())
    store.write(builders.batch(0))
    with pytest.raises(InputError, match="1 of 3 windows"):
        plan_of_results(store, SIZE, fps=10)


def test_a_store_pickles_as_its_path(filmed: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of_results(filmed.store, SIZE, fps=10)
    *_, _ = crops_of_results(filmed.store, filmed.videos, plan, tmp_path / "crops.zarr")
    store = CropStore(tmp_path / "crops.zarr")
    raw = pickle.dumps(store)
    assert len(raw) < 1000
    assert np.array_equal(pickle.loads(raw).picture(1), store.picture(1))


def test_crops_that_an_earlier_version_has_cut_are_refused(filmed: SimpleNamespace, tmp_path: Path) -> None:
    plan = plan_of_results(filmed.store, SIZE, fps=10)
    CropStore.resume(tmp_path / "crops.zarr", plan)
    zarr.open_group(tmp_path / "crops.zarr", mode="r+").attrs["version"] = 1
    with pytest.raises(InputError, match="version 1"):
        CropStore(tmp_path / "crops.zarr")


def test_an_empty_place_is_black() -> None:
    plan = CropPlan("x", SIZE, np.array([[np.nan] * 3, [50, 50, 60]]), np.zeros((2, 1), np.int64), ("row",))
    assert plan.nbytes == 96 * 96 * 3
    for row, frame in ((1, None), (0, av.VideoFrame.from_ndarray(np.full((48, 64, 3), 200, np.uint8)))):
        black = crops._crop(frame, plan, row, Optics(np.eye(3), np.zeros(8)))
        assert black.shape == (96, 96, 3)
        assert not black.any()
