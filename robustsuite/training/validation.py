"""Held-out examples, and accuracy on them: what an epoch is selected by."""

import copy
from typing import Any

import torch
from torch import nn

from robustsuite.data.dataset import Dataset
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier, fooled
from robustsuite.noise import Noise
from robustsuite.registry import ATTACKS
from robustsuite.threat import ThreatModel

MAX_HELD_OUT = 200
STEPS = 10


def default_size(data: Dataset) -> int:
    """A tenth of the data, at most 200 examples, none where that leaves fewer than 10."""
    size = min(len(data) // 10, MAX_HELD_OUT)
    return size if size >= 10 else 0


def hold_out(data: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """Split off ``size`` examples, drawn by (seed, example id); the rest stays in order.

    Raises `UsageError` when nothing would be left to train on.
    """
    if size == 0:
        return data, None
    if not 0 < size < len(data):
        raise UsageError(f"cannot hold out {size} of {len(data)} examples; choose 0 to {len(data) - 1}.")
    keys = Noise(seed, "train/hold-out").at(data.ids).bits(2)
    order = (keys[:, 0] << 31 | keys[:, 1] >> 1).argsort(stable=True)
    held, kept = order[:size].sort().values, order[size:].sort().values
    return data.take(kept, f"{data.subset} but {size} held out"), data.take(held, f"{size} held out of {data.subset}")


def accuracies(
    module: nn.Module, data: Dataset, threat: ThreatModel, noise: Noise, *, robust: bool, device: torch.device
) -> tuple[float, float | None]:
    """Clean accuracy, and the accuracy under PGD-10 where ``robust``. The module is copied, never touched."""
    model = Classifier(copy.deepcopy(module), num_classes=data.num_classes, input_shape=data.input_shape, device=device)
    x, y, ids = data.x.to(device), data.y.to(device), data.ids.to(device)
    right = model.logits(x).argmax(1) == y
    if not robust:
        return float(right.double().mean()), None
    pgd: Any = ATTACKS.get("pgd").target
    x_adv = pgd(steps=STEPS).run(model, x, y, threat, noise.at(ids))
    held = right & ~fooled(model.logits(x_adv), y)
    return float(right.double().mean()), float(held.double().mean())
