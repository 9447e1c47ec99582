"""Batches that are labelled in part: the other part comes from other data, or from training data without its labels."""

import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.context import Context
from robustsuite.defenses.extra_data import BEYOND, Extra, append, load_extra
from robustsuite.defenses.step import Step


def prepare(context: Context, reference: str, split: str, share: float) -> Dataset:
    """The labelled data; the other is loaded from ``reference``, or drawn from the training's own where it is empty.

    The plugin remembers under ``hidden`` the ids of its own data that go without a label.
    """
    data = context.data
    if reference:
        extra = load_extra(context, reference, split, labelled=False)
        context.add("extra", Extra(extra.x, torch.zeros_like(extra.y)))
        return data
    order = context.noise.child("unlabelled").at(data.ids).order()
    hidden, seen = order.tensor_split([int(share * len(order))])
    context.memory["hidden"] = data.ids[hidden].sort().values.to(context.device)
    return data.take(seen.sort().values, f"{data.subset}, the labelled part")


def complete(step: Step, share: float) -> None:
    """Add unlabelled examples until they are ``share`` of the batch, or take the labels of the hidden ones away.

    A label that is not known is class 0: nothing may be learnt from it before it is replaced.
    """
    if "extra" in step.aux:
        extra = step.aux["extra"]
        assert isinstance(extra, Extra)
        append(step, extra, share)
        return
    hidden = unlabelled(step)
    y = step.y.masked_fill(hidden, 0)
    nothing = nn.functional.one_hot(y, step.num_classes).to(step.q.dtype)
    step.rebatch(y=y, q=nothing.where(hidden.unsqueeze(1), step.q))


def unlabelled(step: Step) -> Tensor:
    """Which examples of the batch have no label, bool ``[B]``."""
    ids = step.noise.ids
    hidden = step.memory.get("hidden")
    return ids >= BEYOND if hidden is None else torch.isin(ids, hidden)


def mean_over(values: Tensor, part: Tensor) -> Tensor:
    """Values ``[B]`` whose mean is the mean of ``values`` over the rows in ``part`` bool ``[B]``; 0 if it is empty."""
    return values.masked_fill(~part, 0) * (len(values) / part.sum().clamp(min=1))
