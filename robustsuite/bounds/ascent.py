"""What a backward pass may choose freely, every choice giving a bound, and the search for better choices."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

_RATE, _DECAY = 0.1, 0.98


@dataclass
class Choices:
    """By the name of an activation's operator, tensors shaped like the rows that meet it, ``[M, *shape]``.

    `slopes`: of the lower lines of unstable units; missing ones are added, as the default lines have them. `splits`
    (int8): 1 where a unit is assumed to be active, -1 where inactive, 0 elsewhere. `betas` (>= 0): multipliers of these
    assumptions (Wang et al. 2021, beta-CROWN, arXiv:2103.06624). `met`: where not None, gathers the coefficients that
    the rows had over each unit. `least`: gathers the smallest slope that each operator's lower lines may have.
    """

    slopes: dict[str, Tensor] = field(default_factory=dict)
    splits: dict[str, Tensor] = field(default_factory=dict)
    betas: dict[str, Tensor] = field(default_factory=dict)
    met: dict[str, Tensor] | None = None
    least: dict[str, float] = field(default_factory=dict)

    def of(self, owner: Tensor, weight: Tensor) -> "Choices":
        """Those of some rows (index ``owner``) that are multiplied by ``weight``, which their multipliers are too."""
        slopes, splits = ({k: v[owner] for k, v in part.items()} for part in (self.slopes, self.splits))
        betas = {k: v[owner] * weight.view(-1, *[1] * (v.ndim - 1)) for k, v in self.betas.items()}
        return Choices(slopes, splits, betas)


def ascend(lowest: Callable[[Choices], Tensor], choices: Choices, steps: int) -> Tensor:
    """The best of the bounds ``lowest(choices)`` ``[M]`` met in ``steps`` steps of gradient ascent (Adam).

    Xu et al. 2021, alpha-CROWN, arXiv:2011.13824: rate 0.1, 2 % less after each step. Slopes stay between their
    least and 1, multipliers at or above 0; both are projected as data, because a clamp inside of the graph has no
    gradient at its ends, where slopes start. ``choices`` holds the last ones when it returns.
    """
    leaves = {**choices.slopes, **{f"beta {name}": beta for name, beta in choices.betas.items()}}
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    choices.slopes = {name: leaves[name] for name in choices.slopes}
    choices.betas = {name: leaves[f"beta {name}"] for name in choices.betas}
    ascent = torch.optim.Adam(list(leaves.values()) or [torch.zeros(0)], lr=_RATE, maximize=True)
    best: list[Tensor] = []
    for _ in range(steps if leaves else 0):
        with torch.enable_grad():
            found = lowest(choices)
            grads = torch.autograd.grad(found.sum(), list(leaves.values()), allow_unused=True)
        best = [_better(found.detach(), *best)]
        for leaf, grad in zip(leaves.values(), grads, strict=True):
            leaf.grad = grad
        ascent.step()
        ascent.param_groups[0]["lr"] *= _DECAY
        with torch.no_grad():
            for name, leaf in choices.slopes.items():
                leaf.clamp_(choices.least[name], 1.0)
            for leaf in choices.betas.values():
                leaf.clamp_(min=0.0)
    for chosen in (choices.slopes, choices.betas):
        chosen.update({name: leaf.detach() for name, leaf in chosen.items()})
    with torch.no_grad():
        return _better(lowest(choices), *best)


def _better(found: Tensor, *best: Tensor) -> Tensor:
    """The larger of two bounds; one that is not a number is none."""
    sound = found.nan_to_num(float("-inf"), posinf=float("inf"))
    return sound.maximum(*best) if best else sound
