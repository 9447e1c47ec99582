"""Random resizing and padding."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.bpda import check_surrogate, transformed
from robustsuite.models.classifier import Classifier
from robustsuite.models.keyed import Draws, KeyedClassifier
from robustsuite.models.resampling import resample, whole
from robustsuite.registry import register_defense


@register_defense("resize_pad", kind="wrap", paper="Xie et al. 2018, arXiv:1711.01991", cost="1 pass")
@dataclass(frozen=True)
class ResizePad(WrapMethod):
    """Each image, in each pass, resized to a random size and put at a random place of an otherwise black canvas.

    Xie, Wang, Zhang, Ren, Yuille, "Mitigating Adversarial Effects Through Randomization" (ICLR 2018); broken by
    expectation over transformation (Athalye, Carlini, Wagner, ICML 2018). Sizes run from ``low`` to ``high`` times the
    image's, uniformly; the canvas has the largest of them, and at least the image's own: beyond ``high`` 1 (the paper:
    299 to 330 pixels on 331, that is 1 to 1.107) the network must take larger images. Resizing is bilinear.
    ``surrogate``: ``exact``, or ``identity`` where the canvas is as large as the image. ``eot`` draws make an
    evaluation by an attack, ``draws`` a verdict.
    """

    low: float = 0.8
    high: float = 1.0
    surrogate: str = "exact"
    eot: int = 20
    draws: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise UsageError(f"resize_pad needs 0 < low <= high, got {self.low} and {self.high}.")
        check_surrogate(self.surrogate, soft=False)
        if self.surrogate == "identity" and self.high > 1:
            raise UsageError("resize_pad changes the size where high > 1: the gradient cannot go through 'identity'.")

    def wrap(self, model: Classifier) -> Classifier:
        """A randomised classifier; raises `UsageError` where no size is between ``low`` and ``high``."""
        source = Draws()
        module = RandomResizePad(self.low, self.high, source)
        for extent in model.input_shape[1:]:
            module.sizes(extent)
        return KeyedClassifier(transformed(model, module, self.surrogate), source, eot=self.eot, draws=self.draws)


class RandomResizePad(nn.Module):
    """One size and place for each row, the same relative size along both axes."""

    def __init__(self, low: float, high: float, source: Draws) -> None:
        super().__init__()
        self.low, self.high, self.source = low, high, source

    def forward(self, x: Tensor) -> Tensor:
        """``[N,C,H,W]`` to the canvas, ``[N,C,H',W']``."""
        noise = self.source.rows(x)
        places, size = [], []
        for axis, extent in enumerate(x.shape[2:]):
            least, most = self.sizes(extent)
            canvas = max(most, extent)
            length = least + noise.child("size").integers(most - least + 1)  # the same bits for both axes
            start = noise.child(f"place/{axis}").integers(canvas - length + 1)
            places.append((start, length))
            size.append(canvas)
        (top, height), (left, width) = places
        return resample(x, whole(x), torch.stack([top, left, height, width], 1), (size[0], size[1]))

    def sizes(self, extent: int) -> tuple[int, int]:
        """The smallest and the largest size in pixels; raises `UsageError` when there is none."""
        least, most = math.ceil(self.low * extent - 1e-9), math.floor(self.high * extent + 1e-9)
        if least > most:
            raise UsageError(
                f"resize_pad knows no whole size between {self.low} and {self.high} times {extent} pixels; widen it."
            )
        return max(least, 1), most
