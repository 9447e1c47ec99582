"""Small models with known answers, seeded and built in milliseconds."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise, Noise
from robustsuite.threat import Eps, Norm, ThreatModel

SEED = 20
DUAL = {"Linf": 1.0, "L2": 2.0, "L1": math.inf}
_ROOM = 0.25  # 1.5 times that, spent on one pixel (L1), stays inside of the box
EPS = {"Linf": "0.1", "L2": "0.5", "L1": "2"}


@dataclass(frozen=True)
class Case:
    """A model, examples and a threat; `closed_form` float64 ``[N]`` are exact minimal radii where they are known."""

    model: Classifier
    x: Tensor
    y: Tensor
    ids: Tensor
    threat: ThreatModel
    closed_form: Tensor

    def noise(self, stage: str = "check", seed: int = SEED) -> ExampleNoise:
        """Noise of these examples."""
        return Noise(seed, stage).at(self.ids)

    def rows(self, index: Tensor) -> "Case":
        """The examples at ``index``."""
        parts = {name: getattr(self, name)[index].clone() for name in ("x", "y", "ids", "closed_form")}
        return replace(self, **parts)

    def with_eps(self, eps: float) -> "Case":
        """The same under another eps."""
        return replace(self, threat=ThreatModel(self.threat.norm, Eps.parse(f"{eps:.6g}")))

    def describe(self) -> str:
        """The case in a few words."""
        channels, height, width = self.x.shape[1:]
        colour = "grey" if channels == 1 else "colour"
        return f"{self.threat}, {self.model.num_classes} classes, {len(self.y)} {colour} {height}x{width} images"


class RowLinear(nn.Module):
    """A linear layer whose rows are computed apart: a row's bits depend neither on its place nor on the batch."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """``[N,d]`` to ``[N,K]``."""
        return (x.unsqueeze(1) * self.weight).sum(2) + self.bias


def _layer(weight: Tensor, bias: Tensor, rowwise: bool) -> nn.Module:
    if rowwise:
        return RowLinear(weight, bias)
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # draws no random numbers
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer


def linear_case(
    norm: Norm, classes: int, shape: tuple[int, int, int], n: int, *, rowwise: bool, factor: float = 1.5
) -> Case:
    """A linear model and images which all have the same exact minimal radius, the box never in the way.

    The minimal radius is ``min_k (z_y - z_k) / ||w_y - w_k||_q`` with the dual norm q. Around the middle of the box
    logits, and so radii, scale with the image's distance from it. eps is ``factor`` times the radius.
    """
    d = math.prod(shape)
    weight = Noise(SEED, f"toys/linear/{classes}/{d}").at(torch.arange(classes)).normal((d,))
    bias = -0.5 * weight.double().sum(1).float()
    pool = Noise(SEED, "toys/pool").at(torch.arange(16 * n)).uniform(shape) * 0.2 + 0.4
    largest = _radii(norm, weight, bias, pool).topk(n)
    target = (largest.values.min() * 0.99).clamp(max=_ROOM)
    chosen = pool[largest.indices]
    share = (target / largest.values).float().view(-1, 1, 1, 1)
    x = 0.5 + (chosen - 0.5) * share
    radii = _radii(norm, weight, bias, x)
    module = nn.Sequential(nn.Flatten(), _layer(weight, bias, rowwise))
    model = Classifier(module, num_classes=classes, input_shape=shape)
    eps = Eps.parse(f"{factor * float(radii.max()):.6g}")
    return Case(model, x, model.logits(x).argmax(1), _ids(n), ThreatModel(norm, eps), radii)


def _radii(norm: Norm, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Closed-form minimal radii float64 ``[N]``."""
    weight = weight.double()
    logits = x.double().flatten(1) @ weight.T + bias.double()
    y = logits.argmax(1)
    sizes = torch.linalg.vector_norm(weight[y].unsqueeze(1) - weight, ord=DUAL[norm], dim=2)
    gaps = logits.gather(1, y.view(-1, 1)) - logits
    return (gaps / sizes.clamp(min=1e-30)).scatter(1, y.view(-1, 1), math.inf).amin(1)


def net_case(norm: Norm, classes: int, shape: tuple[int, int, int], n: int, *, rowwise: bool, hidden: int = 12) -> Case:
    """A random ReLU network with one hidden layer, on images with pixels at 0 and 1; labels are its own answers."""
    module = _net(classes, shape, hidden, rowwise)
    x = Noise(SEED, "toys/images").at(torch.arange(n)).uniform(shape)
    x = (1.4 * x - 0.2).clamp(0, 1)
    model = Classifier(module, num_classes=classes, input_shape=shape)
    threat = ThreatModel.parse(f"{norm}:{EPS[norm]}")
    return Case(model, x, model.logits(x).argmax(1), _ids(n), threat, torch.full((n,), math.nan).double())


def _net(classes: int, shape: tuple[int, int, int], hidden: int, rowwise: bool) -> nn.Module:
    d = math.prod(shape)
    first = Noise(SEED, f"toys/first/{d}").at(torch.arange(hidden)).normal((d,)) * d**-0.5
    second = Noise(SEED, f"toys/second/{classes}").at(torch.arange(classes)).normal((hidden,)) * hidden**-0.5
    shift = Noise(SEED, "toys/shift").at(torch.arange(hidden)).normal(()) * 0.3
    offset = -second @ (first.sum(1) * 0.5 + shift).relu()  # centred, so that every class has its share
    return nn.Sequential(nn.Flatten(), _layer(first, shift, rowwise), nn.ReLU(), _layer(second, offset, rowwise))


def _ids(n: int) -> Tensor:
    """Ids that are no positions, so that using the position instead shows."""
    return torch.arange(n) * 7 + 11


def toy_data(n: int = 96, classes: int = 3, shape: tuple[int, int, int] = (1, 6, 6)) -> Dataset:
    """Images that a small network learns within seconds: a class pattern each, and a little noise."""
    y = torch.arange(n) % classes
    patterns = Noise(SEED, "toys/patterns").at(torch.arange(classes)).uniform(shape)
    noise = Noise(SEED, "toys/grain").at(torch.arange(n)).uniform(shape)
    return Dataset("toy", (0.8 * patterns[y] + 0.2 * noise).clamp(0, 1), y, torch.arange(n) + 100, classes)


class Exotic(nn.Module):
    """A model that no bound propagation knows: it branches on the data, sorts, and swaps its classes to and fro."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N,K]``; their order turns with the mean pixel, many times over the range of any threat."""
        z = self.inner(x)
        if float(z.detach().abs().max()) > 1e9:
            return z
        swapped = torch.sin(5000 * x.flatten(1).mean(1, keepdim=True)) < 0
        return torch.where(swapped, z.sort(1).values.flip(1) - z, z)
