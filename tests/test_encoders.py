"""Encoders: their outputs by definition, and what happens without ImageNet's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import convnext_tiny, resnet50

from models.encoders import FEATURE_SIZES, EncoderName, make_encoder


def made(name: EncoderName, **given: bool) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_encoder(name, **given).eval().requires_grad_(False)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def test_resnet_is_everything_before_the_classifier() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = resnet50().eval().requires_grad_(False)
    net = made("resnet50")
    net.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")})
    x = images(2)
    features = net(x)
    assert features.shape == (2, FEATURE_SIZES["resnet50"])
    assert torch.allclose(whole(x), F.linear(features, whole.fc.weight, whole.fc.bias), atol=1e-5)


def test_convnext_gives_its_logits_or_what_they_are_made_of() -> None:
    logits, pooled = made("convnext_tiny"), made("convnext_tiny_pooled")
    state = logits.state_dict()
    assert state.keys() == convnext_tiny_keys()
    pooled.load_state_dict({k: v for k, v in state.items() if not k.startswith("classifier.2.")})
    x = images(2)
    a, b = logits(x), pooled(x)
    assert a.shape == (2, 1000)
    assert b.shape == (2, 768)
    assert torch.allclose(a, F.linear(b, state["classifier.2.weight"], state["classifier.2.bias"]), atol=1e-5)


def convnext_tiny_keys() -> set[str]:
    with torch.random.fork_rng(devices=[]):
        return set(convnext_tiny().state_dict())


def test_weights_of_imagenet_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may be put there by hand. A damaged one, or none and no network, is a warning."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.warns(UserWarning, match=r"resnet50-0676ba61.pth elsewhere and put it at .*checkpoints"):
        net = made("resnet50", imagenet=True)
    assert net(images(1)).isfinite().all()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        cached = resnet50().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: cached)
    assert torch.equal(made("resnet50", imagenet=True).state_dict()["conv1.weight"], cached["conv1.weight"])


def refuse(*args: object, **kwargs: object) -> None:
    raise OSError("no network")
