"""One step with the real inner maximisation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import Step
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise


def make(module: nn.Module, x: Tensor, y: Tensor, threat: str = "Linf:0.1", **changed: Any) -> Step:
    classes = len(module(x[:1])[0])
    fields: dict[str, Any] = {
        "module": module,
        "x": x,
        "y": y,
        "q": nn.functional.one_hot(y, classes).to(x.dtype),
        "threat": ThreatModel.parse(threat),
        "progress": 0.0,
        "num_classes": classes,
        "noise": Noise(0, "test").at(torch.arange(len(y))),
        "inner": maximise,
        "bounds": lambda lower, upper, y: torch.zeros(len(y), classes),
    }
    return Step(**(fields | changed))


@pytest.fixture
def make_step() -> Callable[..., Step]:
    return make


@pytest.fixture
def linear() -> tuple[nn.Module, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """A network with two logits 0 and w.x + b, examples far from the edges of the box, and its signed margins."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, generator=generator)
    layer = nn.Linear(9, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(9), weight]))
        layer.bias.copy_(torch.tensor([0, 0.3]))
    x, y = 0.4 + 0.2 * torch.rand(16, 1, 3, 3, generator=generator), torch.arange(16) % 2
    sign = 2.0 * y - 1

    def margins(x: Tensor) -> Tensor:
        return sign * (x.flatten(1) @ weight + 0.3)

    return nn.Sequential(nn.Flatten(), layer), x, y, margins


@pytest.fixture
def net() -> nn.Module:
    """A smooth network in float64 for images 1x3x3 of three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3)).double()
