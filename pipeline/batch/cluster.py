"""Recordings of a batch as tasks of a Ray cluster: a running one, or one of this machine alone.

A task streams its messages, the outcome last. Ray schedules tasks by the resources they state, notices dead
machines and workers, and ends the tasks of a killed batch.

Imports nothing that imports numpy: a worker must be limited to one thread before.
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

_POLL_S: Final = 5.0
"""Interval at which the cluster's size is looked up: machines may join."""


class RayTasks:
    """Recordings as Ray tasks, at most ``limit`` at a time; None: as many as fit on the cluster's machines.

    address: HOST:PORT of a running cluster; None for that of the variable RAY_ADDRESS, or else a new one of
    this machine alone, which ends with ``stop``. Machines of a cluster need the same versions of this
    software and of Ray, and data set and results at the same paths.

    Raises ``InputError`` where Ray is not installed, or there is no cluster with a large enough machine.
    """

    def __init__(self, job: Job, needs: Needs, limit: int | None, address: str | None) -> None:
        try:
            import ray
        except ImportError as e:
            raise InputError("--engine ray: Ray is not installed. Install it: pip install -e '.[ray]'") from e
        self._ray: Any = ray
        self._needs, self._limit, self._cwd = needs, limit, str(Path.cwd())
        _connect(ray, address)
        try:
            self._running: dict[Any, int] = {}
            # As bytes, so that a worker unpickles them only after it is limited to one thread.
            self._job = self._ray.put(self._ray.cloudpickle.dumps(job))
            self._task = self._ray.remote(
                num_cpus=needs.cpus,
                num_gpus=needs.gpus,
                memory=int(needs.memory_gb * 2**30),
                num_returns="streaming",
                max_retries=0,  # the batch counts attempts
                scheduling_strategy="SPREAD",
            )(_stream)
            if len(self) == 0:
                raise InputError(
                    f"--engine ray: a recording needs {needs.cpus:g} processors, {needs.gpus:g} GPUs and "
                    f"{needs.memory_gb:g} GB, and no machine of the cluster has that. Lower --cpus, "
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
            self._job, pickle.dumps(task), self._cwd
        )
        self._running[stream] = k

    def messages(self) -> Iterator[tuple[int, Message]]:
        if not self._running:
            raise InputError("--engine ray: no machine of the cluster is left. Run the same command again.")
        ready, _ = self._ray.wait([*self._running], num_returns=1, timeout=_POLL_S)
        for stream in ready:
            k = self._running[stream]
            try:
                message: Message = self._ray.get(next(stream))
            except self._ray.exceptions.RayError as e:
                reason = str(e).strip().splitlines()[-1]
                error = f"the task was lost ({type(e).__name__}: {reason})"
                message = "failed", {"error": error, "again": True}
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
    if address is not None and ":" in address:  # Ray itself retries for long
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as e:
            raise InputError(
                f"--address {address}: cannot be reached ({e}). Expected HOST:PORT of the cluster's head, as "
                "printed by `ray start --head`."
            ) from e
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the user's machines
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, OSError) as e:
        fault = f"the cluster at {address} cannot be joined" if address else "Ray cannot be started here"
        raise InputError(f"--engine ray: {fault} ({type(e).__name__}: {e})") from e


def _stream(job: bytes, task: bytes, cwd: str) -> Iterator[Message]:
    """Messages of an attempt at a recording, the outcome last. Runs in a worker of the cluster.

    cwd: folder that relative paths start from.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # as in run_pipeline.py, for bit-identical results
    with suppress(OSError):  # another machine need not have it
        os.chdir(cwd)
    from pipeline.batch.workers import attempt

    messages: SimpleQueue[Message | BaseException] = SimpleQueue()

    def work() -> None:
        try:
            messages.put(attempt(pickle.loads(job), pickle.loads(task), messages.put))
        except BaseException as e:  # such as of another version of this software
            messages.put(e)

    threading.Thread(target=work, daemon=True).start()
    while True:
        message = messages.get()
        if isinstance(message, BaseException):
            raise message
        yield message
        if message[0] != "progress":
            return
