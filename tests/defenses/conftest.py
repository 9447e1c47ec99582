"""A step on the toy batch TB: the identity as the network, so that the inputs are the logits."""

import pytest
import torch
from torch import Tensor, nn

from robustsuite.defenses import Step
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel

CLEAN = torch.tensor([[2.0, 0, -1], [0, 1, 0]], dtype=torch.float64)
ADVERSARIAL = torch.tensor([[1, 0.5, -1], [1, 0, 0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])


def identity_step(x: Tensor, y: Tensor, adversarial: Tensor, **changed: object) -> Step:
    fields = {
        "module": nn.Identity(),
        "x": x,
        "y": y,
        "q": nn.functional.one_hot(y, x.shape[1]).to(x.dtype),
        "threat": ThreatModel.parse("Linf:0.1"),
        "progress": 0.0,
        "num_classes": x.shape[1],
        "noise": Noise(0, "test").at(torch.arange(len(y))),
        "inner": lambda step, spec, x, q: adversarial,
        "bounds": lambda lower, upper, y: torch.zeros_like(lower),
    }
    return Step(**(fields | changed))


@pytest.fixture
def toy() -> Step:
    """TB with both views filled in."""
    step = identity_step(CLEAN, LABELS, ADVERSARIAL)
    step.views["adv"] = ADVERSARIAL
    return step


@pytest.fixture
def doubled() -> Step:
    """TB, every example twice."""
    adversarial = torch.cat([ADVERSARIAL, ADVERSARIAL])
    step = identity_step(torch.cat([CLEAN, CLEAN]), torch.cat([LABELS, LABELS]), adversarial)
    step.views["adv"] = adversarial
    return step
