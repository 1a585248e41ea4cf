"""Each fusion against its definition, and views that are missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.fusion import FusionName, make_fusion
from pipeline.array_types import Array


def fusion(name: FusionName, size: int, seed: int = 0) -> nn.Module:
    """With random numbers everywhere, running statistics included; float64."""
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        net = make_fusion(name, size).double().eval().requires_grad_(False)
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            scale = 0.5 / math.sqrt(value[0].numel()) if value.ndim > 1 else 0.3
            value.copy_(scale * torch.randn(value.shape, generator=g, dtype=value.dtype))
            if "running_var" in key or ("norm" in key and "weight" in key):
                value.abs_().add_(0.5)
    return net


def vectors(n: int, v: int, size: int) -> Tensor:
    return torch.randn(n, v, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def state(net: nn.Module) -> dict[str, Array]:
    return {k: v.numpy() for k, v in net.state_dict().items()}


def linear(s: dict[str, Array], name: str, x: Array) -> Array:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def normed(s: dict[str, Array], name: str, x: Array) -> Array:
    """Batch normalisation of (..., C), as in evaluation."""
    away = (x - s[f"{name}.running_mean"]) / np.sqrt(s[f"{name}.running_var"] + 1e-5)
    return np.asarray(away * s[f"{name}.weight"] + s[f"{name}.bias"])


def mlp_2048(s: dict[str, Array], a: Array, b: Array) -> Array:
    x = gelu(linear(s, "net.1", np.concatenate([a, b], -1)))
    return linear(s, "net.5", gelu(linear(s, "net.3", x)))


def mlp_1000(s: dict[str, Array], a: Array, b: Array) -> Array:
    x = linear(s, "net.1", np.concatenate([a, b], -1))
    return linear(s, "net.4", gelu(normed(s, "net.2", x)))


def conv1d(s: dict[str, Array], a: Array, b: Array) -> Array:
    x = np.stack([a, b], 1)

    def convolved(name: str, x: Array) -> Array:
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1)))
        near = np.stack([padded[..., i : i + x.shape[-1]] for i in range(3)], -1)
        out = np.einsum("oci,ncti->not", s[f"{name}.weight"], near)
        return np.asarray(out + s[f"{name}.bias"][:, None])

    for conv, norm in (("net.0", "net.1"), ("net.3", "net.4")):
        x = gelu(normed(s, norm, convolved(conv, x).transpose(0, 2, 1))).transpose(0, 2, 1)
    return convolved("net.6", x)[:, 0]


TWO: list[tuple[FusionName, int, Callable[[dict[str, Array], Array, Array], Array]]] = [
    ("average", 32, lambda s, a, b: (a + b) / 2),
    ("mlp", 2048, mlp_2048),
    ("mlp", 1000, mlp_1000),
    ("conv1d", 1000, conv1d),
]


@pytest.mark.parametrize(("name", "size", "by_hand"), TWO)
def test_two_views_by_hand(name: FusionName, size: int, by_hand: Callable[..., Array]) -> None:
    net, e = fusion(name, size), vectors(3, 2, size)
    fused, there = net(e, torch.ones(3, 2, dtype=torch.bool))
    assert there.sum(1).tolist() == [1, 1, 1]
    want = by_hand(state(net), e[:, 0].numpy(), e[:, 1].numpy())
    assert np.abs(fused[there].numpy() - want).max() < 1e-9
    assert np.abs(want).std() > 1e-3


@pytest.mark.parametrize(("name", "size", "by_hand"), TWO[2:])
def test_more_views_are_all_pairs_of_them(name: FusionName, size: int, by_hand: Callable[..., Array]) -> None:
    net, e = fusion(name, size), vectors(3, 4, size)
    seen = torch.tensor([[True] * 4, [True, False, True, True], [False, False, True, False]])
    fused, there = net(e, seen)
    pairs = [[*combinations(np.flatnonzero(row), 2)] or [(2, 2)] for row in seen.numpy()]
    assert there.sum(1).tolist() == [6, 3, 1]
    for n in range(3):
        want = [by_hand(state(net), e[[n], a].numpy(), e[[n], b].numpy())[0] for a, b in pairs[n]]
        assert np.abs(fused[n][there[n]].numpy() - np.array(want)).max() < 1e-9


def test_single_is_each_view() -> None:
    e, seen = vectors(2, 3, 8), torch.tensor([[True, False, True], [True, True, True]])
    fused, there = fusion("single", 8)(e, seen)
    assert torch.equal(fused, e)
    assert torch.equal(there, seen)


def test_average_is_of_the_views_that_are_seen() -> None:
    e, seen = vectors(3, 3, 8), torch.tensor([[True, False, True], [True, True, True], [False] * 3])
    e[0, 1] = torch.nan
    fused, there = fusion("average", 8)(e, seen)
    assert torch.allclose(fused[0, 0], (e[0, 0] + e[0, 2]) / 2)
    assert torch.allclose(fused[1, 0], e[1].mean(0))
    assert there.tolist() == [[True], [True], [False]]
    assert fused.isfinite().all()


def test_attention_by_hand() -> None:
    """One sample, two of three views seen, every product written out."""
    size, width, heads = 24, 512, 8
    net, e = fusion("attention", size), vectors(1, 3, size)
    s = state(net)
    fused, _ = net(e, torch.tensor([[True, False, True]]))

    def layer_norm(name: str, x: Array) -> Array:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return np.asarray(x * s[f"{name}.weight"] + s[f"{name}.bias"])

    def attend(name: str, asked: Array, x: Array) -> Array:
        w, b = (
            s[f"{name}.in_proj_weight"].reshape(3, width, width),
            s[f"{name}.in_proj_bias"].reshape(3, width),
        )
        q, k, v = (
            (y @ w[i].T + b[i]).reshape(-1, heads, width // heads) for i, y in enumerate((asked, x, x))
        )
        score = np.exp(np.einsum("qhd,khd->hqk", q, k) / math.sqrt(width // heads))
        pooled = np.einsum("hqk,khd->qhd", score / score.sum(-1, keepdims=True), v)
        return linear(s, f"{name}.out_proj", pooled.reshape(-1, width))

    x = e[0, [0, 2]].numpy()
    y = linear(s, "inside.1", layer_norm("inside.0", x))
    y = layer_norm("norm", y + attend("among", y, y))
    want = x.mean(0) + linear(s, "outside", attend("pool", s["question"][0], y))[0]
    assert np.abs(fused[0, 0].numpy() - want).max() < 1e-9
    assert np.abs(want - x.mean(0)).max() > 1e-3


def test_attention_does_not_mind_order_number_or_what_a_missing_view_holds() -> None:
    net, e = fusion("attention", 16), vectors(4, 5, 16)
    seen = torch.tensor([[True] * 5, [True, True, False, False, True], [False] * 4 + [True], [False] * 5])
    fused, there = net(e, seen)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(net(e[:, order], seen[:, order])[0], fused)
    assert torch.allclose(net(torch.where(seen[..., None], e, 1e3), seen)[0][:3], fused[:3])
    assert torch.allclose(net(e[1:2, [0, 1, 4]], torch.ones(1, 3, dtype=torch.bool))[0], fused[1:2])
    assert there.tolist() == [[True], [True], [True], [False]]
    assert fused.isfinite().all()


def test_untrained_attention_is_the_average() -> None:
    with torch.random.fork_rng(devices=[]):
        net = make_fusion("attention", 16).double().eval().requires_grad_(False)
    e, seen = vectors(2, 3, 16), torch.tensor([[True, True, True], [True, False, True]])
    assert torch.allclose(net(e, seen)[0], make_fusion("average", 16)(e, seen)[0])
