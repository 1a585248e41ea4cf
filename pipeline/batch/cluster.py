"""The recordings of a batch as tasks of a Ray cluster: of this machine alone, or of one that is running.

The stream of a task yields what happens, and how it ended. Ray keeps to what each task says that it needs,
notices machines and workers that die, and ends the tasks of a batch that is killed.

Nothing is imported here that imports numpy: a worker must first be told to compute in one thread.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.batch.workers import Assignment, Job, Message, Needs

_PATIENCE_S: Final = 5.0
"""After which it is looked whether the cluster has grown."""


class RayTasks:
    """Recordings as Ray tasks. Without a ``limit``, as many at a time as fit on the machines there are.

    address: HOST:PORT of a running cluster; None for that of the variable RAY_ADDRESS, or else a new one of
    this machine alone, which ends with ``stop``. Machines of a cluster need the same version of this software
    and of Ray, and must find data set and results where this machine does.

    Raises ``InputError`` when Ray is not installed, there is no cluster, or no machine of it is big enough.
    """

    def __init__(self, job: Job, needs: Needs, limit: int | None, address: str | None) -> None:
        try:
            import ray
        except ImportError as e:
            raise InputError("--engine ray: Ray is not installed. Install it: pip install -e '.[ray]'") from e
        self._ray: Any = ray
        self._needs, self._limit, self._here = needs, limit, str(Path.cwd())
        _connect(ray, address)
        try:
            self._running: dict[Any, int] = {}
            # In bytes, so that a worker reads them no sooner than it is told how to compute.
            self._job = self._ray.put(self._ray.cloudpickle.dumps(job))
            self._task = self._ray.remote(
                num_cpus=needs.cpus,
                num_gpus=needs.gpus,
                memory=int(needs.memory_gb * 2**30),
                num_returns="streaming",
                max_retries=0,  # the batch counts the tries
                scheduling_strategy="SPREAD",
            )(_stream)
            if len(self) == 0:
                raise InputError(
                    f"--engine ray: a recording needs {needs.cpus:g} processors, {needs.gpus:g} GPUs and "
                    f"{needs.memory_gb:g} GB, and no machine of the cluster has that. Give less --cpus, "
                    "--gpus or --memory-gb."
                )
        except BaseException:
            ray.shutdown()
            raise

    def __len__(self) -> int:
        if self._limit is not None:
            return self._limit
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            self._needs.fitting(has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0) / 2**30)
            for has in machines
        )

    def give(self, k: int, task: Assignment) -> None:
        stream = self._task.options(name=f"multispin {task.name}").remote(
            self._job, pickle.dumps(task), self._here
        )
        self._running[stream] = k

    def messages(self) -> Iterator[tuple[int, Message]]:
        if not self._running:
            raise InputError("--engine ray: no machine of the cluster is left. Run the same command again.")
        ready, _ = self._ray.wait([*self._running], num_returns=1, timeout=_PATIENCE_S)
        for stream in ready:
            k = self._running[stream]
            try:
                message: Message = self._ray.get(next(stream))
            except self._ray.exceptions.RayError as e:
                why = str(e).strip().splitlines()[-1]
                message = "failed", {"error": f"the task was lost ({type(e).__name__}: {why})", "again": True}
            if message[0] != "progress":
                del self._running[stream]
            yield k, message

    def stop(self) -> None:
        for stream in self._running:
            self._ray.cancel(stream, force=True)
        self._ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    if address is not None and "://" in address:
        raise InputError(f"--address {address}: expected HOST:PORT of the cluster's head, or auto")
    if address is not None and ":" in address:  # Ray itself would try for long
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as e:
            raise InputError(
                f"--address {address}: cannot be reached ({e}). Expected HOST:PORT of the cluster's head, as "
                "`ray start --head` tells it."
            ) from e
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the user's machines
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, OSError) as e:
        where = f"the cluster at {address} cannot be joined" if address else "Ray cannot be started here"
        raise InputError(f"--engine ray: {where} ({type(e).__name__}: {e})") from e


def _stream(job: bytes, task: bytes, here: str) -> Iterator[Message]:
    """In a worker of the cluster: what happens to a recording, as it happens; how it ended comes last.

    here: the folder that relative paths are seen from.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # as run_pipeline.py does: the same results to the last bit
    with suppress(OSError):  # another machine need not have it
        os.chdir(here)
    from pipeline.batch.workers import attempt

    said: SimpleQueue[Message | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            said.put(attempt(pickle.loads(job), pickle.loads(task), said.put))
        except BaseException as e:  # as where this software is another version
            said.put(e)

    threading.Thread(target=work, daemon=True).start()
    while True:
        message = said.get()
        if isinstance(message, BaseException):
            raise message
        yield message
        if message[0] != "progress":
            return
