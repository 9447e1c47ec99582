"""Perceptually aligned gradients (PAG): input gradients that point at images of the class, without any attack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.defenses.directions import misalignment
from robustsuite.defenses.extra_data import Extra
from robustsuite.defenses.losses import ce
from robustsuite.errors import UsageError
from robustsuite.registry import register_defense

SOURCES = ("class_mean", "one_image", "nearest")


@register_defense(
    "pag",
    kind="step",
    paper="Ganz, Kawar, Elad 2023, arXiv:2207.11378, eq. 6",
    cost="1 pass, and 2 backward passes a target class",
    fidelity="authors' code",
    defaults={"cifar10": {"weight": 15.0}},
)
@dataclass(frozen=True)
class PAG(StepMethod):
    """``CE(f(x), y) + weight mean_t (1 - cos(grad_x log p_t(x), g_t(x)))`` over target classes t; there is no attack.

    Ganz, Kawar, Elad, "Do Perceptually Aligned Gradients Imply Robustness?" (ICML 2023). g_t(x) points from x to an
    image of class t, which `source` names: ``class_mean`` (their CM), ``one_image`` (OI: here the training image
    nearest to the mean), or ``nearest`` (NN: the training image of the class nearest to x; of its own class that is x
    itself, which asks for nothing). Their best gradients, those of a diffusion model, are not offered. `targets`: so
    many classes for each example, drawn anew in each step; 0 takes all. `weight`: 15 in their configuration
    (1.5 times a fixed 10), for two thirds of it in the first half if they so choose.

    Gradients are taken at the images as the data slot leaves them, and in the pass that the cross-entropy comes from;
    their code makes a pass of its own, and differentiates through the augmentation. A class without images, and a pair
    in which one side is zero, ask for nothing.
    """

    weight: float = 15.0
    source: Literal["class_mean", "one_image", "nearest"] = "class_mean"
    targets: int = 0
    second_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weight < 0 or self.targets < 0 or self.source not in SOURCES:
            raise UsageError(f"pag needs weight and targets >= 0 and a source of {', '.join(SOURCES)}, got {self}.")

    def setup(self, context: Context) -> None:
        """The images that gradients shall point at."""
        if self.weight == 0:
            return
        order = context.data.y.argsort(stable=True)
        x, y = context.data.x[order], context.data.y[order]
        if self.source == "nearest":
            context.add("pag", Extra(x, y))
            return
        sizes = y.bincount(minlength=context.num_classes)
        means = torch.stack([part.sum(0) for part in x.split(sizes.tolist())]) / sizes.clamp(min=1).view(-1, 1, 1, 1)
        if self.source == "one_image":
            means = x[neighbours(means, x, sizes).diagonal()]
        context.memory.update(images=means.to(context.device), sizes=sizes.to(context.device))

    def terms(self, step: Step) -> Mapping[str, Term]:
        """Cross-entropy, and what gradients lack to point at their images."""
        if self.weight == 0:
            return {"ce": Term(ce(step.logits("clean"), step.q))}
        leaf = step.x.detach().requires_grad_(True)
        logits = step.forward(leaf)
        log_p, goals, targets = logits.log_softmax(1), self._goals(step), self._targets(step)
        lacking = torch.zeros_like(log_p[:, 0])
        for target in targets.unbind(1):
            chosen = log_p.gather(1, target.unsqueeze(1)).sum()
            (grad,) = torch.autograd.grad(chosen, leaf, create_graph=True)
            step.passes.backward += len(leaf)
            step.graphed += len(leaf)  # each is differentiated once more
            lacking = lacking + misalignment(grad, goals[torch.arange(len(leaf), device=leaf.device), target])
        return {"ce": Term(ce(logits, step.q)), "pag": Term(lacking / targets.shape[1], self.weight)}

    def _targets(self, step: Step) -> Tensor:
        """Classes int64 ``[B,T]``, none of them twice."""
        keys = step.noise.child("pag").uniform((step.num_classes,))
        return keys.argsort(1)[:, : self.targets or None]

    def _goals(self, step: Step) -> Tensor:
        """``g_t(x)`` for every class, ``[B,K,C,H,W]``; 0 for a class without images."""
        if self.source == "nearest":
            pool = step.aux["pag"]
            assert isinstance(pool, Extra)
            sizes = pool.y.bincount(minlength=step.num_classes)
            images = pool.x[neighbours(step.x, pool.x, sizes)]
        else:
            images, sizes = step.memory["images"].unsqueeze(0), step.memory["sizes"]
        there = (sizes > 0).view(1, -1, 1, 1, 1)
        return (images - step.x.unsqueeze(1)).masked_fill(~there, 0)


def neighbours(x: Tensor, pool: Tensor, sizes: Tensor) -> Tensor:
    """Positions int64 ``[B,K]`` in ``pool`` of each class's image nearest to each x, in the L2 norm.

    ``pool`` holds ``sizes`` images of each class, one class after the other. An empty class gives some position.
    """
    distances = torch.cdist(x.flatten(1), pool.flatten(1))
    found, start = [], 0
    for size in sizes.tolist():
        part = distances[:, start : start + size]
        found.append(start + part.argmin(1) if size else torch.zeros_like(distances[:, 0], dtype=torch.int64))
        start += size
    return torch.stack(found, 1)
