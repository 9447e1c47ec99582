"""Time per epoch of PGD-10 adversarial training: the loop beside the same recipe written plainly, in one process.

    python benchmarks/training.py [--data DIR] [--rounds 5] [--device cuda]

The two take turns epoch by epoch. On digits and, where the shared images lie in DIR/mnist, on MNIST; with --device cuda
a PreActResNet-18 on CIFAR-size images, in float32 and in bf16 with compile.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import plain_at
import torch

from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.models.factory import build
from robustsuite.threat import ThreatModel
from robustsuite.training import make_method
from robustsuite.training.loop import train


class Turns:
    """Seconds of each epoch of the loop, whose progress callback lets the plain script have its epoch in between."""

    def __init__(self, plain: Any) -> None:
        self.plain, self.mine, self.theirs = plain, [], []
        self.epoch, self.began = 0, 0.0

    def __call__(self, done: int, total: int, info: dict[str, Any]) -> None:
        per_epoch = total // info["epochs"]
        if done % per_epoch == 0:
            self.mine.append(time.perf_counter() - self.began)
            self.theirs += self.plain()
            self.began = time.perf_counter()


def side_by_side(data: Dataset, arch: str, threat: str, batch: int, rounds: int, device: str, **settings: Any) -> None:
    model = ThreatModel.parse(threat)
    x, y = data.x.to(device), data.y.to(device)
    net = build(arch, {}, num_classes=10, input_shape=data.input_shape).to(device)
    turns = Turns(lambda: plain_at.train(net, x, y, model.radius, 1, batch))
    turns.began = time.perf_counter()
    method = make_method("pgd_at", {"steps": 10})
    common = {"epochs": rounds + 1, "batch_size": batch, "lr": 0.1, "validation": 0, "device": device}
    train(method, arch, {}, data, model, progress=turns, **common, **settings)
    mine, theirs = turns.mine[1:], turns.theirs[1:]  # the first epoch of each warms up
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    print(
        f"{data.name:10} {arch:16} batch {batch:4} {settings or ''}: loop {statistics.median(mine):.3f} s, plain "
        f"{statistics.median(theirs):.3f} s an epoch; ratio {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} epochs each)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rounds, device = arguments.rounds, arguments.device
    if device != "cpu":
        images = Dataset("random", torch.rand(50_000, 3, 32, 32), torch.arange(50_000) % 10, torch.arange(50_000), 10)
        for batch in (128, 512):
            side_by_side(images, "preactresnet18", "Linf:8/255", batch, rounds, device)
            fast = {"precision": "bf16", "compile": True, "channels_last": True}
            side_by_side(images, "preactresnet18", "Linf:8/255", batch, rounds, device, **fast)
        return
    side_by_side(load_data("digits", split="train"), "small_cnn", "Linf:0.15", 128, rounds, device)
    if arguments.data:
        mnist = load_data(str(arguments.data / "mnist"), split="test", subset="first:2000")
        side_by_side(mnist, "small_cnn", "Linf:0.2", 128, rounds, device)


if __name__ == "__main__":
    main()
