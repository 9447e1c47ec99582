"""Small data and networks for the training loop."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step
from robustsuite.noise import Noise
from robustsuite.registry import ARCHITECTURES
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise

ARCHITECTURES.discover()


@ARCHITECTURES.register("tests_bn_dropout")
def bn_dropout(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Everything that makes a training step depend on more than its weights."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(4 * input_shape[1] * input_shape[2], num_classes),
    )  # fmt: skip


@ARCHITECTURES.register("tests_linear")
def linear(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    size = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, num_classes))


@pytest.fixture(scope="session")
def blobs() -> Dataset:
    """60 images 1x4x4 of three classes, each a brighter band, with noise; ids that are not 0..N-1."""
    y = torch.arange(60) % 3
    x = 0.3 + 0.2 * Noise(0, "blobs").at(torch.arange(60)).uniform((1, 4, 4))
    for k in range(3):
        x[y == k, :, k] += 0.4
    return Dataset("blobs", x, y, torch.arange(60) * 7 + 3, 3)


@pytest.fixture
def make_step() -> Callable[..., Step]:
    def make(module: nn.Module, x: Tensor, y: Tensor, threat: str, num_classes: int) -> Step:
        return Step(
            module=module,
            x=x,
            y=y,
            q=nn.functional.one_hot(y, num_classes).to(x.dtype),
            threat=ThreatModel.parse(threat),
            progress=0.0,
            num_classes=num_classes,
            noise=Noise(0, "test").at(torch.arange(len(y))),
            inner=maximise,
            bounds=lambda lower, upper, y: torch.zeros(len(y), num_classes),
        )

    return make
