"""Held-out examples, and accuracy on them: what an epoch is selected by."""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    order = Noise(seed, "train/hold-out").at(data.ids).order()
    held, kept = order[:size].sort().values, order[size:].sort().values
    return data.take(kept, f"{data.subset} but {size} held out"), data.take(held, f"{size} held out of {data.subset}")


class Scores(NamedTuple):
    """Accuracies in [0,1]: clean, under PGD-10, under FGSM; and the share of examples whose loss FGSM lowers."""

    clean: float | None
    robust: float | None
    fgsm: float | None
    abnormal: float | None


def scores(
    module: nn.Module, data: Dataset, threat: ThreatModel, noise: Noise, *, robust: bool, device: torch.device
) -> Scores:
    """What the examples of ``data`` say of ``module``; only clean accuracy unless ``robust``. The module is copied."""
    model = Classifier(copy.deepcopy(module), num_classes=data.num_classes, input_shape=data.input_shape, device=device)
    x, y, ids = data.x.to(device), data.y.to(device), data.ids.to(device)
    clean = model.logits(x)
    right = clean.argmax(1) == y
    if not robust:
        return Scores(_share(right), None, None, None)
    attacks: Any = ATTACKS
    strong = attacks.get("pgd").target(steps=STEPS).run(model, x, y, threat, noise.at(ids))
    weak = model.logits(attacks.get("fgsm").target().run(model, x, y, threat, noise.at(ids)))
    held, held_weak = right & ~fooled(model.logits(strong), y), right & ~fooled(weak, y)
    abnormal = F.cross_entropy(weak, y, reduction="none") < F.cross_entropy(clean, y, reduction="none")
    return Scores(_share(right), _share(held), _share(held_weak), _share(abnormal))


def _share(which: Tensor) -> float:
    return float(which.double().mean())
