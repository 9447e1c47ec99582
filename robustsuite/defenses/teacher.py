"""A teacher: a trained network that another one learns from, and that stays as it is."""

from torch import Tensor

from robustsuite.defenses.context import Context
from robustsuite.defenses.step import Step


def add_teacher(context: Context, reference: str) -> None:
    """The checkpoint ``reference`` as the auxiliary model ``teacher``; without one, a network is trained by TRADES.

    That one has the architecture and the recipe of the student. Raises `InputError` when a checkpoint does not fit the
    data.
    """
    if reference:
        context.add("teacher", context.load(reference))
    elif context.resuming:  # its weights come from the checkpoint of the run
        context.add("teacher", context.build("teacher"))
    else:
        context.add("teacher", context.train_other("trades", {}))


def taught(step: Step) -> Tensor:
    """The teacher's logits on the clean images, ``[B,K]``; asked once a step."""
    if "taught" not in step.trace:
        step.trace["taught"] = step.infer(step.x, step.aux["teacher"])
    return step.trace["taught"]
