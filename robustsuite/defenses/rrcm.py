"""rRCM: representations that do not change with the noise, learnt without labels, then a classifier on top."""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad
from torch.optim import Optimizer

from robustsuite.defenses.averaging import follow
from robustsuite.defenses.base import FitMethod, Step, Term
from robustsuite.defenses.consistency import Consistency
from robustsuite.defenses.services import Services
from robustsuite.errors import UsageError
from robustsuite.noise import ExampleNoise, fork_global
from robustsuite.registry import register_defense
from robustsuite.threat import Norm

_RHO = 7.0


@register_defense(
    "rrcm",
    kind="fit",
    paper="Lei et al. 2025, arXiv:2501.13094, section 4",
    cost="3 passes in pre-training, m in fine-tuning",
    defaults={"cifar10": {"lam": 20.0}},
    fidelity="reconstructed",
)
@dataclass(frozen=True)
class RRCM(FitMethod):
    """Contrastive pre-training along noise trajectories, then `consistency` training of the whole network.

    Lei, Berner, Wang, Chen, Ba, Ren, Zhu, Anandkumar, "Robust Representation Consistency via Contrastive Denoising"
    (ICLR 2025), to be certified by randomized smoothing with `sigma`. The first `pretrain` (share, 0.5) of the epochs
    learn without labels: the representation (what the last linear layer is given, through a projection of `width` and
    `size` units) of ``x + s_k n`` shall be that which an average of the network gives the same image at the next
    smaller level, ``x + s_{k+1} n``, and none of the batch's other images; and that of two random shifts by up to
    `shift` pixels alike, at the smallest level (InfoNCE on the unit sphere, temperature `tau`, 0.2). The levels run
    from `sigma_max` to `sigma_min` (0.001) as in Karras et al. 2022 with rho 7, and one is drawn for each step; there
    are `scales` of them, doubling from 20 to 80. The average's decay rises from 0.99 to 0.9999 (`decay`). The rest of
    the epochs is `consistency` with `m` draws, `lam` (10 or 20) and `eta` (0.5). The learning rate's schedule begins
    anew with them.

    The losses are those of their code; networks and scale are ours: theirs are ViTs that are told the noise level and
    get their input divided by its size, with `sigma_max` 40 in pixel units, strong augmentations and 300,000 and more
    steps; here it is any network, which is not told, and `sigma_max` is 1. With pretrain=0 it is `consistency`.
    """

    sigma: float = 0.25
    pretrain: float = 0.5
    sigma_min: float = 0.001
    sigma_max: float = 1.0
    scales: tuple[int, int] = (20, 80)
    tau: float = 0.2
    decay: tuple[float, float] = (0.99, 0.9999)
    width: int = 128
    size: int = 64
    shift: int = 1
    m: int = 2
    lam: float = 10.0
    eta: float = 0.5
    select: ClassVar[Literal["robust", "clean", "last"]] = "last"
    norms: ClassVar[tuple[Norm, ...]] = ("L2",)

    def __post_init__(self) -> None:
        for name in ("scales", "decay"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self.tuned()
        low, high = self.scales
        if not (0 <= self.pretrain < 1 and 0 < self.sigma_min < self.sigma_max and 2 <= low <= high and self.tau > 0):
            raise UsageError(
                "rrcm needs pretrain in [0,1), 0 < sigma_min < sigma_max, 2 <= the first of scales <= the last, and "
                f"tau > 0, got {self}."
            )
        if not all(0 <= d < 1 for d in self.decay) or min(self.width, self.size) < 1 or self.shift < 0:
            raise UsageError(f"rrcm needs decay in [0,1), width and size >= 1 and shift >= 0, got {self}.")

    def tuned(self) -> Consistency:
        """The method of the fine-tuning."""
        return Consistency(sigma=self.sigma, m=self.m, lam=self.lam, eta=self.eta)

    def fit(self, services: Services) -> nn.Module:
        """Both parts, epoch by epoch."""
        first = round(self.pretrain * services.epochs)
        running = _Running(self, services, first)
        for epoch in range(running.done + 1, services.epochs + 1):
            if epoch == first + 1:
                running.optimizer = services.optimizer(services.module)
            for step in services.batches(epoch):
                running.step(step, epoch)
            services.report(epoch)
            services.keep(running.state(epoch))
        return services.module


class _Running:
    """The network with its two projections, and the average of all three."""

    def __init__(self, method: RRCM, services: Services, first: int) -> None:
        self.method, self.services, self.first = method, services, first
        self.tuned, self.done = method.tuned(), 0
        module = services.module
        with fork_global(services.settings.seed, "train/rrcm"):
            heads = nn.ModuleList(_projection(_last_linear(module).in_features, method) for _ in range(2)).to(
                services.device
            )
        self.online = nn.ModuleDict({"network": module, "heads": heads})
        self.target = copy.deepcopy(self.online).eval().requires_grad_(False) if first else nn.ModuleDict()
        self.optimizer: Optimizer = services.optimizer(*((module, heads) if first else (module,)))
        if kept := services.kept:
            self.done = kept["epoch"]
            self.online.load_state_dict(kept["online"])
            self.target.load_state_dict(kept["target"])
            if self.done > first:
                self.optimizer = services.optimizer(module)
            self.optimizer.load_state_dict(kept["optimizer"])

    def step(self, step: Step, epoch: int) -> None:
        """One step of the part that ``epoch`` belongs to."""
        begin, end = (0, self.first) if epoch <= self.first else (self.first, self.services.epochs)
        step.progress = (step.progress * self.services.epochs - begin) / (end - begin)
        self.online.train()
        if epoch > self.first:
            step.joint = self.tuned.joint
            step.views.update(self.tuned.views(step))
            self.services.descend(step, self.optimizer, self.tuned.terms(step))
            return
        self.services.descend(step, self.optimizer, self._contrast(step))
        low, high = self.method.decay
        follow(self.target, self.online, low + (high - low) * step.progress)

    def _contrast(self, step: Step) -> dict[str, Term]:
        method, noise = self.method, step.noise.child("rrcm")
        sigmas = levels(method, step.progress)
        whole = ExampleNoise(noise.noise, torch.zeros(1, dtype=torch.int64))
        k = int(whole.child("level").integers(len(sigmas) - 1))
        drawn = noise.child("trajectory").normal(step.x.shape[1:])
        shifted = [shift(step.x, method.shift, noise.child("shift"), draw) + sigmas[-1] * drawn for draw in (0, 1)]
        pairs = {"views": shifted, "levels": [step.x + sigmas[k] * drawn, step.x + sigmas[k + 1] * drawn]}
        terms = {}
        for place, (name, (x, x_target)) in enumerate(pairs.items()):
            own = self._represent(step, self.online, place, x)
            with torch.no_grad():
                other = self._represent(step, self.target, place, x_target)
            terms[name] = Term(info_nce(own, other, method.tau))
        return terms

    def _represent(self, step: Step, model: nn.ModuleDict, head: int, x: Tensor) -> Tensor:
        network, found = model["network"], []
        handle = _last_linear(network).register_forward_pre_hook(lambda _, given: found.append(given[0]))
        try:
            step.forward(x, network)
        finally:
            handle.remove()
        heads = model["heads"]
        assert isinstance(heads, nn.ModuleList)
        return heads[head](found[0].float())

    def state(self, epoch: int) -> dict[str, Any]:
        """What the next epoch needs."""
        online, target = self.online.state_dict(), self.target.state_dict()
        return {"online": online, "target": target, "optimizer": self.optimizer.state_dict(), "epoch": epoch}


def levels(method: RRCM, progress: float) -> Tensor:
    """The noise levels at that share of the pre-training, falling, float64."""
    low, high = method.scales
    doublings = math.floor(progress * (math.log2(high / low) + 1))
    count = min(low * 2**doublings, high) + 1
    begin, end = method.sigma_max ** (1 / _RHO), method.sigma_min ** (1 / _RHO)
    return torch.linspace(begin, end, count, dtype=torch.float64) ** _RHO


def info_nce(own: Tensor, other: Tensor, tau: float) -> Tensor:
    """``-log`` of the share of the right pair, ``[B]``: cosines of ``own`` with all of ``other`` over ``tau``."""
    cosines = normalize(own, dim=1) @ normalize(other, dim=1).T / tau
    return -cosines.log_softmax(1).diagonal()


def shift(x: Tensor, most: int, noise: ExampleNoise, draw: int = 0) -> Tensor:
    """Images ``[B,C,H,W]`` moved by up to ``most`` pixels each way, zeros behind."""
    corner = noise.integers(2 * most + 1, (2,), draw=draw)
    rows = (corner[:, :1] + torch.arange(x.shape[2], device=x.device)).view(len(x), 1, -1, 1)
    columns = (corner[:, 1:] + torch.arange(x.shape[3], device=x.device)).view(len(x), 1, 1, -1)
    padded = pad(x, (most,) * 4)
    tall = padded.gather(2, rows.expand(-1, x.shape[1], -1, padded.shape[3]))
    return tall.gather(3, columns.expand(-1, x.shape[1], x.shape[2], -1))


def _last_linear(network: nn.Module) -> nn.Linear:
    found = [part for part in network.modules() if isinstance(part, nn.Linear)]
    if not found:
        raise UsageError("rrcm takes the representation from before the last linear layer; this network has none.")
    return found[-1]


def _projection(features: int, method: RRCM) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, method.width), nn.ReLU(), nn.Linear(method.width, method.size))
