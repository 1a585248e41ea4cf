from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline import video
from pipeline.errors import InputError
from pipeline.video import VideoWriter, planes, probe, read_frames, to_yuv420p

SIZE = (96, 64)
COUNT = 30


def numbered(k, size=SIZE):
    """A picture that tells which frame it is by its brightness, 6 levels apart."""
    return np.full((size[1], size[0], 3), 30 + 6 * k, np.uint8)


def number(frame):
    return None if frame is None else round((frame.to_ndarray(format="rgb24").mean() - 30) / 6)


def encode(path, codec="libx264", *, pts=range(COUNT), base=Fraction(1, 25), options=None, rotation=0, gop=8):
    """A video written without the code under test."""
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this FFmpeg has no {codec}")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = base
        stream.codec_context.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        for k, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(numbered(k), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = at, base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("codec", "name", "suffix"),
    [
        ("libx264", "h264", ".mp4"),
        ("libx264", "h264", ".mov"),
        ("libx264", "h264", ".mkv"),
        ("libx264", "h264", ".avi"),
        ("libvpx-vp9", "vp9", ".webm"),
        ("libx265", "hevc", ".mp4"),
        ("libsvtav1", "av1", ".mp4"),
    ],
)
def test_every_codec_and_container_gives_the_frames_asked_for(tmp_path, codec, name, suffix):
    info = probe(encode(tmp_path / f"a{suffix}", codec, options={"x265-params": "log-level=none"}))
    assert info.size == SIZE
    assert info.rate == 25
    assert not info.warnings
    assert info.codec in (name, f"lib{name}", "libdav1d")
    np.testing.assert_allclose(info.times_s, np.arange(COUNT) / 25, atol=6e-4)
    wanted = [-1, 3, 4, 4, 11, -1, 17, 29]
    assert [number(f) for f in read_frames(info, wanted)] == [None, 3, 4, 4, 11, None, 17, 29]


def test_a_variable_frame_rate_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    ticks = np.cumsum(rng.integers(20, 70, COUNT)) - 20
    info = probe(encode(tmp_path / "a.mkv", pts=ticks.tolist(), base=Fraction(1, 1000)))
    np.testing.assert_allclose(info.times_s - info.times_s[0], (ticks - ticks[0]) / 1000, atol=1e-9)
    assert [number(f) for f in read_frames(info, range(COUNT))] == list(range(COUNT))


HOLES = np.concatenate([np.arange(40), np.arange(40, 70, 3), np.arange(85, 120)])
"""Numbers of frames: some dropped regularly, then many at once."""


@pytest.mark.parametrize(
    ("ticks", "base", "declared", "rate"),
    [
        (np.arange(100) * 3000, Fraction(1, 90_000), [], Fraction(30)),
        (HOLES * 3003, Fraction(1, 90_000), [Fraction(22)], Fraction(30000, 1001)),
        (np.rint(HOLES * 1001 / 60), Fraction(1, 1000), [Fraction(60000, 1001)], Fraction(60000, 1001)),
        (np.rint(np.arange(2000) * 1001 / 60), Fraction(1, 1000), [], Fraction(60000, 1001)),
        (np.arange(100) * 80_000, Fraction(1, 1_000_000), [Fraction(25)], Fraction(25, 2)),
        (np.array([0, 10, 110]), Fraction(1, 1000), [], Fraction(100)),
        (np.array([7]), Fraction(1, 1000), [], Fraction(25)),
    ],
)
def test_the_rate_is_that_of_the_usual_interval(ticks, base, declared, rate):
    assert video.frame_rate(ticks.astype(np.int64), base, declared) == rate


def test_a_file_that_was_cut_off_or_has_holes_keeps_its_rate(tmp_path):
    dropped = encode(tmp_path / "a.mp4", pts=[*range(10), *range(12, 30, 3), *range(40, 54)])
    assert probe(dropped).rate == 25


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_start_in_the_middle_gives_the_same_pictures(tmp_path, codec):
    """Seeking with B-frames: decoding from a key frame on gives what decoding from the beginning gives."""
    options = {"x265-params": "log-level=none:open-gop=1"}
    info = probe(encode(tmp_path / "a.mp4", codec, options=options))
    whole = [f.to_ndarray() for f in read_frames(info, range(COUNT))]
    for start in range(COUNT):
        frame = next(read_frames(info, [start]))
        assert frame is not None
        np.testing.assert_array_equal(frame.to_ndarray(), whole[start])


def test_no_more_is_decoded_than_asked_for(tmp_path, monkeypatch):
    info = probe(encode(tmp_path / "a.mp4", options={"bf": "0", "tune": "zerolatency"}, gop=4))
    decoded, packets_from = [], video._packets_from

    def counted(*args):
        for packet in packets_from(*args):
            decoded.append(packet.pts)
            yield packet

    monkeypatch.setattr(video, "_packets_from", counted)
    assert number(next(read_frames(info, [14]))) == 14
    assert len(decoded) <= 4  # 12, 13, 14 and at most one for the decoder's delay


