"""Training loop of all nets: steps, checkpoints, curves.

A step's samples, augmentation and dropout are determined by seed and step: a resumed training gives the
result of an unbroken one.

Runs on the CPU, a GPU, several of them, or several machines (``torchrun`` or ``fabric run``): each process
takes its share of every batch, and gradients are averaged over them (lightning-fabric).
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from models.replay import Replayed
from models.training.images import ImagesConfig, ImageTask
from models.training.keypoints import KeypointNetConfig, KeypointTask
from pipeline.config import Config, differences
from pipeline.errors import InputError
from pipeline.files import locked, write_bytes_atomically

_log = logging.getLogger(__name__)


class TrainConfig(Config):
    """Settings of a training."""

    net: Literal["calibrated", "uncalibrated", "images"] = "calibrated"
    """A keypoint net for calibrated or uncalibrated cameras, or an image net."""
    steps: int = Field(20000, ge=1)
    """Gradient steps, and duration of ``decay``."""
    batch: int = Field(256, ge=1)
    """Samples of a step, over all processes."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest learning rate of AdamW."""
    decay: Literal["cosine", "none"] = "cosine"
    """Schedule of the learning rate: cosine to zero at the last step, or constant."""
    warmup_steps: int = Field(200, ge=1)
    """Steps of the learning rate's warm-up."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """Decay rates of AdamW's first and second moments; SPIN has 0.9, 0.999."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0: no clipping."""
    precision: Literal["32", "bf16"] = "32"
    """bf16: an image net's encoder computes in bfloat16, three times as fast, with float32 weights."""
    device: str = "auto"
    """auto, a GPU where there is one; or cpu, cuda, cuda:1. On a GPU larger batches cost next to nothing."""
    devices: int = Field(1, ge=1)
    """Processes on this machine, each with a GPU of its own, if any."""
    nodes: int = Field(1, ge=1)
    """Machines."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of weights and samples."""
    summary_steps: int = Field(100, ge=1)
    """Steps between rows of metrics."""
    check_steps: int = Field(1000, ge=1)
    """Steps between validations."""
    checkpoint_steps: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(3, ge=1)
    """Checkpoints that are kept, beside the best one."""
    motion: Path | None = None
    """Motion capture, a .npz (models/synthetic/poses.py); by default poses are drawn from the pose prior."""
    keypoints: KeypointNetConfig = KeypointNetConfig()
    """Settings of keypoint nets."""
    images: ImagesConfig = ImagesConfig()
    """Settings of image nets."""


_FREE_SETTINGS: Final = (
    "device", "devices", "nodes", "summary_steps", "checkpoint_steps", "check_steps", "keep",
    "images.workers",
)  # fmt: skip
"""Settings that may change when a training is resumed and do not affect its result."""
_SCHEDULE_SETTINGS: Final = ("steps", "--minutes", "learning_rate", "decay", "warmup_steps", "clip")
"""Settings that may change when a training is resumed, with a warning, and apply from there on."""
_FABRIC_RUN: Final = "LT_CLI_USED" in os.environ
"""True in processes of ``fabric run``, which sets their number and precision."""


class Trainable(Protocol):
    """Net and data of a training. Its state is what it writes beside the weights, such as fits."""

    best: str
    """Error by which the best checkpoint is chosen."""

    @property
    def net(self) -> nn.Module: ...

    def batches(self, first: int, rank: int, world: int) -> Generator[Any]:
        """Yield this process's share of the samples of every step from ``first`` on."""

    def prepare(self, batch: Any, step: int) -> Any:
        """Complete the input of ``losses`` and bring it to the device."""

    def losses(self, prepared: Any, step: int) -> dict[str, Tensor]:
        """Compute ``loss`` and other values for the curves."""

    def replayable(self, step: int) -> bool:
        """True if losses and gradients of a step are a function as ``Replayed`` takes."""

    def ids(self, batch: Any) -> list[str]:
        """Ids of the samples."""

    def start_from(self, init: Path) -> None:
        """Load the weights of a file. Raises ``InputError`` when they are of another net."""

    def check(self) -> dict[str, float]:
        """Compute errors on validation samples."""

    def pictures(self, batch: Any) -> dict[str, NDArray[np.uint8]]:
        """Pictures (H, W, 3) for the curves, by name."""

    def save(self, path: Path) -> None:
        """Write weights, for the ``regress`` stage. Raises ``OSError``."""

    def open_state(self, out: Path, step: int) -> None:
        """Open the state in ``out`` as it was at a step."""

    def save_state(self, oldest: int) -> None:
        """Write the state; ``oldest`` is the earliest step to resume from. Raises ``OSError``."""

    def reload_state(self, step: int) -> None:
        """Merge the state that other processes have written."""


