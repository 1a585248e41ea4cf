"""Image encoders: crop of a person → feature vector."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

EncoderName = Literal["resnet50", "convnext_tiny", "convnext_tiny_pooled"]
"""ResNet-50 (He et al. 2016) pooled to 2048 features; ConvNeXt-T (Liu et al. 2022) up to the 1000 logits of
its classifier, as in the reference implementation of Multi-SPIN, or pooled to 768 features."""

FEATURE_SIZES: Final[dict[EncoderName, int]] = {
    "resnet50": 2048,
    "convnext_tiny": 1000,
    "convnext_tiny_pooled": 768,
}
"""Length of each encoder's feature vector."""
assert tuple(FEATURE_SIZES) == get_args(EncoderName)
MAX_CPU_CROPS: Final = 8
"""Crops encoded at once on a CPU: with more, every layer asks the system for memory anew, which takes half as
long again."""


def make_encoder(name: EncoderName, *, imagenet: bool = False) -> nn.Module:
    """Network of normalised crops (N, 3, S, S) → (N, ``FEATURE_SIZES[name]``), with torchvision's names.

    imagenet: start from ImageNet's weights, from torch's cache or torchvision's server; where neither has
    them, from random ones, with a warning.
    """
    # Imported late: a third of the program's start, which keypoints alone do not need.
    from torchvision.models import ConvNeXt_Tiny_Weights, ResNet50_Weights, convnext_tiny, resnet50

    # Residual blocks start as the identity (Goyal et al. 2017, section 5.1): learns much faster.
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
                f"no ImageNet weights for {name} ({error}): it starts from random ones. Download "
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


def extract_features(encoder: nn.Module, crops: Tensor, *, half: bool = False) -> Tensor:
    """Encode normalised crops (M, 3, S, S) to features (M, D), float32; half: compute in bfloat16."""
    device = crops.device.type
    if device == "cuda":  # the layout of its fastest convolutions
        crops = crops.contiguous(memory_format=torch.channels_last)
    pieces = torch.split(crops, MAX_CPU_CROPS) if device == "cpu" else (crops,)
    with torch.autocast(device, torch.bfloat16, enabled=half):
        features = torch.cat([encoder(piece) for piece in pieces])
    return features.float()
