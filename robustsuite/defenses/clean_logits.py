"""What the trained network says of the batch in eval mode, as an attack sees it."""

from torch import Tensor

from robustsuite.defenses.step import Step
from robustsuite.models.modes import mode


def clean_logits(step: Step) -> Tensor:
    """Logits ``[B,K]`` of the batch in eval mode, without a graph: what an attack measures its distance from."""
    with mode(step.module, "eval"):
        return step.infer(step.x, step.module)
