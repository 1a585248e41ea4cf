"""Weight files of keypoint nets."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import torch
from safetensors import SafetensorError

from models.body import load_body
from models.regressors.calibrated import CalibratedNet
from models.regressors.uncalibrated import UncalibratedNet
from models.weights import read_weights, save_weights
from pipeline.errors import InputError

KeypointNet = CalibratedNet | UncalibratedNet
_NETS: Final[dict[str, type[CalibratedNet] | type[UncalibratedNet]]] = {
    net.kind: net for net in (CalibratedNet, UncalibratedNet)
}


def save_regressor(net: KeypointNet, path: Path) -> None:
    """Write weights and configuration as safetensors, atomically."""
    save_weights(path, net.state_dict(), {"kind": net.kind, **net.config})


_REMEDY: Final = "Give a weights.safetensors that the command `train` has made."


def load_regressor(path: Path | Literal["calibrated", "uncalibrated"]) -> KeypointNet:
    """Keypoint net that ships with the project, or of a file of ``save_regressor``.

    In evaluation mode, without gradients, float32 on the CPU; its betas are the default body's. Raises
    ``InputError`` when the file is missing or holds something else.
    """
    source = files("models.assets") / f"regressor_{path}.safetensors" if isinstance(path, str) else path
    try:
        tensors, config = read_weights(source.read_bytes())
        with torch.random.fork_rng(devices=[]):  # layers draw weights when they are made
            net = _NETS[config.pop("kind")](load_body().keypoints, **config)
        net.load_state_dict(tensors)
    except OSError as error:
        raise InputError(f"{source}: cannot read the weights ({error.strerror}). Check the path.") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{source}: not the weights of this network ({reason}). {_REMEDY}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{source}: holds no weights of a keypoint regressor, or is damaged. {_REMEDY}"
        ) from error
    return net.requires_grad_(False).eval()
