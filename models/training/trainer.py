"""The training loop, for every kind of net: steps, checkpoints, curves.

A step's samples, its augmentation and its dropout follow from the seed and the step's number alone: so a
training that was killed goes on from its last checkpoint as if it had not been.

Runs on the CPU, a GPU, several of them, or several machines (``torchrun`` or ``fabric run``): each process
takes its share of every batch, and gradients are means over them (lightning-fabric).
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
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.files import locked, write_bytes_atomically

_log = logging.getLogger(__name__)


class TrainConfig(Config):
    """Settings of a training."""

    net: Literal["calibrated", "uncalibrated", "images"] = "calibrated"
    """A keypoint net that knows where the cameras are, one that does not, or an image net."""
    steps: int = Field(20000, ge=1)
    """Gradient steps, over which ``decay`` goes."""
    batch: int = Field(256, ge=1)
    """Samples of a step, of all processes together."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest learning rate of AdamW."""
    decay: Literal["cosine", "none"] = "cosine"
    """Course of the learning rate: to zero at the last step, or constant."""
    warmup_steps: int = Field(200, ge=1)
    """Steps in which the learning rate rises."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """Memory of AdamW's means of gradients and of their squares; SPIN has 0.9, 0.999."""
    clip: float = Field(1.0, ge=0)
    """Longest gradient; 0 leaves them as they are."""
    precision: Literal["32", "bf16"] = "32"
    """bf16: an image net's encoder computes with 16 bits, three times as fast; its weights have 32."""
    device: str = "auto"
    """A GPU where there is one; or cpu, cuda, cuda:1. On a GPU larger batches cost next to nothing."""
    devices: int = Field(1, ge=1)
    """Processes on this machine, each with a GPU of its own, if any."""
    nodes: int = Field(1, ge=1)
    """Machines."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of weights and samples."""
    summary_steps: int = Field(100, ge=1)
    """Steps between rows of metrics."""
    check_steps: int = Field(1000, ge=1)
    """Steps between comparisons with held-out truth."""
    checkpoint_steps: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(3, ge=1)
    """Checkpoints that are kept, the best one besides."""
    motion: Path | None = None
    """Motion capture, a .npz (models/synthetic/poses.py); without it poses are draws of the pose prior."""
    keypoints: KeypointNetConfig = KeypointNetConfig()
    """Settings of keypoint nets."""
    images: ImagesConfig = ImagesConfig()
    """Settings of image nets."""


_NO_MATTER: Final = (
    "device", "devices", "nodes", "summary_steps", "checkpoint_steps", "check_steps", "keep",
    "images.workers",
)  # fmt: skip
"""Settings that may change when a training goes on, as nothing that it learns depends on them."""
_COURSE: Final = ("steps", "--minutes", "learning_rate", "decay", "warmup_steps", "clip")
"""Those that may change, too: from there on the training takes their course, and says so."""
_BY_FABRIC: Final = "LT_CLI_USED" in os.environ
"""True if ``fabric run`` has started the processes, whose number and precision it then sets."""


class Trainable(Protocol):
    """Net and data of a training, as the loop sees them."""

    best: str
    """The error by which a checkpoint is the best."""

    @property
    def net(self) -> nn.Module: ...

    def batches(self, first: int, rank: int, world: int) -> Generator[Any]:
        """This process's share of the samples of every step from ``first`` on; on the CPU or the device."""

    def prepare(self, batch: Any, step: int) -> Any:
        """All that the losses of a step depend on beside the net, on the device."""

    def losses(self, prepared: Any, step: int) -> dict[str, Tensor]:
        """``loss``, and whatever else is to be seen in the curves."""

    def of_tensors_alone(self, step: int) -> bool:
        """True if losses and gradients of a step follow from tensors alone: then a GPU can replay them."""

    def ids(self, batch: Any) -> list[str]:
        """Ids of the samples."""

    def start_from(self, init: Path) -> None:
        """Take the weights of a file. Raises ``InputError`` when they are those of another net."""

    def check(self) -> dict[str, float]:
        """Errors on held-out samples."""

    def pictures(self, batch: Any) -> dict[str, NDArray[np.uint8]]:
        """(H, W, 3) each."""

    def save(self, path: Path) -> None:
        """Weights, for the ``regress`` stage. Raises ``OSError``."""

    def begin(self, out: Path, step: int) -> None:
        """Open what is kept in ``out`` beside the weights, as it was at a step."""

    def keep(self, oldest: int) -> None:
        """Write it. No step before ``oldest`` will be gone back to. Raises ``OSError``."""

    def share(self, step: int) -> None:
        """Take in what the other processes have written."""


