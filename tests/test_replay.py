"""Replayed functions: their results are those of the function itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from models.replay import MAX_RECORDINGS, Replayed
from pipeline.batches import TensorBatch, axes


@dataclass(frozen=True, repr=False)
class Pair(TensorBatch):
    a: Tensor = axes("N 3")
    b: Tensor = axes("N 3")


def difference(pair: Pair, scale: Tensor) -> dict[str, Tensor]:
    return {"difference": scale * (pair.a - pair.b), "sum": (pair.a + pair.b).sum()}


def pair(count: int, device: str, seed: int = 0) -> Pair:
    g = torch.Generator().manual_seed(seed)
    return Pair(torch.randn(count, 3, generator=g), torch.randn(count, 3, generator=g)).to(device)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_every_call_gives_what_the_function_gives(device: str) -> None:
    replayed = Replayed(difference)
    kept = []
    for call in range(4):
        for count in (5, 7):
            x, scale = pair(count, device, call), torch.tensor(float(call), device=device)
            kept.append((replayed(x, scale), difference(x, scale)))
    for got, want in kept:  # at the end: a later call must not change an earlier one's results
        assert got.keys() == want.keys()
        for name in want:
            assert torch.equal(got[name], want[name])


@pytest.mark.cuda
def test_a_recording_is_made_at_the_second_call_and_of_some_shapes_alone() -> None:
    calls = []

    def counted(x: Tensor) -> dict[str, Tensor]:
        calls.append(len(x))
        return {"x": 2 * x}

    replayed = Replayed(counted)
    for _ in range(5):
        replayed(torch.ones(3, device="cuda"))
    assert calls == [3, 3]
    for count in range(4, 4 + MAX_RECORDINGS + 2):
        for _ in range(3):
            assert torch.equal(
                replayed(torch.ones(count, device="cuda"))["x"].cpu(), torch.full((count,), 2.0)
            )
    assert calls.count(4) == 2
    assert calls.count(3 + MAX_RECORDINGS + 2) == 3, "no recording"


@pytest.mark.cuda
def test_dropout_follows_the_seed_and_gradients_are_added_up() -> None:
    with torch.random.fork_rng(devices=["cuda"]):
        net = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 1)).cuda()

    def backward(x: Tensor) -> dict[str, Tensor]:
        for p in net.parameters():
            if p.grad is not None:
                p.grad.zero_()
        loss = net(x).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    replayed, x = Replayed(backward), pair(16, "cuda").a @ torch.ones(3, 8, device="cuda")
    seen = []
    for seed in (0, 0, 1, 0, 1):
        with torch.random.fork_rng(devices=["cuda"]):
            torch.manual_seed(seed)
            loss = float(replayed(x)["loss"])
        seen.append((seed, loss, torch.cat([p.grad.flatten() for p in net.parameters()]).clone()))
    for seed, loss, gradient in seen:
        first = next(s for s in seen if s[0] == seed)
        assert loss == pytest.approx(first[1], rel=1e-5)
        assert torch.allclose(gradient, first[2], rtol=1e-4, atol=1e-6)
    assert seen[0][1] != seen[2][1]
