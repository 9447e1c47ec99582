"""Projected ascent by the steps of the usual optimisers, for attacks that are not made of sign steps."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from robustsuite.defenses.step import InnerSpec, Step
from robustsuite.models.modes import mode

Rule = Literal["sign", "rmsprop", "adam"]
MOMENTUM: dict[Rule, float] = {"sign": 0.0, "rmsprop": 0.0, "adam": 0.9}
DECAY, TINY = 0.99, 1e-12  # of the mean squared gradient, and what keeps a zero gradient from being divided by zero


def ascend(
    step: Step, spec: InnerSpec, rule: Rule, objective: Callable[[Tensor], Tensor], x: Tensor, delta: Tensor
) -> Tensor:
    """``x + delta`` ``[N,...]`` after ``spec.steps`` steps up ``objective`` (logits to values ``[N]``), detached.

    Of ``spec``, steps, alpha and eps count. ``rmsprop`` divides the gradient by its root mean square so far and
    ``adam`` its mean too, both corrected for their start, so that a first step is a sign step. In the other norms than
    Linf that direction is scaled to length one. The network is in eval mode; its parameters keep their ``.grad``.
    """
    threat = step.threat.scaled(spec.eps)
    project, rate = threat.projector(x), spec.alpha * step.threat.radius
    delta = project(delta)
    mean, square, momentum = torch.zeros_like(x), torch.zeros_like(x), MOMENTUM[rule]
    graphed = step.graphed  # what is differentiated here is no part of the loss's graph
    with mode(step.module, "eval"):
        for number in range(1, spec.steps + 1):
            leaf = (x + delta).requires_grad_(True)
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(objective(step.forward(leaf)).sum(), leaf)
            step.passes.backward += len(x)
            mean, square = momentum * mean + (1 - momentum) * grad, DECAY * square + (1 - DECAY) * grad.square()
            size = (square / (1 - DECAY**number)).sqrt() + TINY
            move = grad if rule == "sign" else mean / (1 - momentum**number) / size
            if rule == "sign" or threat.norm != "Linf":
                move = threat.ascent(move)
            delta = project(delta + rate * move)
    step.graphed = graphed
    return (x + delta).clamp(0, 1)
