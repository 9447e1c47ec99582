"""What `gpu.py` runs on: a ResNet-18 that a peer brings, and networks with random weights, good for times alone."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.errors import InputError
from robustsuite.models.classifier import Classifier
from robustsuite.models.reference import LoadedModel, ModelSpec, load_model
from robustsuite.models.small_cnn import small_cnn
from robustsuite.noise import Noise
from robustsuite.results.schema import ModelPart


def bundled_network(
    device: torch.device, checkpoint: Path | None, data: str | None, n: int
) -> tuple[LoadedModel, Dataset]:
    """The ResNet-18 that pyautoattack brings, and ``n`` test images for it (random ones without ``data``)."""
    path = checkpoint or _examples() / "model_test.pt"
    spec = ModelSpec(str(path), arch="resnet18")
    loaded = load_model(spec, input_shape=(3, 32, 32), num_classes=10, device=device)
    if data is None:
        return loaded, synthetic(loaded.classifier, n)
    images = load_data(data)
    keyed = Noise(0, "benchmark/order").at(images.ids).uniform((1,)).flatten().argsort()[:n]  # files lie by class
    return loaded, images.take(keyed, f"random:{n}@0")


def _examples() -> Path:
    spec = find_spec("pyautoattack")
    if spec is None or spec.origin is None:
        raise InputError("pyautoattack is not installed; install it (pip install pyautoattack).")
    return Path(spec.origin).parent / "examples"


def tiny_network(device: torch.device) -> tuple[LoadedModel, Dataset]:
    """A small network with random weights, and few images, all of which an attack with a large eps breaks at once."""
    loaded = untrained(small_cnn(input_shape=(3, 32, 32)), "small_cnn", device)
    return loaded, synthetic(loaded.classifier, 16)


def wide_network(device: torch.device, quick: bool) -> tuple[LoadedModel, Dataset]:
    """WRN-28-10 with random weights (WRN-10-1 where all is tiny)."""
    loaded = untrained(WideResNet(10, 1) if quick else WideResNet(28, 10), "wide ResNet", device)
    return loaded, synthetic(loaded.classifier, 16 if quick else 512)


def untrained(module: nn.Module, name: str, device: torch.device) -> LoadedModel:
    """A network as it is; it needs no seed, for only times are read off it."""
    part = ModelPart(name=name, reference=name, weights_sha256="0" * 64, format="random", n_params=0)
    return LoadedModel(Classifier(module, num_classes=10, input_shape=(3, 32, 32), device=device), part)


def synthetic(model: Classifier, n: int) -> Dataset:
    """Random images that the network gets right, because the labels are its answers."""
    ids = torch.arange(n)
    x = Noise(0, "benchmark/images").at(ids).uniform((3, 32, 32))
    y = torch.cat([model.logits(part.to(model.device)).argmax(1).cpu() for part in x.split(64)])
    return Dataset("synthetic", x, y, ids, 10)


class WideBlock(nn.Module):
    """Pre-activation block (Zagoruyko and Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        out = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-width for 32x32 images and ten classes."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        widths = [16, 16 * width, 32 * width, 64 * width]
        blocks = []
        for stage, stride in enumerate((1, 2, 2)):
            for i in range((depth - 4) // 6):
                inputs = widths[stage + (i > 0)]
                blocks.append(WideBlock(inputs, widths[stage + 1], stride if i == 0 else 1))
        self.stem, self.blocks = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.Sequential(*blocks)
        self.norm, self.linear = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))
