"""Two noisy views as logits, and one step with the real inner maximisation in the L2 ball."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import Step
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise

FIRST = torch.tensor([[2.0, 0, -1], [0, 1, 0]], dtype=torch.float64)
SECOND = torch.tensor([[1, 0.5, -1], [0, 0.6, 1]], dtype=torch.float64)


def make(module: nn.Module, x: Tensor, y: Tensor, threat: str = "L2:0.5", **changed: Any) -> Step:
    with torch.no_grad():
        classes = module(x[:1]).shape[1]
    fields: dict[str, Any] = {
        "module": module,
        "x": x,
        "y": y,
        "q": nn.functional.one_hot(y, classes).to(x.dtype),
        "threat": ThreatModel.parse(threat),
        "progress": 1.0,
        "num_classes": classes,
        "noise": Noise(0, "test").at(torch.arange(len(y)) + 5),
        "inner": maximise,
        "bounds": lambda lower, upper, y: torch.zeros(len(y), classes),
    }
    return Step(**(fields | changed))


@pytest.fixture
def make_step() -> Callable[..., Step]:
    return make


@pytest.fixture
def noisy() -> Callable[..., Step]:
    """A batch whose two noisy views have the logits above, the network being the identity; ``times`` over."""

    def build(y: tuple[int, ...] = (0, 1), times: int = 1, **views: Tensor) -> Step:
        found = {"noisy": FIRST, "noisy1": SECOND, **views}
        step = make(nn.Identity(), FIRST.repeat(times, 1), torch.tensor(y * times))
        step.views.update({name: view.repeat(times, 1) for name, view in found.items()})
        return step

    return build


@pytest.fixture
def small() -> tuple[nn.Module, Tensor, Tensor]:
    """A network without batch norm in float64, five images in the box and their labels."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    x = 0.2 + 0.6 * torch.rand(5, 1, 4, 4, generator=generator, dtype=torch.float64)
    return network, x, torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def trains(quick: Callable, survives: Callable) -> Callable[..., None]:
    """Two epochs with finite losses, every pass counted, and the same bits after a kill."""

    def check(method: Any, forward: int, backward: int) -> None:
        threat = ThreatModel.parse("L2:0.5")
        trained = quick(method, threat)
        assert all(torch.isfinite(torch.tensor(list(epoch.terms.values()))).all() for epoch in trained.history)
        assert (trained.forward, trained.backward) == (forward, backward)
        assert survives(method, threat=threat)

    return check