def test_a_cut_file_is_used_as_far_as_it_goes(tmp_path):
    for suffix in (".mp4", ".mkv"):
        whole = tmp_path / f"a{suffix}"
        with VideoWriter(whole, 25) if suffix == ".mp4" else _mkv(whole) as file:
            for k in range(COUNT):
                file.write(_noise(k))
        size = whole.stat().st_size
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole.read_bytes()[: size * 2 // 3])
        info = probe(cut)
        assert COUNT // 3 < len(info.times_s) < COUNT
        assert len(info.warnings) == 1
        assert str(cut) in info.warnings[0]
        assert all(f is not None for f in read_frames(info, range(len(info.times_s))))


def test_a_last_packet_that_is_cut_costs_one_frame(tmp_path):
    whole = tmp_path / "a.mp4"
    with VideoWriter(whole, 25) as file:
        for k in range(COUNT):
            file.write(_noise(k))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:-10])
    info = probe(cut)
    assert len(info.times_s) == COUNT - 1
    assert f"{COUNT - 1} of {COUNT} frames" in info.warnings[0]


def test_a_damaged_packet_costs_no_frame_after_it(tmp_path):
    path = encode(tmp_path / "a.mp4", options={"bf": "0"}, gop=5)
    with av.open(str(path)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    at, size = packets[12]
    data[at : at + size] = bytes([255] * size)
    path.write_bytes(data)
    found = [number(f) for f in read_frames(path, range(COUNT))]
    assert found[:12] == list(range(12))
    assert found[15:] == list(range(15, COUNT))  # from the next key frame on


def test_indices_may_not_decrease(tmp_path):
    path = encode(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="frame 3 requested after frame 5"):
        list(read_frames(path, [5, 3]))


def test_closing_the_generator_closes_the_file(tmp_path):
    path = encode(tmp_path / "a.mp4")
    frames = read_frames(path, range(COUNT))
    next(frames)
    links = [f.resolve() for f in Path("/proc/self/fd").iterdir() if f.is_symlink()]
    assert path.resolve() in links
    frames.close()
    assert path.resolve() not in [f.resolve() for f in Path("/proc/self/fd").iterdir() if f.is_symlink()]


@pytest.mark.parametrize(
    ("rotation", "turn"), [(90, (0, -1, 1, 0)), (180, (-1, 0, 0, -1)), (270, (0, 1, -1, 0))]
)
def test_frames_of_a_turned_phone_are_handed_out_upright(tmp_path, rotation, turn):
    """QuickTime's display matrix (a, b, c, d) takes x, y (down) to ax + cy, bx + dy; a phone held upright
    writes (0, 1, −1, 0)."""
    path = tmp_path / "a.mp4"
    picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    picture[:16, :24] = 255  # a white corner, top left
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        a, b, c, d = (one << 16 for one in turn)
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode(None))
    info = probe(path)
    frame = next(read_frames(info, [0]))
    upright = np.zeros((SIZE[1], SIZE[0], 3) if rotation == 180 else (SIZE[0], SIZE[1], 3), np.uint8)
    rows, columns = upright.shape[:2]
    # Where the white corner's far end (24, 16) goes, seen from the corner itself.
    dx, dy = turn[0] * 24 + turn[2] * 16, turn[1] * 24 + turn[3] * 16
    x0, y0 = (0 if dx > 0 else columns + dx), (0 if dy > 0 else rows + dy)
    upright[y0 : y0 + abs(dy), x0 : x0 + abs(dx)] = 255
    assert info.rotation == rotation
    assert info.size == (upright.shape[1], upright.shape[0]) == (frame.width, frame.height)
    assert np.abs(frame.to_ndarray(format="rgb24") - upright.astype(float)).mean() < 3


