"""The mixing network of adaptive smoothing, trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustsuite.defenses.base import FitMethod
from robustsuite.defenses.manifold_mixup import first_parts
from robustsuite.defenses.services import Fitted, Services
from robustsuite.defenses.step import InnerSpec, Step, Term
from robustsuite.errors import InputError, UsageError
from robustsuite.models.hooks import check_layers, hooked, weighted_layers
from robustsuite.models.mixing_network import AdaptiveMixture, MixingNetwork, mixing_loss
from robustsuite.models.sidecar import find_sidecar
from robustsuite.noise import fork_global
from robustsuite.registry import register_defense

PARTS = (("standard", "standard"), ("robust", "trades"))
"""The networks that are mixed, and the methods that train them where none is given."""


@register_defense(
    "adaptive_smoothing_head",
    kind="fit",
    paper="Bai et al. 2024, arXiv:2301.12554, section 5",
    cost="2 steps + 4 forward and 2 steps backward passes, and a standard and a robust training",
)
@dataclass(frozen=True)
class AdaptiveSmoothingHead(FitMethod):
    """Train the network that tells, image by image, how much of a robust and of an accurate network to mix.

    Bai, Anderson, Kim, Sojoudi, "Improving the Accuracy-Robustness Trade-Off of Classifiers via Adaptive Smoothing"
    (SIAM J. Math. Data Sci. 2024). `standard` and `robust` are checkpoints with sidecars, which stay as they are;
    without one it is trained first, as ``standard`` or ``trades``, with the same recipe. Only the head is trained, on
    each image and on what `steps` steps of `alpha` (in units of eps) find against the whole mixture, whose weight runs
    from 0 to 1 meanwhile, with the loss of `mixing_loss`: their constants, while their attack is APGD and their head is
    larger. `width` is the head's.

    The result is ``robust`` within ``adaptive_smoothing``, which has the parameters `low`, `high` and `through`. The
    head reads `standard_layers` and `robust_layers` (names of modules); by default the first two parts of each network
    that hold weights.
    """

    standard: str = ""
    robust: str = ""
    standard_layers: tuple[str, ...] = ()
    robust_layers: tuple[str, ...] = ()
    width: int = 16
    low: float = 0.84
    high: float = 0.99
    through: bool = True
    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        for name in ("standard_layers", "robust_layers"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} must be a list of names, got '{getattr(self, name)}'.")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0 <= self.low <= self.high <= 1 or self.width < 1 or min(self.steps, self.alpha) < 0:
            raise UsageError(
                f"adaptive_smoothing_head needs 0 <= low <= high <= 1, width >= 1, steps and alpha >= 0, got {self}."
            )

    def fit(self, services: Services) -> Fitted:
        """The recipe's epochs over the head's weights."""
        for name, _ in PARTS:
            _check_plain(getattr(self, name), name)
        standard, robust = (self._network(services, name, method) for name, method in PARTS)
        layers = self.standard_layers or readable(standard), self.robust_layers or readable(robust)
        channels = _channels(services, standard, layers[0]) + _channels(services, robust, layers[1])
        with fork_global(services.settings.seed, "train/adaptive_smoothing_head"):
            head = MixingNetwork(channels, self.width).to(services.device)
        read: dict[str, Any] = {"layers": layers[0], "robust_layers": layers[1], "through": self.through}
        mixture = AdaptiveMixture(standard, robust, head, low=self.low, high=self.high, **read)
        whole = AdaptiveMixture(standard, robust, head, low=0.0, high=1.0, **read)
        result, optimizer = self._result(mixture), services.optimizer(head)
        done = self._take_up(services, mixture, optimizer)
        for epoch in range(done + 1, services.epochs + 1):
            head.train()
            for step in services.batches(epoch):
                services.descend(step, optimizer, {"mixing": Term(self._loss(step, whole))})
            services.report(epoch, result=result)
            services.keep(_state(mixture, optimizer, epoch))
        return result

    def _network(self, services: Services, name: str, method: str) -> nn.Module:
        """The frozen network that a checkpoint holds, or one that is trained here (or was, before a kill)."""
        reference = getattr(self, name)
        if reference:
            network = services.load(reference, f"{name} network")
        elif services.kept is not None:
            network = services.build(name)
        else:
            network = services.train_other(method, {})
        return network.to(services.device).eval().requires_grad_(False)

    def _take_up(self, services: Services, mixture: AdaptiveMixture, optimizer: Optimizer) -> int:
        """The epochs that were done before a kill; networks that were trained here are not trained twice."""
        if services.kept is None:
            if not (self.standard and self.robust):
                services.keep(_state(mixture, optimizer, 0))
            return 0
        mixture.load_state_dict(services.kept["mixture"])
        optimizer.load_state_dict(services.kept["optimizer"])
        return services.kept["epoch"]

    def _loss(self, step: Step, whole: AdaptiveMixture) -> Tensor:
        """The mean of an image's loss as it is and attacked, ``[B]``."""
        batch = len(step.y)
        x_adv = step.maximise(InnerSpec("ce", self.steps, self.alpha, target=whole))
        with step.autocast():
            logits, gamma = whole.parts(torch.cat([step.x, x_adv]))
        # The step counts a pass of the mixture as one, and it is one of each network; the head's are negligible.
        step.passes.forward += (self.steps + 4) * batch
        step.passes.backward += self.steps * batch
        attacked = torch.arange(2 * batch, device=gamma.device) >= batch
        return mixing_loss(logits.float(), step.y.repeat(2), gamma.float(), attacked).view(2, batch).mean(0)

    def _result(self, mixture: AdaptiveMixture) -> Fitted:
        wrap: dict[str, Any] = {
            "name": "adaptive_smoothing",
            "standard": self.standard,
            "standard_layers": list(mixture.layers),
            "robust_layers": list(mixture.robust_layers),
            "low": self.low,
            "high": self.high,
            "through": self.through,
        }
        files = {"head": "head"} | ({} if self.standard else {"standard": "standard"})
        paths = ("standard",) if self.standard else ()
        return Fitted(mixture, "robust", wrap, files, ("standard",) * (not self.standard), paths, self.robust)


