"""Certificates by interval bound propagation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustsuite.bounds.graph import Graph, trace
from robustsuite.bounds.ibp import ibp, ibp_margins, input_box, smallest_margin
from robustsuite.bounds.operators import UnsupportedOperator
from robustsuite.certification.base import Certificates, Certifier
from robustsuite.errors import ContractError
from robustsuite.models.classifier import Classifier
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_certifier
from robustsuite.threat import ThreatModel

_HALVINGS = 12
_CHECKED = 8  # examples of a batch on which the traced network is compared with the one that runs


@register_certifier(
    "ibp", norms=("Linf", "L2", "L1"), kind="deterministic", paper="Gowal et al. 2018, arXiv:1810.12715"
)
@dataclass(frozen=True)
class IBP(Certifier):
    """Interval bound propagation with outward rounding: cheap, and tight only on networks trained for it.

    An example is certified at eps where the lower bounds of all its margins over the Linf ball, clipped to [0,1], are
    positive. L2 and L1 balls are certified through the Linf ball of the same radius that encloses them: sound, and
    very loose in many dimensions. With ``search`` the largest such radius up to eps is bisected for every example that
    fails at eps. Gowal et al. 2018; bounds hold for the float32 execution (`robustsuite.bounds.rounding`).
    """

    search: bool = False

    def __post_init__(self) -> None:
        # The prediction, and three products a layer for every radius tried.
        object.__setattr__(self, "cost", (1 + 3 * (1 + _HALVINGS * self.search), 0))

    def certify(
        self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> Certificates:
        """Certificates at eps; raises `UnsupportedOperator` where `unsupported` gives a reason."""
        del noise
        graph = _graph(model)
        logits = model.logits(x)
        predicted = logits.argmax(1)
        right = predicted == y
        _check_trace(graph, x[:_CHECKED], logits[:_CHECKED])
        radius = torch.full(y.shape, threat.radius, dtype=torch.float64, device=x.device)
        proved = self._proved(graph, x, y, radius)
        if self.search:
            radius = torch.where(proved, radius, self._bisect(graph, x, y, radius))
        else:
            radius = radius.where(proved, 0.0)
        return Certificates(radius.where(right, 0.0), predicted, "deterministic")

    def unsupported(self, model: Classifier, threat: ThreatModel) -> str | None:
        """The first operator without bounds and its place, or what else keeps the bounds from being the model's."""
        del threat
        try:
            _graph(model, model.input_shape)
        except UnsupportedOperator as error:
            return str(error)
        return None

    def _proved(self, graph: Graph, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
        """Whether every margin is positive within ``radius`` ``[N]``, bool ``[N]``."""
        return smallest_margin(ibp_margins(graph, *input_box(x, radius), y, guard=True), y) > 0

    def _bisect(self, graph: Graph, x: Tensor, y: Tensor, above: Tensor) -> Tensor:
        """The largest radius found below ``above`` at which the proof goes through, or 0."""
        below = torch.zeros_like(above)
        for _ in range(_HALVINGS):
            middle = (below + above) / 2
            proved = self._proved(graph, x, y, middle)
            below, above = torch.where(proved, middle, below), torch.where(proved, above, middle)
        return below


def _graph(model: Classifier, input_shape: tuple[int, ...] | None = None) -> Graph:
    """The network of ``model`` as operators; raises `UnsupportedOperator` with the reason where there are no bounds."""
    plain = all(getattr(type(model), f) is getattr(Classifier, f) for f in ("logits", "decide", "_forward"))
    if model.facts.randomized or not plain:
        raise UnsupportedOperator(
            "interval bounds are of a plain deterministic network, and this model is wrapped or randomised."
        )
    for name, tensor in [*model.module.named_parameters(), *model.module.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UnsupportedOperator(f"interval bounds are for float32 execution, but '{name}' is {tensor.dtype}.")
    return trace(model.module, input_shape)


def _check_trace(graph: Graph, x: Tensor, logits: Tensor) -> None:
    """Raise `ContractError` when the model's own logits leave the bounds of the traced network at that very point."""
    lower, upper = ibp(graph, x, x, guard=True)
    if bool(((logits < lower) | (logits > upper)).any()):
        raise ContractError(
            "the model's own logits violate the bounds of its traced graph. Its forward does something that tracing "
            "does not see (it asks for types, keeps state, runs a fused kernel); use another certifier."
        )