@dataclass(frozen=True)
class Progress:
    """State of a training after a step."""

    step: int
    share: float
    """Completed share of the training, 0 to 1."""
    samples: int
    """Samples of this step."""
    loss: float
    """Running mean over some hundred steps."""


class _LossModule(nn.Module):
    """Module whose forward pass calls a function of the net, so that losses run within fabric's precision
    and exchange of gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return work()


def make_task(cfg: TrainConfig, device: torch.device) -> Trainable:
    """Make the net of the settings, with random weights, and its data."""
    if cfg.net == "images":
        return ImageTask(cfg.images, cfg.batch, cfg.seed, cfg.motion, device)
    return KeypointTask(cfg.keypoints, cfg.net, cfg.batch, cfg.seed, cfg.motion, device)


def train(
    cfg: TrainConfig,
    out: Path,
    *,
    minutes: float | None = None,
    init: Path | None = None,
    resume: bool | Path | None = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Progress]:
    """Train, yielding after every step.

    Writes to ``out``: weights.safetensors, best.safetensors (of least validation error), metrics.jsonl,
    checkpoints/<step>.pt, tensorboard/ where that package is installed, and the task's state, such as
    fits.zarr.

    init: file of weights to start from, instead of random ones. minutes: duration, instead of the number of
    steps. stop: called after every step; when True, the training saves and ends in all processes, as when
    the generator is closed. resume: True continues from the last checkpoint, a path from that one, None from
    the last one if there is any. A resumed training of a number of steps gives the weights of an unbroken
    one, on a CPU to the last bit; it may be extended by more ``steps``.

    Raises ``InputError`` when data or weights cannot be read, when ``out`` has a checkpoint without
    ``resume`` or none with it, cannot be written or is used by another training, and when the loss is not
    finite.
    """
    if cfg.precision != "32" and cfg.net != "images":
        raise InputError("precision: keypoint nets compute with 32 bits. Leave it at 32.")
    fabric = _fabric(cfg)
    if not _FABRIC_RUN:
        fabric.launch()
    if cfg.batch % fabric.world_size:
        raise InputError(f"batch: {cfg.batch} samples cannot be shared among {fabric.world_size} processes.")
    with locked(out, "training") if fabric.is_global_zero else nullcontext():
        run = _Run(cfg, out, fabric, minutes)
        run.open(init, resume)
        yield from run.steps(stop)


class _Run:
    """Net, optimiser, counters and curves of a running training."""

    def __init__(self, cfg: TrainConfig, out: Path, fabric: Fabric, minutes: float | None) -> None:
        self.cfg, self.out, self.fabric, self.minutes = cfg, out, fabric, minutes
        self.task = make_task(cfg, fabric.device)
        self.step, self.seconds, self.smooth = 0, 0.0, math.nan
        self.best, self.best_step, self.checked = math.inf, -1, -1
        self.sums: dict[str, float] = {}
        self.sum_steps, self.rate = 0, 0.0
        self.replayed: Replayed | None = None

    def open(self, init: Path | None, resume: bool | Path | None) -> None:
        """Prepare net, optimiser and folder for the first step, or restore a checkpoint."""
        cfg, out = self.cfg, self.out
        checkpoints = _checkpoints(out)
        resume = bool(checkpoints) if resume is None else resume
        if bool(resume) != bool(checkpoints):
            raise InputError(
                f"{out}: has no checkpoint to resume from; leave out --resume."
                if resume
                else f"{out}: has a training in it. Go on with it (--resume), or choose another folder."
            )
        try:
            (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"{out}: cannot be written ({e.strerror or e}). Choose another --out.") from e
        if init is not None:
            self.task.start_from(init)
        net = self.task.net
        optimiser = torch.optim.AdamW(
            net.parameters(), lr=cfg.learning_rate, betas=cfg.adam_betas, weight_decay=cfg.weight_decay,
            fused=True,
        )  # fmt: skip
        if resume:
            self._restore(checkpoints[-1] if resume is True else Path(resume), optimiser)
        self.module, self.optimiser = self.fabric.setup(_LossModule(net), optimiser)
        if self.fabric.device.type == "cuda" and self.fabric.world_size == 1:
            self.replayed = Replayed(self._gradients)
        self.task.open_state(out, self.step)
        self.curves = _open_curves(out, self.step) if self.fabric.is_global_zero else None

    def _restore(self, path: Path, optimiser: torch.optim.Optimizer) -> None:
        """Load a checkpoint; refuse settings that may not change, and warn of a new schedule."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.fabric.device, weights_only=True)
            config = TrainConfig.model_validate_json(state["config"])  # with defaults for new settings
        except Exception as error:  # a damaged file can fail in any way
            raise InputError(f"{path}: no checkpoint of a training, or damaged ({error}).") from error
        schedules = (config, state.get("minutes", self.minutes)), (self.cfg, self.minutes)
        before, now = (c.model_dump(mode="json") | {"--minutes": m} for c, m in schedules)
        by_name = {change.partition(":")[0]: change for change in differences(before, now)}
        changed = {name: change for name, change in by_name.items() if name not in _FREE_SETTINGS}
        refused = [change for name, change in changed.items() if name not in _SCHEDULE_SETTINGS]
        listed = ", ".join(refused or changed.values())
        if refused:
            raise InputError(
                f"{self.out}: was trained with other settings: {listed}. Give the same, or another folder. "
                f"Only {', '.join(_SCHEDULE_SETTINGS + _FREE_SETTINGS)} may change."
            )
        self.task.net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.smooth = state["step"], state["seconds"], state["smooth"]
        self.best, self.best_step = state["best"], state["best_step"]
        if (changed or self.minutes is not None) and self.fabric.is_global_zero:
            old_rate, rate = (learning_rate(c, self.step, self._completed_share(c, m)) for c, m in schedules)
            passed = f" {self.seconds / 60:.1f} minutes have passed." if self.minutes is not None else ""
            trend = "falls to 0 at the end" if self.cfg.decay == "cosine" else "stays there"
            _log.warning(
                f"{self.out}: goes on at step {self.step}{' with ' if changed else ''}{listed}.{passed} The "
                f"learning rate, there {old_rate:.3g} so far, is {rate:.3g} now and {trend}."
            )

    def steps(self, stop: Callable[[], bool]) -> Iterator[Progress]:
        cfg, fabric, task = self.cfg, self.fabric, self.task
        began = time.monotonic() - self.seconds
        saved = self.step
        batches = task.batches(self.step, fabric.global_rank, fabric.world_size)
        try:
            if self.step == 0 and fabric.is_global_zero:
                self._log_row(task.check())  # errors of the initial weights
            batch = None
            while (share := self._share(stop)) < 1:
                batch = next(batches)
                self._train_step(batch, share)
                self.step += 1
                self.seconds = time.monotonic() - began
                if self.step % cfg.check_steps == 0:
                    self._check(batch)
                elif self.step % cfg.summary_steps == 0:
                    self._log_row({})
                if self.step % cfg.checkpoint_steps == 0:
                    self._save()
                    saved = self.step
                yield Progress(self.step, share, cfg.batch, self.smooth)
            if batch is not None and share < math.inf and self.checked != self.step:
                self._check(batch)
            if saved != self.step:
                self._save()
        except GeneratorExit:
            if saved != self.step and fabric.world_size == 1:  # other processes would not take part
                self._save()
            raise
        except OSError as e:
            raise InputError(
                f"{self.out}: cannot be written ({e.strerror or e}). Make room, then go on with --resume."
            ) from e
        finally:
            batches.close()
            if self.curves is not None:
                self.curves.close()

    def _share(self, stop: Callable[[], bool]) -> float:
        """Completed share of the training, equal in all processes; infinite to stop."""
        share = math.inf if stop() else self._completed_share(self.cfg, self.minutes)
        if self.fabric.world_size > 1:
            share = float(self._reduce(torch.tensor([share], dtype=torch.float64), "max"))
        return share

    def _completed_share(self, cfg: TrainConfig, minutes: float | None) -> float:
        """Completed share of the training in this process, of ``minutes`` or of the steps."""
        return self.step / cfg.steps if minutes is None else self.seconds / (60 * minutes)

    def _reduce(self, x: Tensor, operation: str) -> Tensor:
        """Reduce over the processes."""
        out = self.fabric.all_reduce(x.to(self.fabric.device), reduce_op=operation)
        assert isinstance(out, Tensor)
        return out

    def _train_step(self, batch: Any, share: float) -> None:
        """Make a gradient step."""
        cfg, fabric = self.cfg, self.fabric
        rate = learning_rate(cfg, self.step, share)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        prepared = self.task.prepare(batch, self.step)
        gradients = (self.task.replayable(self.step) and self.replayed) or self._gradients
        with _seeded(cfg.seed, self.step, fabric.global_rank, fabric.device):
            losses = gradients(prepared)
        norm = fabric.clip_gradients(
            self.module, self.optimiser, max_norm=cfg.clip or math.inf, error_if_nonfinite=False
        )
        assert norm is not None
        means = torch.stack([*(x.float() for x in losses.values()), norm.float()])
        if fabric.world_size > 1:
            means = self._reduce(means, "mean")
        self.optimiser.step()  # before reading the values, which waits for the GPU
        values = dict(zip((*losses, "gradient"), means.tolist(), strict=True))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient"])):
            self._raise_not_finite(batch, values)
        loss = values["loss"]
        self.smooth = loss if math.isnan(self.smooth) else 0.99 * self.smooth + 0.01 * loss
        self.sum_steps += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.rate = rate

    def _gradients(self, prepared: Any) -> dict[str, Tensor]:
        """Losses of a step, with the gradients left in the parameters."""
        self.optimiser.zero_grad(set_to_none=self.replayed is None)  # a CUDA graph keeps their addresses
        losses: dict[str, Tensor] = self.module(lambda: self.task.losses(prepared, self.step))
        self.fabric.backward(losses["loss"])
        return {name: x.detach() for name, x in losses.items()}

    def _raise_not_finite(self, batch: Any, values: dict[str, float]) -> None:
        """Write the samples of a step to a file and raise ``InputError``."""
        file = self.out / f"not_a_number_{self.step}_{self.fabric.global_rank}.json"
        report = {"step": self.step, "seed": self.cfg.seed, "ids": self.task.ids(batch)}
        write_bytes_atomically(
            file, json.dumps(report | {k: str(v) for k, v in values.items()}, indent=1).encode()
        )
        raise InputError(
            f"{self.out}: at step {self.step} the loss is {values['loss']} and the gradient's length "
            f"{values['gradient']}. The samples of the step are named in {file}: look at them, or take a "
            "lower learning_rate, and go on from the last checkpoint with --resume."
        )

    def _check(self, batch: Any) -> None:
        """Validate in one process, for which the others wait."""
        self.checked = self.step
        if self.fabric.is_global_zero:
            errors = self.task.check()
            if errors[self.task.best] < self.best:
                self.best, self.best_step = errors[self.task.best], self.step
                self.task.save(self.out / "best.safetensors")
            self._log_row(errors)
            if self.curves is not None:
                for name, picture in self.task.pictures(batch).items():
                    self.curves.add_image(name, picture, self.step, dataformats="HWC")
        else:
            self._log_row({})
        self.fabric.barrier()

    def _log_row(self, errors: dict[str, float]) -> None:
        """Write the means since the last row, and the errors, to metrics.jsonl and the curves."""
        means = {k: v / self.sum_steps for k, v in self.sums.items()} if self.sum_steps else {}
        self.sums, self.sum_steps = {}, 0
        if not self.fabric.is_global_zero:
            return
        row = {"step": self.step, "seconds": round(self.seconds, 1)}
        row |= {k: float(f"{v:.6g}") for k, v in means.items()} | {"learning_rate": self.rate}
        row |= {k: round(v, 2) for k, v in errors.items()}
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
        if self.curves is not None:
            for key, value in row.items():
                self.curves.add_scalar(key, value, self.step)

    def _save(self) -> None:
        """Write a checkpoint of all processes."""
        fabric = self.fabric
        self.task.save_state(min([self.step, *(_checkpoint_step(c) for c in _checkpoints(self.out))]))
        fabric.barrier()
        if fabric.is_global_zero:
            self.task.save(self.out / "weights.safetensors")
            values = {
                "net": self.task.net.state_dict(), "optimiser": self.optimiser.state_dict(),
                "step": self.step, "seconds": self.seconds, "smooth": self.smooth, "best": self.best,
                "best_step": self.best_step, "config": self.cfg.model_dump_json(), "minutes": self.minutes,
            }  # fmt: skip
            content = io.BytesIO()
            torch.save(values, content)
            write_bytes_atomically(self.out / "checkpoints" / f"{self.step:09d}.pt", content.getvalue())
            for old in _checkpoints(self.out)[: -self.cfg.keep]:
                if _checkpoint_step(old) != self.best_step:
                    old.unlink()
        fabric.barrier()
        self.task.reload_state(self.step)


