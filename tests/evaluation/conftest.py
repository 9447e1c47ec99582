"""Small problems with known answers for the evaluator."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from robustsuite.data.dataset import Dataset
from robustsuite.evaluation.evaluator import Prepared, Run, evaluate, prepare
from robustsuite.evaluation.protocol import custom_protocol, with_params
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.noise import Noise
from robustsuite.results.schema import ModelPart
from robustsuite.threat import ThreatModel


class LinearNet(nn.Module):
    """Logits (0, w.x + b): the minimal Linf perturbation is |w.x + b| / ||w||_1 wherever the box allows it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(dim, 2)
        weight = torch.zeros(2, dim)
        weight[1] = torch.where(torch.arange(dim) % 2 == 0, 1.0, -1.0)
        self.linear.weight.data = weight
        self.linear.bias.data = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.flatten(x))


@dataclass
class Problem:
    """A linear model on grey 4x4 images; `radius` is each example's exact minimal Linf perturbation."""

    model: Classifier
    data: Dataset
    part: ModelPart
    radius: torch.Tensor

    def prepare(self, attacks: list[str], certifiers=(), eps: str = "0.05", **options) -> Prepared:
        params = options.pop("params", {})
        protocol = with_params(custom_protocol(attacks, list(certifiers)), params)
        protocol = options.pop("protocol", lambda same: same)(protocol)
        threat = ThreatModel.parse(f"Linf:{eps}")
        options = {"threads": 1, "slots": 8} | options
        return prepare(self.model, self.part, self.data, threat, protocol, **options)

    def run(self, runs: Path, attacks: list[str], certifiers=(), **options) -> Run:
        return evaluate(self.prepare(attacks, certifiers, **options), runs)


def linear_problem(n: int = 40, seed: int = 0, module: nn.Module | None = None, **facts) -> Problem:
    ids = torch.arange(n)
    x = 0.3 + 0.4 * Noise(seed, "test/x").at(ids).uniform((1, 4, 4))
    net = LinearNet(16)
    margin = net(x).detach()[:, 1]
    data = Dataset("toy", x, (margin > 0).long(), ids, 2)
    model = Classifier(module or net, num_classes=2, input_shape=(1, 4, 4), facts=Facts(**facts))
    part = ModelPart(name="linear", reference="toy", weights_sha256="0" * 64, format="pt", n_params=34)
    return Problem(model, data, part, margin.abs() / 16)


@pytest.fixture
def problem() -> Problem:
    return linear_problem()


def _outcome_files(run_dir: Path) -> dict[str, bytes]:
    """Everything in a run directory that must not depend on how the run went, times and host aside."""
    files = {}
    for path in sorted(p for p in run_dir.rglob("*") if p.is_file()):
        name = str(path.relative_to(run_dir))
        if name in ("events.jsonl", "seconds.safetensors"):
            continue
        body = path.read_bytes()
        if name == "record.json":
            record = json.loads(body)
            record.pop("host")
            record.pop("content_sha256")
            body = json.dumps(record).encode()
        files[name] = body
    return files


@pytest.fixture
def outcome_files() -> Callable[[Path], dict[str, bytes]]:
    return _outcome_files
