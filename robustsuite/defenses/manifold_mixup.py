"""Manifold mixup: hidden states are mixed, and labels with them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustsuite.defenses.base import Step, StepMethod
from robustsuite.defenses.context import Context
from robustsuite.defenses.mixup import beta_share, check_concentration, mix, mixed_labels, partners
from robustsuite.errors import UsageError
from robustsuite.models.hooks import check_layers, hooked, weighted_layers
from robustsuite.registry import register_defense

INPUT = "input"


@register_defense(
    "manifold_mixup",
    kind="modifier",
    paper="Verma et al. 2019, arXiv:1806.05236",
    cost="0 passes",
    defaults={"cifar10": {"concentration": 2.0}},
)
@dataclass(frozen=True)
class ManifoldMixup(StepMethod):
    """Mixup of the output of one layer, drawn anew in every step; at the input it is mixup.

    Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio, "Manifold Mixup: Better Representations by
    Interpolating Hidden States" (ICML 2019). `layers` to draw from, as ``named_modules`` calls them, or ``input``; they
    must lie on the trunk, not in a residual branch. Empty: the input and the first two parts of the network that hold
    weights (the paper: the input and the first two stages of a ResNet). `concentration` of Beta(c, c): 2 for CIFAR, 0
    turns it off. The mixing network is also the one that an inner maximisation attacks. Compiled networks run
    uncompiled in the steps that mix a hidden layer.
    """

    concentration: float = 2.0
    layers: tuple[str, ...] = ()
    batch_coupled: ClassVar[bool] = True
    base: ClassVar[str] = "standard"

    def __post_init__(self) -> None:
        check_concentration("manifold_mixup", self.concentration)
        if isinstance(self.layers, str):
            raise UsageError(f"layers must be a list of names, got '{self.layers}'.")
        object.__setattr__(self, "layers", tuple(self.layers))

    def setup(self, context: Context) -> None:
        """Check the layers' names."""
        check_layers(context.module, [name for name in self.layers if name != INPUT])

    def data(self, step: Step) -> None:
        """Mix the labels, and the images or what the step's layer gives."""
        share, partner = beta_share(step, self.concentration), partners(step.noise)
        names = self.layers or (INPUT, *first_parts(step.module))
        first = torch.zeros(1, dtype=torch.int64)
        layer = names[int(step.noise.noise.child("manifold_mixup").at(first).integers(len(names)))]
        y, q = mixed_labels(step, share, partner)
        if layer == INPUT:
            step.rebatch(x=mix(step.x, share, partner), y=y, q=q)
        else:
            step.rebatch(y=y, q=q)
            step.compiled = Mixing(step.module, layer, share, partner)


@dataclass(frozen=True)
class Mixing:
    """The forward pass of ``module`` with the output of ``layer`` mixed, in each batch of so many examples apart."""

    module: nn.Module
    layer: str
    share: float
    partner: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of images ``[m B,C,H,W]``."""
        with hooked(self.module, [self.layer], self._mixed):
            return self.module(x)

    def _mixed(self, name: str, hidden: Tensor) -> Tensor:
        del name
        views = hidden.split(len(self.partner))
        return torch.cat([mix(view, self.share, self.partner) for view in views])


def first_parts(module: nn.Module) -> list[str]:
    """Names of the first two children with weights, the last of all left out."""
    return [name for name, part in module.named_children() if weighted_layers(part)][:-1][:2]