def test_bad_files_are_explained(tmp_path):
    text, empty, header = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "header.mp4"
    text.write_text("not a video")
    empty.touch()
    good = encode(tmp_path / "good.mp4").read_bytes()
    header.write_bytes(good[: len(good) // 3])  # the index is at the end: the recording was never finished
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    for path, message in (
        (tmp_path / "none.mp4", "no such video"),
        (tmp_path, "is a folder"),
        (empty, "empty"),
        (text, "not a video"),
        (header, "header is damaged or missing"),
        (sound, "no video in this file, only audio"),
    ):
        with pytest.raises(InputError, match=message) as error:
            probe(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("size", [(64, 48), (65, 47), (63, 48)])
def test_what_is_written_plays_anywhere(tmp_path, size):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, Fraction(30000, 1001)) as file:
        for k in range(10):
            file.write(numbered(k, size))
        assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before it has the whole file
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(30000, 1001)
        assert (stream.width, stream.height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert [number(f) for f in read_frames(path, range(10))] == list(range(10))


def test_colours_survive_writing(tmp_path):
    path = tmp_path / "a.mp4"
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :32], picture[:, 32:64], picture[:, 64:] = (200, 30, 40), (20, 180, 60), (240, 240, 240)
    with VideoWriter(path, 25, crf=1) as file:
        file.write(picture)
    with av.open(str(path)) as file:
        seen = next(file.decode(video=0)).to_ndarray(format="rgb24").astype(float)
    for x in (16, 48, 80):
        np.testing.assert_allclose(seen[32, x], picture[32, x], atol=4)


def test_frames_get_the_times_they_are_given(tmp_path):
    times = np.array([0, 0.04, 0.1, 0.5, 0.6])
    with VideoWriter(tmp_path / "a.mp4", 25) as file:
        for k, t in enumerate(times):
            file.write(numbered(k), float(t))
    np.testing.assert_allclose(probe(tmp_path / "a.mp4").times_s, times, atol=1e-4)
    with pytest.raises(ValueError, match="not after"), VideoWriter(tmp_path / "b.mp4", 25) as file:
        file.write(numbered(0), 0.5)
        file.write(numbered(1), 0.5)


def test_writing_does_not_change_the_callers_frame(tmp_path):
    frame = av.VideoFrame.from_ndarray(numbered(3), "rgb24").reformat(format="yuv420p")
    frame.pts, frame.time_base = 77, Fraction(1, 50)
    with VideoWriter(tmp_path / "a.mp4", 25) as file:
        file.write(frame)
    assert (frame.pts, frame.time_base) == (77, Fraction(1, 50))


def test_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"an older result")
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 25) as file:
        file.write(numbered(0))
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"an older result"
    with VideoWriter(tmp_path / "b.mp4", 25):
        pass  # no frame, no file
    assert not (tmp_path / "b.mp4").exists()


def test_a_full_disk_and_a_missing_folder_are_explained(tmp_path):
    with (
        pytest.raises(InputError, match="cannot be written") as error,
        VideoWriter(tmp_path / "no" / "a.mp4", 25) as file,
    ):
        file.write(numbered(0))
    assert str(tmp_path / "no" / "a.mp4") in str(error.value)
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here to stand for a full disk")
    (tmp_path / "a.part.mp4").symlink_to("/dev/full")
    with (
        pytest.raises(InputError, match="No space left on device"),
        VideoWriter(tmp_path / "a.mp4", 25) as file,
    ):
        for k in range(20):
            file.write(_noise(k))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("source", ["yuvj420p", "yuv420p10le", "yuv422p", "nv12", "gray", "rgb24", "bgr24"])
def test_any_pixel_format_becomes_the_same_picture(source):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:] = (120, 120, 120) if source == "gray" else (180, 90, 60)
    frame = av.VideoFrame.from_ndarray(picture, "rgb24")
    if source != "rgb24":
        frame = frame.reformat(format=source, dst_color_range="JPEG" if source == "yuvj420p" else None)
    out = to_yuv420p(frame)
    assert out.format.name == "yuv420p"
    assert all(p.flags.writeable for p in planes(out))
    seen = out.reformat(format="rgb24", src_color_range="MPEG", dst_color_range="JPEG").to_ndarray()
    np.testing.assert_allclose(seen[32, 48], picture[32, 48], atol=4)


def _noise(k):
    return np.random.default_rng(k).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


class _mkv:
    """The writer's own interface for a container that it does not write."""

    def __init__(self, path):
        self.file = av.open(str(path), "w")
        self.stream = self.file.add_stream("libx264", rate=25)
        self.stream.width, self.stream.height, self.stream.pix_fmt = *SIZE, "yuv420p"

    def write(self, picture):
        self.file.mux(self.stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.mux(self.stream.encode(None))
        self.file.close()


def test_a_title_that_is_not_utf_8_is_no_matter(tmp_path):
    path = tmp_path / "old.mkv"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "camera-one"
        stream = file.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((72, 64), 100, np.uint8), "yuv420p")
            frame.pts = k
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"camera-one", b"cam\xe9ra-one"))
    assert len(probe(path).times_s) == 3


def test_a_comment_is_kept_in_the_file(tmp_path):
    for comment in ("", "drawn"):
        with VideoWriter(tmp_path / "a.mp4", 30, comment=comment) as video:
            video.write(np.zeros((32, 32, 3), np.uint8))
        with av.open(str(tmp_path / "a.mp4")) as container:
            assert container.metadata.get("comment", "") == comment
