"""Certificates by interval bound propagation."""

from dataclasses import dataclass, replace

from torch import Tensor

from robustsuite.bounds.graph import Graph
from robustsuite.bounds.ibp import ibp_margins
from robustsuite.bounds.region import region
from robustsuite.bounds.tightness import ibp_tightness
from robustsuite.certification.base import Certificates
from robustsuite.certification.traced import BoundCertifier, traced
from robustsuite.models.classifier import Classifier
from robustsuite.models.precision import exact_arithmetic
from robustsuite.noise import ExampleNoise
from robustsuite.registry import register_certifier
from robustsuite.threat import Norm, ThreatModel

_BACKWARD = 10  # one a class


@register_certifier(
    "ibp", norms=("Linf", "L2", "L1"), kind="deterministic", paper="Gowal et al. 2018, arXiv:1810.12715"
)
@dataclass(frozen=True)
class IBP(BoundCertifier):
    """Interval bound propagation with outward rounding: cheap, and tight only on networks trained for it.

    L2 and L1 balls are certified through the Linf ball of the same radius that encloses them, clipped to [0,1]: sound,
    and very loose in many dimensions. With ``search`` the largest radius up to eps that can be proved is bisected.
    With ``diagnose`` the ledger keeps each example's propagation tightness (`robustsuite.bounds.tightness`).
    """

    diagnose: bool = False

    cost = (4, 0)  # the prediction, and two products a layer

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diagnose:
            forward, backward = self.cost
            object.__setattr__(self, "cost", (forward + 2, backward + _BACKWARD))

    def certify(
        self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, noise: ExampleNoise
    ) -> Certificates:
        """Certificates at eps, with the tightness over the Linf ball of that radius where it is asked for."""
        found = super().certify(model, x, y, threat, noise)
        if not self.diagnose:
            return found
        with exact_arithmetic():
            return replace(found, diagnostics={"tightness": ibp_tightness(traced(model), x, threat.radius, y)})

    def margins(self, graph: Graph, x: Tensor, radius: Tensor, norm: Norm, y: Tensor) -> Tensor:
        """Bounds of one forward propagation of the box around the ball."""
        box = region(x, radius, norm).box
        return ibp_margins(graph, box.lower, box.upper, y, guard=True)
