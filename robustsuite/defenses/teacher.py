"""A teacher: a trained network that another one learns from, and that stays as it is."""

from torch import Tensor

from robustsuite.defenses.step import Step


def taught(step: Step) -> Tensor:
    """The teacher's logits on the clean images, ``[B,K]``; asked once a step."""
    if "taught" not in step.trace:
        step.trace["taught"] = step.infer(step.x, step.aux["teacher"])
    return step.trace["taught"]
