"""Losses that attacks ascend: functions of logits ``[N,K]`` and labels ``[N]`` to one value a row, ``[N]``.

Every one is larger where the model is closer to a mistake. Rows do not see each other.
"""

import torch.nn.functional as F
from torch import Tensor

from robustsuite.attacks.base import Losses
from robustsuite.errors import UsageError
from robustsuite.models.classifier import margins

_TINY = 1e-12  # keeps a row whose leading logits are all equal from dividing by zero


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy. In float32 exactly 0 where the label leads by more than about 17, its gradient by about 100."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus that of the label (Carlini and Wagner 2017, f6); positive where the model errs."""
    return -margins(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, ``margin / (z_1 - z_3)`` with sorted logits z_1 >= z_2 >= z_3 (Croce and Hein 2020).

    Shifting and scaling the logits changes nothing. With two classes there is no z_3, and every such invariant
    function of two logits is constant, so the plain margin stands in for it: the attacks here follow signs or
    normalised gradients and compare values of one loss, which a factor common to all logits does not change.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + _TINY)


def gap(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """``z_t - z_y``, the logit of the target minus that of the label."""
    return (logits.gather(1, target.view(-1, 1)) - logits.gather(1, y.view(-1, 1))).squeeze(1)


def ranked(logits: Tensor, y: Tensor) -> Tensor:
    """The classes other than the label by falling logit, int64 ``[N,K-1]``."""
    others = logits.scatter(1, y.view(-1, 1), float("-inf"))
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted DLR, ``(z_t - z_y) / (z_1 - (z_3 + z_4) / 2)`` (Croce and Hein 2020, eq. 7), any number of classes.

    Three classes: ``z_1 - (z_2 + z_3) / 2``. (``z_1 - z_3`` would make the loss -1 everywhere, without a gradient,
    while the target ranks last.) Two classes: the plain difference, as in `dlr`.
    """
    lead, classes = gap(logits, y, target), logits.shape[1]
    if classes < 3:
        return lead
    top = logits.topk(min(classes, 4), dim=1).values
    return lead / (top[:, 0] - 0.5 * (top[:, -2] + top[:, -1]) + _TINY)


LOSSES: dict[str, Losses] = {"ce": ce, "margin": margin, "dlr": dlr}


def check_loss(name: str) -> None:
    """Raise `UsageError` when no untargeted loss has this name."""
    if name not in LOSSES:
        raise UsageError(f"no attack loss '{name}'; choose one of {', '.join(LOSSES)}.")
