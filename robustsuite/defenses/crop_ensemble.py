"""An ensemble of random crops."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustsuite.defenses.base import WrapMethod
from robustsuite.errors import UsageError
from robustsuite.models.averaged import plain_network
from robustsuite.models.bpda import BPDA, around, check_surrogate
from robustsuite.models.classifier import Classifier
from robustsuite.models.keyed import Draws, KeyedClassifier
from robustsuite.models.resampling import resample, whole
from robustsuite.registry import register_defense


@register_defense("crop_ensemble", kind="wrap", paper="Guo et al. 2018, arXiv:1711.00117", cost="crops passes")
@dataclass(frozen=True)
class CropEnsemble(WrapMethod):
    """The mean prediction over ``crops`` random windows, each resized to the whole image.

    Guo, Rana, Cisse, van der Maaten, "Countering Adversarial Images Using Input Transformations" (ICLR 2018): 30 crops
    of 90 of 224 pixels; broken by expectation over transformation (Athalye, Carlini, Wagner, ICML 2018). ``share`` is
    a window's side in units of the image's. ``surrogate``: ``exact``, or ``identity`` (as if all crops were the whole
    image). ``eot`` draws of all crops make an evaluation by an attack, ``draws`` a verdict.
    """

    share: float = 0.9
    crops: int = 30
    surrogate: str = "exact"
    eot: int = 2
    draws: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.crops < 1:
            raise UsageError(f"crop_ensemble needs 0 < share <= 1 and crops >= 1, got {self.share} and {self.crops}.")
        check_surrogate(self.surrogate, soft=False)

    def wrap(self, model: Classifier) -> Classifier:
        """A randomised classifier; raises `UsageError` when ``model`` is wrapped already."""
        plain_network(model)
        source = Draws()
        crop: nn.Module = RandomCrops(self.share, self.crops, source)
        if self.surrogate == "identity":
            crop = BPDA(crop, Repeated(self.crops))
        module = Ensemble(crop, model.module, self.crops)
        made = around(model, module, "full" if self.surrogate == "exact" else "surrogate")
        return KeyedClassifier(made, source, eot=self.eot, draws=self.draws, passes_per_draw=self.crops)


class RandomCrops(nn.Module):
    """``crops`` windows of each image at places of their own, in the size of the image."""

    def __init__(self, share: float, crops: int, source: Draws) -> None:
        super().__init__()
        self.share, self.crops, self.source = share, crops, source

    def forward(self, x: Tensor) -> Tensor:
        """``[N,C,H,W]`` to ``[N * crops,C,H,W]``, the crops of an image one after the other."""
        noise, window = self.source.rows(x), []
        for axis, extent in enumerate(x.shape[2:]):
            side = max(1, round(self.share * extent))
            start = noise.child(f"place/{axis}").integers(extent - side + 1, (self.crops,)).flatten()
            window += [start, torch.full_like(start, side)]
        many = x.repeat_interleave(self.crops, 0)
        chosen = torch.stack([window[0], window[2], window[1], window[3]], 1)
        return resample(many, chosen, whole(many), (x.shape[2], x.shape[3]))


class Repeated(nn.Module):
    """Every image ``times`` times, one after the other."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        """``[N,C,H,W]`` to ``[N * times,C,H,W]``."""
        return x.repeat_interleave(self.times, 0)


class Ensemble(nn.Module):
    """Log of the mean softmax over the crops of an image."""

    def __init__(self, crop: nn.Module, network: nn.Module, crops: int) -> None:
        super().__init__()
        self.crop, self.network, self.crops = crop, network, crops

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``[N,K]``."""
        logs = self.network(self.crop(x)).log_softmax(1)
        return logs.unflatten(0, (-1, self.crops)).logsumexp(1) - math.log(self.crops)