@dataclass(frozen=True)
class Progress:
    """State of a training after a step."""

    step: int
    share: float
    """Part of the training that is done, 0 to 1."""
    samples: int
    """Samples of this step."""
    loss: float
    """Mean over some hundred steps."""


class _LossModule(nn.Module):
    """A net whose forward pass is any work with it: so losses, too, run within fabric's precision and its
    exchange of gradients."""

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

    Leaves in ``out``: weights.safetensors, best.safetensors (of least error on held-out samples),
    metrics.jsonl, checkpoints/<step>.pt, tensorboard/ where that package is installed, and what the task
    keeps, such as fits.zarr. The net starts from random weights, or from those of the file ``init``. With
    ``minutes``, that much time takes the place of the number of steps. stop: asked after every step; when it
    says so the training saves and ends, in all processes. Closing the generator saves, too. A training that
    ended before its end goes on from its last checkpoint with ``resume``, or from the one given; to the same
    weights if it counts steps, on a CPU to the last bit. With more ``steps`` than before it is extended: at a
    constant learning rate to what a training of so many is. resume None: go on where there is a checkpoint.

    Raises ``InputError`` when data or first weights cannot be read, when ``out`` has or lacks a checkpoint
    where it should not, or cannot be written, or another training is at work there, and when the loss is no
    number any more.
    """
    if cfg.precision != "32" and cfg.net != "images":
        raise InputError("precision: keypoint nets compute with 32 bits. Leave it at 32.")
    fabric = _fabric(cfg)
    if not _BY_FABRIC:
        fabric.launch()
    if cfg.batch % fabric.world_size:
        raise InputError(f"batch: {cfg.batch} samples cannot be shared among {fabric.world_size} processes.")
    with locked(out, "training") if fabric.is_global_zero else nullcontext():
        run = _Run(cfg, out, fabric, minutes)
        run.open(init, resume)
        yield from run.steps(stop)


class _Run:
    """A training while it goes on."""

    def __init__(self, cfg: TrainConfig, out: Path, fabric: Fabric, minutes: float | None) -> None:
        self.cfg, self.out, self.fabric, self.minutes = cfg, out, fabric, minutes
        self.task = make_task(cfg, fabric.device)
        self.step, self.seconds, self.smooth = 0, 0.0, math.nan
        self.best, self.best_step, self.checked = math.inf, -1, -1
        self.sums: dict[str, float] = {}
        self.counted, self.rate = 0, 0.0
        self.replayed: Replayed | None = None

    def open(self, init: Path | None, resume: bool | Path | None) -> None:
        """Bring net, optimiser and folder to where the training begins or goes on."""
        cfg, out = self.cfg, self.out
        found = _checkpoints(out)
        resume = bool(found) if resume is None else resume
        if bool(resume) != bool(found):
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
            self._restore(found[-1] if resume is True else Path(resume), optimiser)
        self.module, self.optimiser = self.fabric.setup(_LossModule(net), optimiser)
        if self.fabric.device.type == "cuda" and self.fabric.world_size == 1:
            self.replayed = Replayed(self._gradients)
        self.task.begin(out, self.step)
        self.curves = _curves(out, self.step) if self.fabric.is_global_zero else None

    def _restore(self, path: Path, optimiser: torch.optim.Optimizer) -> None:
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.fabric.device, weights_only=True)
            config = TrainConfig.model_validate_json(state["config"])  # with defaults for new settings
        except Exception as error:  # a damaged file can fail in any way
            raise InputError(f"{path}: no checkpoint of a training, or damaged ({error}).") from error
        before, now = (_flat(c.model_dump(mode="json")) for c in (config, self.cfg))
        before["--minutes"], now["--minutes"] = state.get("minutes", self.minutes), self.minutes
        changed = [k for k in before | now if before.get(k) != now.get(k) and k not in _NO_MATTER]
        refused = [k for k in changed if k not in _COURSE]
        listed = ", ".join(f"{k} ({before.get(k)}, now {now.get(k)})" for k in refused or changed)
        if refused:
            raise InputError(
                f"{self.out}: was trained with other settings: {listed}. Give the same, or another folder. "
                f"Only {', '.join(_COURSE + _NO_MATTER)} may change."
            )
        self.task.net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.smooth = state["step"], state["seconds"], state["smooth"]
        self.best, self.best_step = state["best"], state["best_step"]
        if (changed or self.minutes is not None) and self.fabric.is_global_zero:
            was, rate = (
                learning_rate(c, self.step, self._part(c, m))
                for c, m in ((config, before["--minutes"]), (self.cfg, self.minutes))
            )
            passed = f" {self.seconds / 60:.1f} minutes have passed." if self.minutes is not None else ""
            course = "falls to 0 at the end" if self.cfg.decay == "cosine" else "stays there"
            _log.warning(
                f"{self.out}: goes on at step {self.step}{' with ' if changed else ''}{listed}.{passed} The "
                f"learning rate, there {was:.3g} so far, is {rate:.3g} now and {course}."
            )

    def steps(self, stop: Callable[[], bool]) -> Iterator[Progress]:
        cfg, fabric, task = self.cfg, self.fabric, self.task
        began = time.monotonic() - self.seconds
        saved = self.step
        batches = task.batches(self.step, fabric.global_rank, fabric.world_size)
        try:
            if self.step == 0 and fabric.is_global_zero:
                self._row(task.check())  # where the curve begins
            batch = None
            while (share := self._share(stop)) < 1:
                batch = next(batches)
                self._learn(batch, share)
                self.step += 1
                self.seconds = time.monotonic() - began
                if self.step % cfg.check_steps == 0:
                    self._check(batch)
                elif self.step % cfg.summary_steps == 0:
                    self._row({})
                if self.step % cfg.checkpoint_steps == 0:
                    self._save()
                    saved = self.step
                yield Progress(self.step, share, cfg.batch, self.smooth)
            if batch is not None and share < math.inf and self.checked != self.step:
                self._check(batch)
            if saved != self.step:
                self._save()
        except GeneratorExit:
            if saved != self.step and fabric.world_size == 1:  # the others do not know of it
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
        """Part of the training that is done, for all processes alike; infinite where it is to stop."""
        share = math.inf if stop() else self._part(self.cfg, self.minutes)
        if self.fabric.world_size > 1:
            share = float(self._reduced(torch.tensor([share], dtype=torch.float64), "max"))
        return share

    def _part(self, cfg: TrainConfig, minutes: float | None) -> float:
        """Part of the training that is done, by time where it is given."""
        return self.step / cfg.steps if minutes is None else self.seconds / (60 * minutes)

    def _reduced(self, x: Tensor, how: str) -> Tensor:
        """Reduce over the processes."""
        out = self.fabric.all_reduce(x.to(self.fabric.device), reduce_op=how)
        assert isinstance(out, Tensor)
        return out

    def _learn(self, batch: Any, share: float) -> None:
        """A gradient step."""
        cfg, fabric = self.cfg, self.fabric
        rate = learning_rate(cfg, self.step, share)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        prepared = self.task.prepare(batch, self.step)
        whole = (self.task.of_tensors_alone(self.step) and self.replayed) or self._gradients
        with _seeded(cfg.seed, self.step, fabric.global_rank, fabric.device):
            losses = whole(prepared)
        norm = fabric.clip_gradients(
            self.module, self.optimiser, max_norm=cfg.clip or math.inf, error_if_nonfinite=False
        )
        assert norm is not None
        means = torch.stack([*(x.float() for x in losses.values()), norm.float()])
        if fabric.world_size > 1:
            means = self._reduced(means, "mean")
        self.optimiser.step()  # before its numbers are looked at, for which the processor waits
        values = dict(zip((*losses, "gradient"), means.tolist(), strict=True))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient"])):
            self._refuse(batch, values)
        loss = values["loss"]
        self.smooth = loss if math.isnan(self.smooth) else 0.99 * self.smooth + 0.01 * loss
        self.counted += 1
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.rate = rate

    def _gradients(self, prepared: Any) -> dict[str, Tensor]:
        """Losses of a step; their gradients are left in the parameters."""
        self.optimiser.zero_grad(set_to_none=self.replayed is None)  # or a replay would not find them
        losses: dict[str, Tensor] = self.module(lambda: self.task.losses(prepared, self.step))
        self.fabric.backward(losses["loss"])
        return {name: x.detach() for name, x in losses.items()}

    def _refuse(self, batch: Any, values: dict[str, float]) -> None:
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
        """Compare with held-out truth; by one process, for which the others wait."""
        self.checked = self.step
        if self.fabric.is_global_zero:
            errors = self.task.check()
            if errors[self.task.best] < self.best:
                self.best, self.best_step = errors[self.task.best], self.step
                self.task.save(self.out / "best.safetensors")
            self._row(errors)
            if self.curves is not None:
                for name, picture in self.task.pictures(batch).items():
                    self.curves.add_image(name, picture, self.step, dataformats="HWC")
        else:
            self._row({})
        self.fabric.barrier()

    def _row(self, errors: dict[str, float]) -> None:
        """Write the means since the last row, and the errors, to metrics.jsonl and the curves."""
        means = {k: v / self.counted for k, v in self.sums.items()} if self.counted else {}
        self.sums, self.counted = {}, 0
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
        """A checkpoint of all processes."""
        fabric = self.fabric
        self.task.keep(min([self.step, *(_step(c) for c in _checkpoints(self.out))]))
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
                if _step(old) != self.best_step:
                    old.unlink()
        fabric.barrier()
        self.task.share(self.step)


def learning_rate(cfg: TrainConfig, step: int, share: float) -> float:
    """Learning rate of a step, of which ``share`` of the training, 0 to 1, lies before."""
    rate = cfg.learning_rate * min(1.0, (step + 1) / cfg.warmup_steps)
    if cfg.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return rate


def _fabric(cfg: TrainConfig) -> Fabric:
    """Processes and precision. A launcher that has started the processes already says how many they are."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells what was asked for
    if _BY_FABRIC:
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
    """Dropout and the like draw from torch's own generators: for a step they follow from seed and step."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + step) * 4096 + rank)
        yield


def _checkpoints(out: Path) -> list[Path]:
    """Checkpoints in a folder, from the first to the last."""
    return sorted((out / "checkpoints").glob("[0-9]*.pt"))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem)


def _curves(out: Path, step: int) -> Any:
    """A writer for TensorBoard, or None without that package; rows of metrics after ``step`` are dropped: the
    steps will be made again."""
    file = out / "metrics.jsonl"
    if file.exists():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [x for n, x in enumerate(lines, 1) if x.endswith("\n") and _step_of(x, file, n) <= step]
        write_bytes_atomically(file, "".join(kept).encode())
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.info("no TensorBoard curves: pip install -e '.[train]' for them")
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)


def _step_of(line: str, file: Path, number: int) -> float:
    """The step that a row of metrics is about. Raises ``InputError`` where it is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{file}: line {number} is damaged. Remove that line, or the file, then go on with --resume: "
            "only curves are made of it."
        ) from None


def _flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by their names, with dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return flat
