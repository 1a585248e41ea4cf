"""Image encoders: a crop of a person → a vector."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

EncoderName = Literal["resnet50", "convnext_tiny", "convnext_tiny_pooled"]
"""ResNet-50 (He et al. 2016) pooled to 2048 numbers; ConvNeXt-T (Liu et al. 2022) up to the 1000 logits of
its classifier, as the reference of the multi-view models has it, or pooled to 768 numbers."""

SIZES: Final[dict[EncoderName, int]] = {
    "resnet50": 2048,
    "convnext_tiny": 1000,
    "convnext_tiny_pooled": 768,
}
"""Length of each encoder's vector."""
assert tuple(SIZES) == get_args(EncoderName)
ON_CPU: Final = 8
"""Crops that a processor takes at once: memory for the results of more is asked of the system anew at every
layer, which takes half as long again."""


def make_encoder(name: EncoderName, *, imagenet: bool = False) -> nn.Module:
    """Crops (N, 3, S, S), normalised → (N, ``SIZES[name]``); parameters are named as in torchvision.

    imagenet: begin with the weights of ImageNet, from torch's cache or, where there is a network, from
    torchvision's server; with random ones and a warning where they cannot be had.
    """
    # A third of the program's start, which nobody waits for who uses keypoints.
    from torchvision.models import ConvNeXt_Tiny_Weights, ResNet50_Weights, convnext_tiny, resnet50

    # Blocks that begin as the identity (Goyal et al. 2017, section 5.1): random weights learn much faster.
    net: nn.Module = resnet50(zero_init_residual=True) if name == "resnet50" else convnext_tiny()
    if imagenet:
        weights = (
            ResNet50_Weights.IMAGENET1K_V1 if name == "resnet50" else ConvNeXt_Tiny_Weights.IMAGENET1K_V1
        )
        try:
            net.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
            warnings.warn(
                f"no ImageNet weights for {name} ({error}): it begins with random ones. Download "
                f"{weights.url} elsewhere and put it at {file}.",
                stacklevel=2,
            )
    if name == "resnet50":
        net.fc = nn.Identity()
    elif name == "convnext_tiny_pooled":
        head = net.get_submodule("classifier")
        assert isinstance(head, nn.Sequential)
        head[2] = nn.Identity()
    return net


def encode(encoder: nn.Module, crops: Tensor, *, half: bool = False) -> Tensor:
    """Crops (M, 3, S, S), normalised → vectors (M, D), float32; half: bfloat16 inside."""
    kind = crops.device.type
    if kind == "cuda":  # what its convolutions are fastest with
        crops = crops.contiguous(memory_format=torch.channels_last)
    pieces = crops.split(ON_CPU) if kind == "cpu" else (crops,)  # type: ignore[no-untyped-call]
    with torch.autocast(kind, torch.bfloat16, enabled=half):
        vectors = torch.cat([encoder(piece) for piece in pieces])
    return vectors.float()
