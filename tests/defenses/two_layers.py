"""A two-layer network on two pixels whose bounds are worked out by hand, and steps on it."""

from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.bounds.graph import trace
from robustsuite.defenses import Step
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel

LABEL = torch.tensor([0])


class TwoLayers(nn.Module):
    """Logits ``relu(W x)``; by default z1 = x1 + x2 and z2 = x1 - x2."""

    def __init__(self, weight: Tensor | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]) if weight is None else weight)
            self.last.weight.copy_(torch.eye(2))
            self.first.bias.zero_()
            self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x.flatten(1))))


def example(
    net: nn.Module | None = None,
    *,
    x: Tensor | None = None,
    y: Tensor = LABEL,
    found: Tensor | None = None,
    classes: int = 2,
    progress: float = 1.0,
) -> Step:
    """The pixels (1/2, 1/4) within 1/4, of class 0; ``found`` is what the inner maximisation finds."""
    net = TwoLayers() if net is None else net
    x = torch.tensor([[[[0.5, 0.25]]]]) if x is None else x

    def inner(step: Step, spec: Any, x: Tensor, q: Tensor) -> Tensor:
        assert found is not None
        return found

    return Step(
        module=net,
        x=x,
        y=y,
        q=nn.functional.one_hot(y, classes).to(x.dtype),
        threat=ThreatModel.parse("Linf:0.25"),
        progress=progress,
        num_classes=classes,
        noise=Noise(0, "test").at(torch.arange(len(y))),
        inner=inner,
        graph=trace(net, tuple(x.shape[1:])),
    )
