"""Models made to fool: one honestly weak classifier of digits behind masks that gradient attacks cannot see through.

A mask moves the predictions little or not at all, so that whatever robustness it seems to add is not there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.data.digits import digits
from robustsuite.evaluation.evaluator import Prepared, evaluate, prepare
from robustsuite.evaluation.protocol import custom_protocol, with_params
from robustsuite.models.classifier import Classifier
from robustsuite.models.small_cnn import small_cnn
from robustsuite.noise import fork_global
from robustsuite.results.flags import UNRELIABLE
from robustsuite.results.schema import ModelPart
from robustsuite.threat import ThreatModel

THREAT = "Linf:0.15"


def honest_network() -> nn.Module:
    """`small_cnn` after a few seconds of ordinary training: most digits right, no robustness to speak of."""
    train = digits("train")
    with fork_global(0, "test/fooling"):
        net = small_cnn(width=8)
        optimiser = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(8):
            for batch in torch.randperm(len(train)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(net(train.x[batch]), train.y[batch]).backward()
                optimiser.step()
    return net.eval().requires_grad_(False)


def test_images(count: int) -> Dataset:
    """The first digits of the test split."""
    return digits("test").take(torch.arange(count), f"first {count}")


def classifier(module: nn.Module) -> Classifier:
    return Classifier(module, num_classes=10, input_shape=(1, 8, 8))


@dataclass
class Outcomes:
    """What a run said: its robust examples, and the names of the flags raised by checks and probes."""

    robust: int
    raised: set[str]


def ready(model: Classifier, data: Dataset, threat: str, attacks: list[str], **params: float) -> Prepared:
    part = ModelPart(name="fooling", reference="fooling", weights_sha256="0" * 64, format="pt", n_params=1)
    protocol = with_params(custom_protocol(attacks, []), params)
    return prepare(model, part, data, ThreatModel.parse(threat), protocol, threads=1)


def carried_out(prepared: Prepared, runs: Path) -> Outcomes:
    record = evaluate(prepared, runs).record
    assert record is not None
    raised = {f.name for f in record.flags if f.raised}
    assert record.unreliable == bool(raised & UNRELIABLE)
    (robust,) = (m.value * m.n for m in record.metrics if m.name == "robust_accuracy")
    return Outcomes(round(robust), raised)


class Masked(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Saturated(Masked):
    """Logits so large that cross-entropy is 0 and flat."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.inner(x)


class Squashed(Masked):
    """+1 for the winner and -1 for the others, through a tanh that is flat at both ends."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return torch.tanh(1e4 * (z - z.topk(2).values.mean(1, keepdim=True)))


class Quantised(Masked):
    """Inputs rounded to 9 levels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * 8).round() / 8)


class Softmax(Masked):
    """Probabilities in place of logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).softmax(1)


class ScaledSoftmax(Masked):
    """The same in disguise."""

    def forward(self, x: Tensor) -> Tensor:
        return 50 * self.inner(x).softmax(1)


class Noisy(Masked):
    """Noise from the global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.1 * torch.randn_like(x))


class BatchNormalised(Masked):
    """Normalised with the statistics of the batch, whatever the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(F.batch_norm(x, None, None, training=True) * 0.375 + 0.305)


class Training(Masked):
    """Cannot be put into eval mode, and drops out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.dropout = nn.Dropout(0.1)

    def eval(self) -> "Training":
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.dropout(x))


class Thermometer(Masked):
    """Comparisons with 15 thresholds: no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.arange(1, 16, device=x.device) / 16
        return self.inner((x.unsqueeze(-1) > levels).float().mean(-1))


class Shattered(Masked):
    """A ripple too small to matter and too steep to follow."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.02 * torch.sin(1000 * x))


class Optimising(Masked):
    """Moves its input towards a confident answer first, with gradients that the outside does not see."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_(True)
                (grad,) = torch.autograd.grad(self.inner(leaf).logsumexp(1).sum(), leaf)
            x = x + 0.01 * grad.sign()
        return self.inner(x)


class Drifting(Masked):
    """Writes a running statistic in every forward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("mean").lerp_(x.detach().mean(), 1e-4)
        return self.inner(x - 1e-3 * self.get_buffer("mean"))


MASKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "saturated": Saturated,
    "squashed": Squashed,
    "quantised": Quantised,
    "softmax": Softmax,
    "scaled-softmax": ScaledSoftmax,
    "noisy": Noisy,
    "batch-normalised": BatchNormalised,
    "training": Training,
    "thermometer": Thermometer,
    "shattered": Shattered,
    "optimising": Optimising,
    "stateful": Drifting,
}
