"""Training examples from beyond the data set, drawn into each batch."""

import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.data.reference import load_data
from robustsuite.defenses.context import Context
from robustsuite.defenses.step import Step
from robustsuite.errors import InputError

BEYOND = 1 << 41  # added to a place among the extra examples: an id that no example of the data set has
SLACK = 1e-9  # 0.7 / 0.3 of 3 examples are 7


class Extra(nn.Module):
    """Images ``[N,C,H,W]`` that live on the training's device, and their labels, which are in its checkpoints."""

    x: Tensor
    y: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.register_buffer("x", x, persistent=False)
        self.register_buffer("y", y)


def load_extra(context: Context, reference: str, split: str, *, labelled: bool) -> Dataset:
    """The data that ``reference`` names; raises `InputError` when its images or labels are not those of the training.

    Without ``labelled`` its labels may be anything.
    """
    data = load_data(reference, split=split or None, num_classes=context.num_classes if labelled else None)
    if data.input_shape != tuple(context.input_shape):
        raise InputError(
            f"the extra data {reference} has images {list(data.input_shape)}, the training data "
            f"{list(context.input_shape)}; bring them to one size."
        )
    return data


def append(step: Step, extra: Extra, share: float) -> None:
    """Add so many extra examples, drawn with replacement, that they are ``share`` of the batch, rounded down."""
    batch = len(step.y)
    more = int(batch * share / (1 - share) + SLACK)
    if more == 0:
        return
    columns = -(-more // batch)
    rows = step.noise.child("extra").integers(len(extra.y), (columns,)).T.flatten()[:more]
    y = extra.y[rows]
    step.rebatch(
        x=torch.cat([step.x, extra.x[rows]]),
        y=torch.cat([step.y, y]),
        q=torch.cat([step.q, nn.functional.one_hot(y, step.num_classes).to(step.q.dtype)]),
        ids=torch.cat([step.noise.ids, rows + BEYOND]),
    )
