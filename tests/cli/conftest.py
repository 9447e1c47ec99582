"""A tiny trained model, and the command line in this process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from robustsuite import registry
from robustsuite.cli.main import app
from robustsuite.data.reference import load_data
from robustsuite.threat import ThreatModel
from robustsuite.training.checkpoint import save_trained
from robustsuite.training.loop import train
from robustsuite.training.method import make_method

UNSOUND = """
import torch
from dataclasses import dataclass
from robustsuite.certification import Certificates, Certifier, register_certifier

@register_certifier("believes_anything", norms=("Linf",), kind="deterministic")
@dataclass(frozen=True)
class Believes(Certifier):
    '''Certifies everything.'''

    def certify(self, model, x, y, threat, noise):
        return Certificates(torch.ones(y.shape, dtype=torch.float64), y.clone(), "deterministic")
"""


@dataclass(frozen=True)
class Called:
    """What a command line gave."""

    result: Result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.result, name)

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        return json.loads(self.result.stdout)


Run = Callable[..., Called]

RAISING = """
from dataclasses import dataclass
from robustsuite.attacks import Attack, register_attack

@register_attack("raises_midway", norms=("Linf",), access="white-box", kind="bounded", randomized=False)
@dataclass(frozen=True)
class RaisesMidway(Attack):
    '''Raises.'''

    def run(self, model, x, y, threat, noise):
        raise RuntimeError("boom")
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network on digits, about 90 % right, with its sidecar."""
    trained = train(
        make_method("standard"),
        "mlp",
        {"hidden": 32},
        load_data("digits", split="train"),
        ThreatModel.parse("Linf:0.1"),
        epochs=4,
        batch_size=32,
        lr=0.1,
    )
    return save_trained(trained, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`robustsuite ARGS` in an empty directory; no plugin failure outlives a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "FAILURES", [])
    return lambda *arguments: Called(CliRunner().invoke(app, [str(a) for a in arguments], prog_name="robustsuite"))


@pytest.fixture
def evaluate(run: Run, checkpoint: Path) -> Run:
    """A smoke evaluation of the small network in a second."""
    base = ("eval", checkpoint, "--data", "digits", "--subset", "first:40", "--threat", "Linf:0.1", "--threads", "1")
    return lambda *more: run(*base, *more)


@pytest.fixture
def smoke(evaluate: Run) -> Run:
    """The same with the tier `smoke`."""
    return lambda *more: evaluate("--tier", "smoke", *more)


@pytest.fixture
def raising(tmp_path: Path) -> Path:
    """A plugin file whose attack raises when it runs."""
    path = tmp_path / "raising.py"
    path.write_text(RAISING)
    return path


@pytest.fixture
def unsound(tmp_path: Path) -> Path:
    """A plugin file whose certifier certifies everything."""
    path = tmp_path / "unsound.py"
    path.write_text(UNSOUND)
    return path
