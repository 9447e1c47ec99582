"""JPEG compression."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.bpda import check_surrogate, transformed
from robustsuite.models.classifier import Classifier
from robustsuite.models.soft_jpeg import CHROMA, SoftJPEG
from robustsuite.registry import register_defense


@register_defense("jpeg", kind="wrap", paper="Guo et al. 2018, arXiv:1711.00117", cost="1 pass")
@dataclass(frozen=True)
class JPEG(WrapMethod):
    """Compress and decompress every image with libjpeg (through Pillow).

    Dziugaite, Ghahramani, Roy (2016, arXiv:1608.00853); Guo, Rana, Cisse, van der Maaten (ICLR 2018), with ``quality``
    75; broken by Athalye, Carlini, Wagner (ICML 2018). ``chroma`` is 4:2:0 (colours at half the resolution, what
    Pillow does by default) or 4:4:4. ``surrogate`` is what the gradient goes through: ``identity``; ``soft``, JPEG with
    a cubic in place of the rounding (Shin and Song 2017); or ``exact``, the true gradient, which is zero.
    """

    quality: int = 75
    chroma: str = "4:2:0"
    surrogate: str = "identity"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UsageError(f"quality must lie between 1 and 100, got {self.quality}.")
        if self.chroma not in CHROMA:
            raise UsageError(f"chroma must be {' or '.join(CHROMA)}, got '{self.chroma}'.")
        check_surrogate(self.surrogate, soft=True)

    def wrap(self, model: Classifier) -> Classifier:
        """A plain classifier behind the codec; raises `UsageError` for images that are neither grey nor RGB."""
        if len(model.input_shape) != 3 or model.input_shape[0] not in (1, 3):
            raise UsageError(f"jpeg is for grey or RGB images [1 or 3,H,W], got {list(model.input_shape)}.")
        soft = SoftJPEG(self.quality, self.chroma)
        return transformed(model, Codec(self.quality, self.chroma), self.surrogate, soft=soft, exact="none")


class Codec(nn.Module):
    """Real JPEG files in memory; their gradient is zero."""

    def __init__(self, quality: int, chroma: str) -> None:
        super().__init__()
        self.quality, self.chroma = quality, chroma

    def forward(self, x: Tensor) -> Tensor:
        """``[N,C,H,W]`` in [0,1], rounded to 8 bits and coded; the same shape, device and type."""
        pixels = (x.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, 3).cpu().numpy()
        decoded = np.stack([self._through_file(image) for image in pixels])
        values = torch.from_numpy(decoded).movedim(3, 1).to(x) / 255
        return values + 0 * x  # autograd then finds the gradient that this really has

    def _through_file(self, image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        grey = image.shape[2] == 1
        made = Image.fromarray(image[:, :, 0] if grey else image)
        made.save(file, "JPEG", quality=self.quality, subsampling=CHROMA[self.chroma])
        with Image.open(file) as opened:
            return np.asarray(opened).reshape(image.shape)
