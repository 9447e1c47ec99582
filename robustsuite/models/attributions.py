"""Attributions: what each input contributes to a logit, by the gradient there or integrated from a black image."""

from collections.abc import Callable

import torch
from torch import Tensor

LabelGradient = Callable[[Tensor, Tensor], Tensor]
"""``(x, y)`` to the gradient of each row's logit ``y`` at ``x``, shaped like ``x``."""


def label_gradient(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The gradient of each row's logit ``y`` (int64 ``[N]``) at ``x``, differentiable in ``x`` and in the parameters.

    The simple gradient of Simonyan, Vedaldi, Zisserman (2013). ``logits`` must keep rows apart.
    """
    leaf = x if x.requires_grad else x.detach().requires_grad_(True)
    chosen = logits(leaf).gather(1, y.unsqueeze(1)).sum()
    (grad,) = torch.autograd.grad(chosen, leaf, create_graph=True)
    return grad


def integrated_gradients(gradient: LabelGradient, x: Tensor, y: Tensor, points: int) -> Tensor:
    """``x * mean_s grad z_y(x s/S)`` over s = 1..S, shaped like ``x``; differentiable in whatever ``gradient`` is.

    Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks" (ICML 2017), eq. 3 with a black baseline.
    ``gradient`` is asked once, for all points of the path.
    """
    shares = torch.arange(1, points + 1, device=x.device).to(x.dtype) / points
    path = (shares.view(-1, *[1] * x.ndim) * x).flatten(0, 1)
    return x * gradient(path, y.repeat(points)).view(points, *x.shape).mean(0)
