"""The inner maximisation that a step method asks for: projected steepest ascent on a loss per example.

The registry's `pgd` attacks a classifier's decision and stops on what it fooled; here any loss is maximised to the end,
on a module whose parameters are being trained. The geometry is the threat model's in both.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from robustsuite.defenses.losses import ce, kl
from robustsuite.defenses.step import InnerSpec, Objective, Step
from robustsuite.models.modes import frozen, mode
from robustsuite.noise import ExampleNoise
from robustsuite.threat import Eps, ThreatModel

GAUSS_SCALE = 1e-3  # the start of TRADES: anything but zero, far inside every ball


def maximise(step: Step, spec: InnerSpec, x: Tensor, q: Tensor) -> Tensor:
    """``x_adv`` shaped like ``x``, detached, in ball and box.

    Only the input is differentiated: parameters keep their ``.grad``, and in ``eval`` and ``train_frozen`` mode
    every buffer too. The start is keyed by seed, step, example and ``spec.draw``.
    """
    threat = step.threat.scaled(spec.eps)
    alpha = spec.alpha * step.threat.radius * (-1 if spec.descend else 1)
    room = threat if spec.project else ThreatModel("Linf", Eps.parse("1"))
    project = room.projector(x)
    delta = project(start(spec, x, step.threat.scaled(spec.eps * spec.init_eps), step.noise.child("inner")))
    label = q.argmax(1)
    kappa = torch.zeros_like(label)
    left = torch.full_like(label, spec.patience if spec.patience is not None else spec.steps)
    module = step.module if spec.target is None else spec.target
    # A compiled module would be compiled again for frozen parameters
    quick = nullcontext() if step.compiled else frozen(module)
    with mode(module, spec.bn_mode), quick:
        objective = _objective(step, spec, x, q, module)
        for _ in range(spec.steps):
            leaf = (x + delta).requires_grad_(True)
            with torch.enable_grad():
                logits = step.forward(leaf, module)
                (grad,) = torch.autograd.grad(objective(logits).sum(), leaf)
            step.passes.backward += x.shape[0]
            if threat.norm == "L1":  # whose ascent moves one pixel: let it be one that the box lets move
                grad = grad.masked_fill(torch.where(grad * alpha > 0, leaf >= 1, leaf <= 0), 0)
            moved = project(delta + alpha * threat.ascent(grad))
            if spec.count or spec.patience is not None:
                right = logits.detach().argmax(1) == label
                kappa += right
                if spec.patience is not None:
                    moved = moved.where((right | (left > 0)).view(-1, *[1] * (x.ndim - 1)), delta)
                    left -= (~right).long()
            delta = moved
    if spec.count:
        step.trace["kappa"] = kappa
    return (x + delta).clamp(0, 1)


def start(spec: InnerSpec, x: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
    """The first delta: uniform in the Linf cube, a random direction with a uniform length in the other balls."""
    shape = x.shape[1:]
    if spec.init == "zero":
        return torch.zeros_like(x)
    if spec.init == "gauss":
        return GAUSS_SCALE * noise.normal(shape, spec.draw)
    if threat.norm == "Linf":
        return threat.radius * (2 * noise.uniform(shape, spec.draw) - 1)
    direction = noise.normal(shape, spec.draw)
    length = threat.radius * noise.child("length").uniform((), spec.draw) / threat.norms(direction).float()
    return direction * length.view(-1, *[1] * len(shape))


def _objective(step: Step, spec: InnerSpec, x: Tensor, q: Tensor, module: nn.Module) -> Objective:
    if callable(spec.loss):
        return spec.loss
    if spec.loss == "ce":
        return lambda logits: ce(logits, q)
    with torch.no_grad():
        clean = step.forward(x, module)
    return lambda logits: kl(clean, logits)
