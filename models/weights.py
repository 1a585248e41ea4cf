"""Weight files: safetensors with the network's configuration in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from pipeline.files import write_bytes_atomically

_KEY = "multispin"


def save_weights(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> None:
    """Write tensors and a configuration that fits into JSON, atomically. Raises ``OSError``."""
    on_cpu = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_bytes_atomically(path, save(on_cpu, metadata={_KEY: json.dumps(config)}))


def read_weights(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a file's content.

    Raises ``SafetensorError``, ``ValueError``, ``KeyError`` or ``TypeError`` where they are not in it.
    """
    tensors = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, json.loads(header["__metadata__"][_KEY])
