"""Certificates by backward bound propagation: CROWN-IBP, CROWN and alpha-CROWN."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.bounds.bab import Limits, searched_margins
from robustsuite.bounds.crown import Crown
from robustsuite.bounds.graph import Graph
from robustsuite.bounds.ibp import smallest_margin
from robustsuite.bounds.margins import crown_margins
from robustsuite.bounds.operators import UnsupportedOperator
from robustsuite.bounds.region import region
from robustsuite.certification.traced import BoundCertifier, traced
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Classifier
from robustsuite.registry import register_certifier
from robustsuite.threat import Norm, ThreatModel

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_NORMS = ("Linf", "L2", "L1")
_ASCENT = 5  # steps before and after each round of smaller boxes


@dataclass(frozen=True)
class Backward(BoundCertifier):
    """What the three have in common.

    ``dtype``, float32 or float64: of the coefficients that are pushed backwards. Both are sound; float64 is slower and
    loses less to rounding. ``batch`` images are worked on at once.
    """

    dtype: str = "float32"
    batch: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in _DTYPES:
            raise UsageError(f"dtype must be float32 or float64, got '{self.dtype}'.")
        if self.batch < 1:
            raise UsageError(f"batch must be at least 1, got {self.batch}.")

    def unsupported(self, model: Classifier, threat: ThreatModel) -> str | None:
        """As for interval bounds; and operators that know no linear bounds are found out on a black image."""
        reason = super().unsupported(model, threat)
        if reason is None:
            try:
                self.rehearse(model, threat)
            except UnsupportedOperator as error:
                return str(error)
        return reason

    def rehearse(self, model: Classifier, threat: ThreatModel) -> Crown:
        """The bounds of one point; raises `UnsupportedOperator` where there are none."""
        x = torch.zeros(1, *model.input_shape, device=model.device)
        crown = Crown(traced(model), region(x, 0.0, threat.norm), refine=False)
        crown_margins(crown, torch.zeros(1, dtype=torch.long, device=model.device))
        return crown

    def margins(self, graph: Graph, x: Tensor, radius: Tensor, norm: Norm, y: Tensor) -> Tensor:
        """The bounds of `bounded`, batch by batch."""
        parts = zip(x.split(self.batch), radius.split(self.batch), y.split(self.batch), strict=True)
        return torch.cat([self.bounded(graph, *part, norm) for part in parts])

    def crown(self, graph: Graph, x: Tensor, radius: Tensor, norm: Norm, *, refine: bool, steps: int = 0) -> Crown:
        """The boxes that backward passes go over."""
        return Crown(graph, region(x, radius, norm), refine=refine, dtype=_DTYPES[self.dtype], steps=steps)

    def bounded(self, graph: Graph, x: Tensor, radius: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """Lower bounds ``[N,K]`` of the margins of one batch."""
        raise NotImplementedError


@register_certifier("crown-ibp", norms=_NORMS, kind="deterministic", paper="Zhang et al. 2020, arXiv:1906.06316")
@dataclass(frozen=True)
class CROWNIBP(Backward):
    """One backward pass over the boxes of interval propagation: K - 1 rows an image, and no more."""

    cost = (4, 9)

    def bounded(self, graph: Graph, x: Tensor, radius: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """The backward pass of the margins alone."""
        return crown_margins(self.crown(graph, x, radius, norm, refine=False), y)


@dataclass(frozen=True)
class Refined(Backward):
    """Those that tighten the boxes of unstable units, with backward passes for each.

    Networks with more than ``max_units`` units behind relaxations are refused: every image would take about as many
    backward passes.
    """

    max_units: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_units < 1:
            raise UsageError(f"max_units must be at least 1, got {self.max_units}.")

    def rehearse(self, model: Classifier, threat: ThreatModel) -> Crown:
        """The bounds of one point, of a network that is not too large."""
        crown = super().rehearse(model, threat)
        units = crown.units()
        if units > self.max_units:
            raise UnsupportedOperator(
                f"the network has {units} units behind relaxations, more than max_units={self.max_units}; crown would "
                "take a backward pass for nearly each of them. Raise max_units, or use crown-ibp."
            )
        return crown


@register_certifier("crown", norms=_NORMS, kind="deterministic", paper="Zhang et al. 2018, arXiv:1811.00866")
@dataclass(frozen=True)
class CROWN(Refined):
    """Backward passes for every unstable neuron, intersected with interval bounds, and then for the margins.

    The same relaxation as DeepPoly (Singh et al. 2019), and never looser than CROWN-IBP.
    """

    cost = (4, 1000)  # of the order of the unstable neurons of a small network, twice

    def bounded(self, graph: Graph, x: Tensor, radius: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """All backward passes, for images that CROWN-IBP does not prove."""
        return _first(
            crown_margins(self.crown(graph, x, radius, norm, refine=False), y),
            y,
            lambda i: crown_margins(self.crown(graph, x[i], radius[i], norm, refine=True), y[i]),
        )


@register_certifier("alpha-crown", norms=_NORMS, kind="deterministic", paper="Xu et al. 2021, arXiv:2011.13824")
@dataclass(frozen=True)
class AlphaCROWN(Refined):
    """CROWN with lower slopes found by gradient ascent, for every margin that CROWN leaves open.

    ``steps`` of ascent on the slopes that the margins meet: cheap. ``rounds`` of smaller boxes for what is left, of
    those points alone at which a margin is not positive (Kotha et al. 2023, arXiv:2302.01404), as long as they help:
    most of the gain, at 10 to 50 times CROWN's time for these images. ``inner_steps``: ascent for every unstable
    neuron's own bounds before that, each with slopes of its own; 20 to 60 times as long as CROWN.
    """

    steps: int = 20
    rounds: int = 3
    inner_steps: int = 0

    cost = (4, 1500)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or min(self.rounds, self.inner_steps) < 0:
            raise UsageError(
                "alpha-crown needs steps >= 1, rounds and inner_steps >= 0, got "
                f"{self.steps}, {self.rounds} and {self.inner_steps}."
            )

    def bounded(self, graph: Graph, x: Tensor, radius: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """CROWN's bounds, then better slopes for the margins, then whatever else is asked for."""
        crown = self.crown(graph, x, radius, norm, refine=True)
        found = self._smaller(crown, crown_margins(crown, y, self.steps), y)
        if not self.inner_steps:
            return found

        def everywhere(i: Tensor) -> Tensor:
            crown = self.crown(graph, x[i], radius[i], norm, refine=True, steps=self.inner_steps)
            return self._smaller(crown, crown_margins(crown, y[i], self.steps), y[i])

        return _first(found, y, everywhere)

    def _smaller(self, crown: Crown, margins: Tensor, y: Tensor) -> Tensor:
        """Margins over the boxes of counterexamples alone, image by image, where they are not positive already."""
        limits = Limits(domains=1, steps=_ASCENT, rounds=self.rounds)
        for i in (~(smallest_margin(margins, y) > 0)).nonzero().flatten().tolist() if self.rounds else []:
            one = torch.tensor([i], device=y.device)
            margins[i] = searched_margins(crown.of(one), margins[i], y[one], limits)
        return margins


def _first(margins: Tensor, y: Tensor, better: Callable[[Tensor], Tensor]) -> Tensor:
    """``margins`` of proved images as they are, of the others (their index is given) the larger of both."""
    rest = (~(smallest_margin(margins, y) > 0)).nonzero().squeeze(1)
    if len(rest):
        margins[rest] = margins[rest].maximum(better(rest))
    return margins
