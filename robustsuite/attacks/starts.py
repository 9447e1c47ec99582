"""Where attacks start: the ball in float32, and random points of it."""

from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from robustsuite.noise import ExampleNoise
from robustsuite.threat import Eps, ThreatModel

# Adding delta to x moves a pixel by at most half a unit in the last place below 1.
_ROUNDING = 2.0**-25


@lru_cache(maxsize=64)
def within(threat: ThreatModel, pixels: int) -> ThreatModel:
    """The ball that `x + delta` cannot leave by rounding to float32: a few millionths smaller for L2 and L1.

    A pixel's rounding error is below 2^-25, which the slack of `ThreatModel.contains` covers for Linf. Over all pixels
    the errors may add up to more than that slack. A very small eps gives up a thousandth at most.
    """
    if threat.norm == "Linf":
        return threat
    rounding = _ROUNDING * (pixels if threat.norm == "L1" else pixels**0.5)
    return ThreatModel(threat.norm, Eps(Fraction(max(threat.radius - rounding, 0.999 * threat.radius))))


def inside(x: Tensor, threat: ThreatModel, noise: ExampleNoise, draw: Tensor) -> Tensor:
    """Random points ``[N,...]`` of the ball, projected onto the box.

    Linf: uniform in the cube. L2: uniform direction, and uniform radius up to eps. L1: uniform in the cross-polytope
    (signed exponentials over a sum with one more of them).
    """
    shape = x.shape[1:]
    if threat.norm == "Linf":
        return x + threat.project(x, noise.uniform(shape, draw).mul_(2).sub_(1).mul_(threat.radius))
    if threat.norm == "L2":
        radius = noise.child("radius").uniform((1,), draw) * threat.radius
        direction = threat.ascent(noise.normal(shape, draw))
        return x + threat.project(x, direction * radius.view(-1, *[1] * len(shape)))
    parts = -torch.log1p(-noise.uniform((shape.numel() + 1,), draw))
    share = (parts / parts.sum(1, keepdim=True))[:, :-1].view_as(x) * threat.radius
    return x + threat.project(x, share * noise.child("signs").signs(shape, draw))


def on_surface(x: Tensor, threat: ThreatModel, noise: ExampleNoise, draw: Tensor) -> Tensor:
    """Random points ``[N,...]`` at distance eps, then clipped to the box: where AutoAttack's APGD starts.

    Linf: a uniform point of the cube, blown up until it touches a face; L2: a uniform direction; L1: white noise,
    projected onto ball and box together.
    """
    if threat.norm == "L1":
        return (x + threat.project(x, noise.normal(x.shape[1:], draw))).clamp_(0, 1)
    if threat.norm == "Linf":
        delta = noise.uniform(x.shape[1:], draw).mul_(2).sub_(1)
        largest = delta.flatten(1).abs().amax(1).clamp(min=1e-12)
        delta = delta / largest.view(-1, *[1] * (x.ndim - 1))
    else:
        delta = threat.ascent(noise.normal(x.shape[1:], draw))
    return (x + threat.radius * delta).clamp_(0, 1)
