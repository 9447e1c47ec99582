"""Adaptive smoothing with a mixing network: the weight of the robust network is told from both networks' features."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.errors import InputError
from robustsuite.models.checkpoint import StateFile
from robustsuite.models.hooks import check_layers, hooked
from robustsuite.models.loading import load_into

_CLAMP = 0.6


class MixingNetwork(nn.Module):
    """gamma ``[N]`` from features ``[N,C_i,H_i,W_i]`` or ``[N,C_i]``: positive where an image looks attacked.

    Bai et al. (2024) read two stages of each network with a small ResNet; this head is smaller: features are projected
    to ``width`` channels, averaged down to the coarsest of their grids and added up, then convolved once more and
    pooled. gamma is normalised by running statistics; in training it is first cut off at 0.6 standard deviations around
    its mean, as in their code.
    """

    def __init__(self, channels: Sequence[int], width: int = 16) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.body = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.out = nn.Linear(width, 1, bias=False)
        self.norm = nn.BatchNorm1d(1, affine=False, momentum=0.01)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """gamma ``[N]``."""
        maps = [f if f.ndim == 4 else f.flatten(1)[:, :, None, None] for f in features]
        size = min(f.shape[2] for f in maps), min(f.shape[3] for f in maps)
        parts = [F.adaptive_avg_pool2d(stem(f), size) for stem, f in zip(self.stems, maps, strict=True)]
        gamma = self.out(self.body(torch.stack(parts).sum(0)).mean((2, 3)))
        if self.training:
            mean, std = gamma.detach().mean(), gamma.detach().std()
            gamma = gamma.clamp(mean - _CLAMP * std, mean + _CLAMP * std)
        return self.norm(gamma).flatten()


class AdaptiveMixture(nn.Module):
    """``log((1 - a) softmax(standard(x)) + a softmax(robust(x)))`` with ``a = low + (high - low) sigmoid(gamma(x))``.

    ``layers`` of ``standard`` and ``robust_layers`` of ``robust`` are what the head reads. Without ``through`` no
    gradient goes through the head: attacks then take the weight for a constant.
    """

    def __init__(
        self,
        standard: nn.Module,
        robust: nn.Module,
        head: MixingNetwork,
        *,
        layers: Sequence[str],
        robust_layers: Sequence[str],
        low: float = 0.84,
        high: float = 0.99,
        through: bool = True,
    ) -> None:
        super().__init__()
        check_layers(standard, layers)
        check_layers(robust, robust_layers)
        self.standard, self.robust, self.head = standard, robust, head
        self.layers, self.robust_layers = tuple(layers), tuple(robust_layers)
        self.low, self.high, self.through = low, high, through

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities of the mixture."""
        return self.parts(x)[0]

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[N,K]`` and gamma ``[N]``."""
        features: list[Tensor] = []
        standard = _collect(self.standard, self.layers, x, features)
        robust = _collect(self.robust, self.robust_layers, x, features)
        gamma = self.head(features if self.through else [f.detach() for f in features])
        share = (self.low + (self.high - self.low) * gamma.sigmoid()).unsqueeze(1)
        logs = [w.clamp(min=1e-30).log() for w in (1 - share, share)]
        return torch.logaddexp(standard.log_softmax(1) + logs[0], robust.log_softmax(1) + logs[1]), gamma


def _collect(network: nn.Module, layers: Sequence[str], x: Tensor, features: list[Tensor]) -> Tensor:
    """The network's logits; the outputs of ``layers``, in that order, are appended to ``features``."""
    found: dict[str, Tensor] = {}
    with hooked(network, layers, lambda name, output: found.update({name: output})):
        logits = network(x)
    features += [found[name] for name in layers]
    return logits


def mixing_loss(logits: Tensor, y: Tensor, gamma: Tensor, attacked: Tensor) -> Tensor:
    """What the head is trained on, ``[N]``: ``1.5 b + 0.3 b c``, the released code's constants.

    b is the binary cross-entropy of gamma for ``attacked`` (1 where the robust network should decide), c the mixture's
    cross-entropy for the labels ``y``.
    """
    binary = F.binary_cross_entropy_with_logits(gamma, attacked.to(gamma), reduction="none")
    return 1.5 * binary + 0.3 * binary * F.cross_entropy(logits, y, reduction="none")


def mixing_network(file: StateFile, where: str) -> MixingNetwork:
    """The head whose weights a file holds; raises `InputError` when it holds something else."""
    shapes = _stems(file.state)
    if not shapes:
        raise InputError(f"{where} holds no mixing network (no tensor stems.0.weight); name the file of one.")
    head = MixingNetwork([shape[1] for shape in shapes], shapes[0][0])
    load_into(head, file.state, where)
    return head.eval().requires_grad_(False)


def _stems(state: Mapping[str, Tensor]) -> list[torch.Size]:
    found = []
    while (name := f"stems.{len(found)}.weight") in state:
        found.append(state[name].shape)
    return found
