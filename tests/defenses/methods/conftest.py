"""Short trainings of a method: alone, against another, and killed in the middle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses import Step, StepMethod, reduce_terms
from robustsuite.registry import ARCHITECTURES
from robustsuite.testing.toys import toy_data
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import save_trained
from robustsuite.training.loop import train
from robustsuite.training.trained import Trained

LINF = ThreatModel.parse("Linf:0.1")
RECIPE = {"epochs": 2, "batch_size": 16, "lr": 0.1, "validation": 0}
ARCH = "tests_methods"

ARCHITECTURES.discover()


@ARCHITECTURES.register(ARCH)
def bn_dropout(num_classes: int, input_shape: tuple[int, ...]) -> nn.Sequential:
    """Everything that makes a training step depend on more than its weights."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(4 * input_shape[1] * input_shape[2], num_classes),
    )  # fmt: skip


@ARCHITECTURES.register("tests_methods_no_dropout")
def without_dropout(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """The same, but nothing in it is drawn."""
    network = bn_dropout(num_classes, input_shape)
    network[4] = nn.Identity()
    return network


class Says(nn.Module):
    """A network that answers the same logits ``[B,K]`` whatever it is asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer


@pytest.fixture
def says() -> type[Says]:
    return Says


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """48 easy images of three classes, with ids that are no positions."""
    return toy_data(48)


@pytest.fixture
def quick(digits: Dataset) -> Callable[..., Trained]:
    def run(
        method: StepMethod, threat: ThreatModel = LINF, data: Dataset = digits, arch: str = ARCH, **changed: Any
    ) -> Trained:
        return train(method, arch, {}, data, threat, **(RECIPE | changed))

    return run


@pytest.fixture
def same() -> Callable[[Trained, Trained], bool]:
    def compare(a: Trained, b: Trained) -> bool:
        return all(torch.equal(a.last_state[name], b.last_state[name]) for name in a.last_state)

    return compare


@pytest.fixture
def survives(quick: Callable[..., Trained], same: Callable[..., bool], tmp_path: Path) -> Callable[..., bool]:
    """Whether a run killed after its fourth of six steps ends with the bits of one that was not."""

    def check(method: StepMethod, **changed: Any) -> bool:
        def kill(done: int, total: int, info: dict[str, Any]) -> None:
            if done == 5:
                raise KeyboardInterrupt

        kept: dict[str, Any] = {"keep_at": tmp_path / "model.safetensors", "keep_every": 0.0, **changed}
        with pytest.raises(KeyboardInterrupt):
            quick(method, progress=kill, **kept)
        return same(quick(method, **kept), quick(method, **changed))

    return check


@pytest.fixture
def loss() -> Callable[[StepMethod, Step], float]:
    def total(method: StepMethod, step: Step) -> float:
        terms = method.terms(step)
        scalars = reduce_terms(terms, method.weights(step, terms), len(step.y))
        return sum(scalar.item() for scalar in scalars.values())

    return total


@pytest.fixture
def checkpoint(quick: Callable[..., Trained], tmp_path: Path) -> Callable[..., str]:
    """Train with a method, save, and name the file."""

    def make(method: StepMethod, **changed: Any) -> str:
        path = tmp_path / "trained.safetensors"
        save_trained(quick(method, **changed), path)
        return str(path)

    return make
