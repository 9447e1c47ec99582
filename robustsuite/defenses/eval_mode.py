"""The trained network as an attack sees it: in eval mode, and back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from robustsuite.defenses.step import Step


@contextmanager
def in_eval(module: nn.Module) -> Iterator[None]:
    """The module in eval mode inside, each submodule as it was after."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


def clean_logits(step: Step) -> Tensor:
    """Logits ``[B,K]`` of the batch in eval mode, without a graph: what an attack measures its distance from."""
    with in_eval(step.module):
        return step.infer(step.x, step.module)