def readable(network: nn.Module) -> tuple[str, ...]:
    """The layers that a head reads by default; raises `UsageError` when there are none."""
    inside = [name for name, part in network.named_children() if weighted_layers(part)]
    if len(inside) == 1 and list(network.get_submodule(inside[0]).children()):  # behind a normalisation
        return tuple(f"{inside[0]}.{name}" for name in readable(network.get_submodule(inside[0])))
    if not (names := first_parts(network)):
        raise UsageError("the network has no hidden layer that a head could read; name standard_layers, robust_layers.")
    return tuple(names)


def _channels(services: Services, network: nn.Module, layers: Sequence[str]) -> list[int]:
    check_layers(network, layers)
    found: dict[str, int] = {}
    with hooked(network, layers, lambda name, output: found.update({name: output.shape[1]})), torch.no_grad():
        network(services.data.x[:1].to(services.device))  # for the shapes: no pass of the training
    return [found[name] for name in layers]


def _check_plain(reference: str, name: str) -> None:
    """Raise `InputError` for a checkpoint that the mixture, as eval loads it, could not take."""
    if not reference:
        return
    sidecar = find_sidecar(reference) if Path(reference).is_file() else None
    if name == "robust" and sidecar is None:
        raise InputError(
            f"the robust network {reference} must be a checkpoint with a sidecar: a defense is put around it."
        )
    if sidecar is not None and (sidecar.wrap or sidecar.randomized):
        raise InputError(f"the {name} network {reference} is random or has a defense around it; a plain one is needed.")


def _state(mixture: AdaptiveMixture, optimizer: Optimizer, epoch: int) -> dict[str, Any]:
    return {"mixture": mixture.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
