"""Small networks of digits, trained here, and how the evaluator sees what is put around them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsuite.attacks.pgd import PGD
from robustsuite.cli.loading import wrapped
from robustsuite.data.dataset import Dataset
from robustsuite.data.digits import digits
from robustsuite.evaluation.judge import Judge, Jury
from robustsuite.models.classifier import Classifier
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.models.reference import ModelSpec, load_model
from robustsuite.models.sidecar import Sidecar, save_checkpoint
from robustsuite.noise import Noise
from robustsuite.threat import ThreatModel
from robustsuite.training.loop import train
from robustsuite.training.method import make_method

SHAPE = (1, 8, 8)
TRAININGS: dict[str, tuple[dict[str, Any], int]] = {"standard": ({}, 6), "pgd_at": ({"steps": 3, "alpha": 0.5}, 8)}


@dataclass(frozen=True)
class Net:
    """A trained network and its checkpoint without a defense."""

    module: nn.Module
    checkpoint: Path

    def classifier(self) -> Classifier:
        """The network by itself, counting from zero."""
        return Classifier(self.module, num_classes=10, input_shape=SHAPE)


@pytest.fixture(scope="session")
def images() -> Dataset:
    """64 digits that nobody was trained on."""
    return digits("test").take(torch.arange(64), "first 64")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Net]:
    """A small network by the name of its training (standard, pgd_at), made when it is first asked for."""
    known: dict[str, Net] = {}

    def get(name: str) -> Net:
        if name not in known:
            params, epochs = TRAININGS[name]
            method, threat = make_method(name, params), ThreatModel.parse("Linf:0.15")
            settings: dict[str, Any] = {"epochs": epochs, "batch_size": 64, "optimizer": "adam", "validation": 0}
            module = train(method, "small_cnn", {"width": 8}, digits("train"), threat, lr=0.01, **settings).module
            known[name] = Net(module, saved(module, tmp_path_factory.mktemp("nets") / name, None))
        return known[name]

    return get


@pytest.fixture(scope="session")
def net(trained: Callable[[str], Net]) -> Net:
    """The network without any defense."""
    return trained("standard")


def saved(module: nn.Module, path: Path, wrap: dict[str, Any] | None) -> Path:
    """A checkpoint whose sidecar names the defense around it."""
    sidecar = Sidecar(arch="small_cnn", arch_params={"width": 8}, num_classes=10, input_shape=SHAPE, wrap=wrap)
    return save_checkpoint(path, module.state_dict(), sidecar)


@pytest.fixture
def reloaded(tmp_path: Path) -> Callable[[Net, dict[str, Any]], Classifier]:
    """The network through a checkpoint and its sidecar, as the evaluator gets it."""

    def load(net: Net, wrap: dict[str, Any]) -> Classifier:
        path = saved(net.module, tmp_path / "defended", wrap)
        found = load_model(ModelSpec(reference=str(path)), input_shape=SHAPE, num_classes=10)
        return wrapped(found.classifier, found.part.wrap)

    return load


def accuracy(model: Classifier, data: Dataset, x: Tensor) -> float:
    """Share of right verdicts; of a randomised model, the mean over its draws."""
    threat, noise = ThreatModel.parse("Linf:1"), Noise(0, "test/judge")
    if isinstance(model, RandomizedClassifier):
        poll = Jury(model, threat, noise, len(data), data.ids).poll(x, data.y, data.ids)
        return 1 - float(poll.wrong.double().mean()) / model.draws
    verdicts = Judge(model, threat, noise, len(data)).exact(x, data.y, data.ids, x)
    return sum(v.predicted == y for v, y in zip(verdicts, data.y.tolist(), strict=True)) / len(data)


@pytest.fixture(scope="session")
def clean() -> Callable[[Classifier, Dataset], float]:
    """Accuracy on the images themselves."""
    return lambda model, data: accuracy(model, data, data.x)


@pytest.fixture(scope="session")
def attacked() -> Callable[..., float]:
    """Accuracy after PGD in the Linf ball of eps 0.1."""

    def run(model: Classifier, data: Dataset, steps: int = 10) -> float:
        threat, noise = ThreatModel.parse("Linf:0.1"), Noise(0, "test/attack").at(data.ids)
        attack = PGD(steps=steps, stop_when_fooled=False)
        return accuracy(model, data, attack.run(model, data.x, data.y, threat, noise))

    return run
