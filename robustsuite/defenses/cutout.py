"""Cutout: a square of each image is masked."""

from dataclasses import dataclass
from typing import Literal

import torch

from robustsuite.defenses.base import Step, StepMethod
from robustsuite.defenses.context import Context
from robustsuite.errors import UsageError
from robustsuite.noise import Noise
from robustsuite.registry import register_defense


@register_defense(
    "cutout",
    kind="modifier",
    paper="DeVries, Taylor 2017, arXiv:1708.04552, section 3",
    cost="0 passes",
    defaults={"cifar10": {"size": 16}, "cifar100": {"size": 8}, "svhn": {"size": 20}},
)
@dataclass(frozen=True)
class Cutout(StepMethod):
    """One square of each image is masked, its centre uniform over the pixels, so that it may hang over the edge.

    DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017). `size`: the
    square's side in pixels: 16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN. `fill`: ``mean``, the training data's mean
    of each channel, which is the zero of the paper's normalised images; or ``zero``, black. Drawn for each example and
    epoch: the replays of a batch see the same images. Raises `UsageError` for anything but ``[B,C,H,W]``, and for
    images smaller than the square.
    """

    size: int = 16
    fill: Literal["mean", "zero"] = "mean"
    base = "standard"

    def __post_init__(self) -> None:
        if self.size < 0 or self.fill not in ("mean", "zero"):
            raise UsageError(f"cutout needs size >= 0 and fill mean or zero, got {self.size} and '{self.fill}'.")

    def setup(self, context: Context) -> None:
        """The mean of each channel, ``[C,1,1]``."""
        if self.fill == "mean" and context.data.x.ndim == 4:
            context.memory["mean"] = context.data.x.mean((0, 2, 3)).view(-1, 1, 1).to(context.device)

    def data(self, step: Step) -> None:
        """Masked images, same labels."""
        x = step.x
        if x.ndim != 4:
            raise UsageError(f"cutout masks images [B,C,H,W], got a batch {list(x.shape)}; leave it out.")
        if self.size > min(x.shape[2:]):
            raise UsageError(f"a square of {self.size} pixels masks whole images of {list(x.shape[2:])}; lower size.")
        # by epoch, not by step: a replayed batch is one batch
        noise = Noise(step.noise.noise.seed, "train/cutout").at(step.noise.ids)
        extent = torch.tensor(x.shape[2:], device=x.device)
        first = noise.integers(extent, (2,), draw=step.epoch) - self.size // 2
        rows, columns = (self._covered(first[:, axis], x.shape[2 + axis]) for axis in (0, 1))
        masked = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
        fill = step.memory["mean"] if self.fill == "mean" else x.new_zeros(())
        step.rebatch(x=fill.where(masked, x))

    def _covered(self, first: torch.Tensor, extent: int) -> torch.Tensor:
        """Which of the pixels ``0..extent-1`` lie in the square that begins at ``first`` ``[B]``, ``[B,extent]``."""
        offset = torch.arange(extent, device=first.device) - first.unsqueeze(1)
        return (offset >= 0) & (offset < self.size)
