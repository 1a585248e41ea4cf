import os
import random
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from functools import cache
from typing import TYPE_CHECKING

# As run_pipeline does, and before numpy is imported: results are the same to the last bit on one thread.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

if TYPE_CHECKING:
    from exported import Truth

# A shell starts what it puts in the background deaf to Ctrl-C, and programs inherit that; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ``REQUIRE_SHARED=1`` a test that is skipped for lack of shared data has failed."""
    report = yield
    if (
        report.skipped
        and os.environ.get("REQUIRE_SHARED") == "1"
        and "needs the shared" in str(report.longrepr)
    ):
        report.outcome = "failed"
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked cuda run where there is a device, and fail for lack of one with REQUIRE_CUDA=1."""
    required = os.environ.get("REQUIRE_CUDA") == "1"
    if item.get_closest_marker("cuda") and not required and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.fixture(autouse=True)
def _no_leaked_thread() -> Iterator[None]:
    """Every thread that a test starts has ended when the test has."""
    before = set(threading.enumerate())
    yield
    # zarr and asyncio keep their own pools for the life of the process; tqdm has a monitor.
    keep = ("zarr", "asyncio", "fsspec", "ThreadPool", "tqdm", "Dummy")
    leaked = [t for t in set(threading.enumerate()) - before if not t.name.startswith(keep)]
    for thread in leaked:
        # These end by themselves: a DataLoader closes its queues and does not wait for what fills them.
        if thread.name == "QueueFeederThread":
            thread.join(timeout=10)
    leaked = [t for t in leaked if t.is_alive() and type(t).__name__ != "TMonitor"]
    assert not leaked, f"threads left behind: {leaked}"


@pytest.fixture(autouse=True)
def _no_leaked_random_state() -> Iterator[None]:
    """Code under test draws from generators of its own, never from the global ones."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    yield
    assert random.getstate() == states[0], "random's global state was used"
    assert str(np.random.get_state()) == str(states[1]), "numpy's global random state was used"  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), states[2]), "torch's global random state was used"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def truths(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], Truth]":
    """Stores of one motion by the axis that is up."""
    from exported import make

    return cache(lambda up: make(tmp_path_factory.mktemp("store") / "results.zarr", up))
