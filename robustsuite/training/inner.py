"""The inner maximisation that a step method asks for: projected steepest ascent on a loss per example.

The registry's `pgd` attacks a classifier's decision and stops on what it fooled; here any loss is maximised to the end,
on a module whose parameters are being trained. The geometry is the threat model's in both.
"""

import torch
from torch import Tensor

from robustsuite.defenses.base import InnerSpec, Step
from robustsuite.defenses.losses import ce, kl
from robustsuite.noise import ExampleNoise
from robustsuite.threat import Eps, ThreatModel
from robustsuite.training.modes import mode

GAUSS_SCALE = 1e-3  # the start of TRADES: anything but zero, far inside every ball


def maximise(step: Step, spec: InnerSpec) -> Tensor:
    """``x_adv`` shaped like ``step.x``, detached, in ball and box.

    Only the input is differentiated: parameters keep their ``.grad``, and in ``eval`` and ``train_frozen`` mode
    every buffer too. The start is keyed by seed, step, example and ``spec.draw``.
    """
    threat = ThreatModel(step.threat.norm, Eps(step.threat.eps.fraction * Eps.parse(spec.eps).fraction))
    alpha = spec.alpha * step.threat.radius
    x = step.x
    delta = threat.project(x, start(spec, x, threat, step.noise.child("inner")))
    with mode(step.module, spec.bn_mode):
        clean = _clean_logits(step) if spec.loss == "kl" else None
        for _ in range(spec.steps):
            leaf = (x + delta).requires_grad_(True)
            with torch.enable_grad():
                logits = step.forward(leaf)
                losses = ce(logits, step.q) if clean is None else kl(clean, logits)
                (grad,) = torch.autograd.grad(losses.sum(), leaf)
            step.passes.backward += x.shape[0]
            if threat.norm == "L1":  # whose ascent moves one pixel: let it be one that the box lets move
                grad = grad.masked_fill(torch.where(grad > 0, leaf >= 1, leaf <= 0), 0)
            delta = threat.project(x, delta + alpha * threat.ascent(grad))
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


def _clean_logits(step: Step) -> Tensor:
    with torch.no_grad():
        return step.forward(step.x)
