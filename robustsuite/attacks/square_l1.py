"""The proposals of the Square attack for L1: mass that moves between windows, kept in ball and box exactly."""

import torch
from torch import Tensor

from robustsuite.attacks.l1_ball import project
from robustsuite.attacks.square_windows import SIGNS, Schedule, bumps_at, tiles, windows
from robustsuite.noise import ExampleNoise
from robustsuite.threat import ThreatModel


def start(x: Tensor, lane: Tensor, threat: ThreatModel, noise: ExampleNoise) -> Tensor:
    """A grid of patterns of norm 1 in each channel, cut down to the ball (not scaled: their peaks remain)."""
    return _inside(x, tiles(x, lane, "L1", noise), threat)


def move_mass(x: Tensor, x_best: Tensor, plan: Tensor, schedule: Schedule, threat: ThreatModel) -> Tensor:
    """Empty one window, and put its mass and what is left of the budget into another, shaped as two bumps.

    As in AutoAttack's code, a channel's mass is multiplied by the number of channels, so that channels compete for
    the budget in the projection. Source: Croce and Hein 2021, arXiv:2103.01208, section 5.
    """
    _, channels, height, width = x.shape
    to, taken = windows(plan, schedule, height, width, 2)
    delta = x_best - x
    size = delta.abs()
    unspent = (threat.radius - size.sum((1, 2, 3), keepdim=True)).clamp_(min=0)
    mass = unspent + size.mul_(to.maximum(taken)).sum((2, 3), keepdim=True) * channels
    here = delta * to
    new = here.div_(_length(here)).add_(bumps_at(plan, schedule, height, width) * to * plan[:, SIGNS:, None, None])
    new = new.mul_(mass / _length(new))
    return _inside(x, torch.lerp(delta.mul_(1 - taken), new, to), threat)


def _length(delta: Tensor) -> Tensor:
    return delta.abs().sum((2, 3), keepdim=True).clamp_(min=1e-12)


def _inside(x: Tensor, delta: Tensor, threat: ThreatModel) -> Tensor:
    return project(x, delta, x.new_full((x.shape[0],), threat.radius)).add_(x).clamp_(0, 1)