def learning_rate(cfg: TrainConfig, step: int, share: float) -> float:
    """Learning rate of a step, after the completed ``share`` of the training, 0 to 1."""
    rate = cfg.learning_rate * min(1.0, (step + 1) / cfg.warmup_steps)
    if cfg.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return rate


def _fabric(cfg: TrainConfig) -> Fabric:
    """Fabric of the settings' processes and precision; a launcher's number of processes comes first."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # without its summary of the settings
    if _FABRIC_RUN:
        return Fabric()
    precision: Any = "bf16-mixed" if cfg.precision == "bf16" else "32-true"
    device = _device(cfg)
    devices, nodes = cfg.devices, cfg.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    several = devices > 1 or nodes > 1
    one_gpu = device.type == "cuda" and not several
    return Fabric(
        accelerator=device.type, devices=[device.index or 0] if one_gpu else devices, num_nodes=nodes,
        precision=precision, strategy="ddp" if several else "auto",
    )  # fmt: skip


def _device(cfg: TrainConfig) -> torch.device:
    name = cfg.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InputError(f"device: {name} cannot be used ({reason}). Choose auto, cpu or cuda.") from error


@contextmanager
def _seeded(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which dropout draws from, for a step; restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) * 4096 + rank)
        yield


def _checkpoints(out: Path) -> list[Path]:
    """Checkpoints in a folder, by step."""
    return sorted((out / "checkpoints").glob("[0-9]*.pt"))


def _checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.stem)


def _open_curves(out: Path, step: int) -> Any:
    """Open a writer for TensorBoard, None without that package, and drop rows of metrics after ``step``."""
    file = out / "metrics.jsonl"
    if file.exists():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [x for n, x in enumerate(lines, 1) if x.endswith("\n") and _row_step(x, file, n) <= step]
        write_bytes_atomically(file, "".join(kept).encode())
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.info("no TensorBoard curves: pip install -e '.[train]' for them")
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)


def _row_step(line: str, file: Path, number: int) -> float:
    """Step of a row of metrics. Raises ``InputError`` where it is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{file}: line {number} is damaged. Remove that line, or the file, then go on with --resume: "
            "only curves are made of it."
        ) from None
