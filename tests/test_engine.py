import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from pipeline.engine import Chain, Prefetcher


def double(items: Iterator[int]) -> Iterator[int]:
    for x in items:
        yield 2 * x


def pairs(items: Iterator[int]) -> Iterator[int]:
    """A stage that holds one item back and flushes at the end."""
    held = None
    for x in items:
        if held is not None:
            yield held + x
        held = x
    if held is not None:
        yield held


def wait_until(true, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def test_threads_change_nothing():
    stages = [("double", double), ("pairs", pairs)]
    with Chain(range(50), stages, threads=False) as plain, Chain(range(50), stages, capacity=3) as threaded:
        assert list(threaded) == list(plain)


def test_reader_sees_the_end_again_after_the_end():
    with Prefetcher(range(2)) as items:
        assert list(items) == [0, 1]
        assert list(items) == []


@pytest.mark.parametrize("k", [1, 4])
def test_never_more_than_k_ahead(k):
    made = []

    def source():
        for i in range(100):
            made.append(i)
            yield i

    with Prefetcher(source(), k) as items:
        # k in the channel and one in the source's hands, waiting for room.
        wait_until(lambda: len(made) == k + 1)
        time.sleep(0.05)
        assert len(made) == k + 1
        next(items)
        wait_until(lambda: len(made) == k + 2)


def test_what_was_made_before_an_error_is_delivered_first():
    def source():
        yield from range(5)
        raise KeyError("the sixth")

    seen = []
    with (
        pytest.raises(KeyError, match="the sixth") as caught,
        Chain(source(), [("double", double)], name="numbers") as c,
    ):
        for x in c:
            seen.append(x)
    assert seen == [0, 2, 4, 6, 8]
    assert caught.value.__notes__ == ["in stage 'numbers'"]


def test_an_error_in_a_later_stage_closes_the_earlier_ones():
    closed = []

    def source():
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    def fail(items):
        yield next(items)
        raise RuntimeError("no")

    with (
        pytest.raises(RuntimeError, match="no") as caught,
        Chain(source(), [("fail", fail), ("double", double)]) as c,
    ):
        for _ in c:
            pass
    assert caught.value.__notes__ == ["in stage 'fail'"]
    assert closed == ["multispin source"]


def test_abandoned_in_the_middle_closes_everything():
    closed = []

    def source():
        try:
            yield from range(1000)
        finally:
            closed.append("source")

    def stage(items):
        try:
            yield from items
        finally:
            closed.append("stage")

    with Chain(source(), [("stage", stage)]) as c:
        assert next(c) == 0
    assert sorted(closed) == ["source", "stage"]


def test_close_wakes_a_stage_that_waits_on_a_slow_source():
    release = threading.Event()

    def source():
        yield 0
        release.wait(10)
        yield 1

    chain = Chain(source(), [("double", double), ("pairs", pairs)])
    timer = threading.Timer(0.1, release.set)
    timer.start()
    begun = time.monotonic()
    chain.close()
    assert time.monotonic() - begun < 5
    timer.join()


def test_an_inner_channel_is_closed_with_its_stage():
    inner = []

    def stage(items):
        with Prefetcher(iter(int, 1), name="inner") as side:
            inner.append(weakref.ref(side))
            for x in items:
                yield x + next(side)

    with Chain(range(100), [("stage", stage)]) as c:
        assert [next(c), next(c)] == [0, 1]
    assert not [t for t in threading.enumerate() if t.name.startswith("multispin")]


def test_times_tell_the_bottleneck():
    def slow(items):
        for x in items:
            time.sleep(0.02)
            yield x

    with Chain(range(20), [("slow", slow), ("after", double)]) as c:
        assert list(c) == [2 * i for i in range(20)]
    source, bottleneck, after = c.times
    assert [t.items for t in c.times] == [20, 20, 20]
    assert source.blocked > 0.2
    assert bottleneck.busy > 0.35
    assert after.starved > 0.2
    assert after.busy < 0.1


def test_keyboard_interrupt_leaves_no_thread():
    def interrupted():
        with Chain(iter(int, 1), [("double", double)]) as c:
            for _ in c:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not [t for t in threading.enumerate() if t.name.startswith("multispin")]


def test_no_room_is_refused():
    with pytest.raises(ValueError, match="capacity=0"):
        Prefetcher([], 0)
