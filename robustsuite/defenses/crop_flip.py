"""Random crops and flips, on the device that trains."""

from dataclasses import dataclass

import torch
from torch import nn

from robustsuite.defenses.base import Step, StepMethod
from robustsuite.errors import UsageError
from robustsuite.noise import Noise
from robustsuite.registry import register_defense


@register_defense(
    "crop_flip",
    kind="modifier",
    paper="He et al. 2016, arXiv:1512.03385, section 4.2",
    cost="0 passes",
    defaults={"cifar10": {"pad": 4}, "cifar100": {"pad": 4}, "svhn": {"pad": 4, "flip": False}},
)
@dataclass(frozen=True)
class CropFlip(StepMethod):
    """A random crop of the image padded with zeros, and a horizontal flip with probability 1/2.

    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016), for CIFAR-10, and every recipe
    since. `pad`: pixels on each side (4); `flip`: whether to flip, which digits do not stand. Drawn for each example
    and epoch: the replays of a batch see the same images. Raises `UsageError` for anything but ``[B,C,H,W]``.
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise UsageError(f"crop_flip needs pad >= 0, got {self.pad}.")

    def data(self, step: Step) -> None:
        """Other images, same labels."""
        x = step.x
        if x.ndim != 4:
            raise UsageError(f"crop_flip crops images [B,C,H,W], got a batch {list(x.shape)}; leave it out.")
        # by epoch, not by step: a replayed batch is one batch
        noise = Noise(step.noise.noise.seed, "train/crop_flip").at(step.noise.ids)
        corner = noise.integers(2 * self.pad + 1, (2,), draw=step.epoch)
        rows = corner[:, :1] + torch.arange(x.shape[2], device=x.device)
        columns = corner[:, 1:] + torch.arange(x.shape[3], device=x.device)
        if self.flip:
            mirrored = noise.child("flip").integers(2, (1,), draw=step.epoch) == 1
            columns = columns.flip(1).where(mirrored, columns)
        padded = nn.functional.pad(x, (self.pad,) * 4)
        tall = padded.gather(2, rows.view(len(x), 1, -1, 1).expand(-1, x.shape[1], -1, padded.shape[3]))
        cropped = tall.gather(3, columns.view(len(x), 1, 1, -1).expand(-1, x.shape[1], x.shape[2], -1))
        step.rebatch(x=torch.empty_like(x).copy_(cropped))
