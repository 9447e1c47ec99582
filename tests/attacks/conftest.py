"""Small models with known answers, and the steppers under test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustsuite.attacks.apgd import APGDCE, APGDDLR, APGDT, APGDMargin
from robustsuite.attacks.base import Stepper
from robustsuite.attacks.beta import BETA
from robustsuite.attacks.fab import FAB, FABT
from robustsuite.attacks.fgsm import FGSM
from robustsuite.attacks.malt import MALT
from robustsuite.attacks.pgd import PGD
from robustsuite.attacks.pma import PMA
from robustsuite.attacks.square import Square
from robustsuite.models.classifier import Classifier
from robustsuite.threat import NORMS

STEPPERS: dict[str, Stepper] = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=12),
    "pgd-dlr": PGD(steps=12, loss="dlr"),
    "pgd-margin": PGD(steps=12, loss="margin"),
    "apgd-ce": APGDCE(steps=20),
    "apgd-dlr": APGDDLR(steps=20),
    "apgd-margin": APGDMargin(steps=20),
    "apgd-t": APGDT(steps=20, n_targets=3),
    "apgd-ce-largereps": APGDCE(steps=20, largereps=True),
    "pma": PMA(steps=12),
    "malt": MALT(steps=20, n_targets=1, candidates=9),
    "beta": BETA(steps=8, n_targets=4, prune_every=3),
    "fab-t": FABT(n_iter=20, n_targets=3),
    "fab": FAB(n_iter=4),
    "square": Square(n_queries=80),
}
NORMS_OF = dict.fromkeys(STEPPERS, NORMS) | {
    "pgd-dlr": ("Linf", "L2"),
    "pgd-margin": ("Linf", "L2"),
    "apgd-ce-largereps": ("L1",),  # the others ignore it
    "pma": ("Linf", "L2"),
    "beta": ("Linf", "L2"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that asks for ``stepper`` and ``norm`` runs on each stepper and each norm that it declares."""
    if {"stepper", "norm"} <= set(metafunc.fixturenames):
        pairs = [(name, norm) for name in STEPPERS for norm in NORMS_OF[name]]
        metafunc.parametrize(
            ("stepper", "norm"),
            [(STEPPERS[name], norm) for name, norm in pairs],
            ids=[f"{name}-{norm}" for name, norm in pairs],
        )


def init_weights(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else p.numel()
            p.copy_(torch.randn(p.shape, generator=generator) / fan_in**0.5)
    return module


@pytest.fixture
def cnn() -> Callable[..., Classifier]:
    """A small convolutional network with fixed random weights, for images ``[C,H,W]``."""

    def build(classes: int = 10, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> Classifier:
        channels, height, width = shape
        module = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * ((height + 1) // 2) * ((width + 1) // 2), 16),
            nn.ReLU(),
            nn.Linear(16, classes),
        )
        return Classifier(init_weights(module, seed), num_classes=classes, input_shape=shape)

    return build


class Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.fixture
def linear() -> Callable[[Tensor, Tensor, tuple[int, ...]], Classifier]:
    """``z = W x + b`` as a classifier."""

    def build(weight: Tensor, bias: Tensor, shape: tuple[int, ...]) -> Classifier:
        return Classifier(Linear(weight, bias), num_classes=weight.shape[0], input_shape=shape)

    return build


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """Random images in [0,1]."""

    def build(count: int, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> Tensor:
        return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))

    return build


@pytest.fixture(scope="session")
def mnist_cnn_a(shared_data: Path) -> tuple[Classifier, Tensor, Tensor]:
    """The adversarially trained CNN-A and the 200 MNIST images that results on it are published for."""
    module = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    module.load_state_dict(torch.load(shared_data / "checkpoints" / "mnist_cnn_a_adv.model", weights_only=True))
    x = torch.from_numpy(np.load(shared_data / "mnist" / "sdp_x.npy")).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(np.load(shared_data / "mnist" / "sdp_y.npy")).long()
    return Classifier(module, num_classes=10, input_shape=(1, 28, 28)), x, y
