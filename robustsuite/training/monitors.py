"""What may be measured of a network after every epoch besides its accuracies."""

from collections.abc import Callable, Mapping

from torch import nn

from robustsuite.bounds.tightness import ibp_tightness
from robustsuite.data.dataset import Dataset
from robustsuite.threat import ThreatModel

EXAMPLES = 32

Monitor = Callable[[nn.Module, Dataset, ThreatModel], float]


def tightness(module: nn.Module, data: Dataset, threat: ThreatModel) -> float:
    """Mean propagation tightness (Mao et al. 2024) of the Linf balls of eps around the first examples, in (0,1].

    Of the network in eval mode, whatever mode it is in.
    """
    device = next(module.parameters()).device
    x, y = data.x[:EXAMPLES].to(device), data.y[:EXAMPLES].to(device)
    return float(ibp_tightness(module, x, threat.radius, y).mean())


MONITORS: Mapping[str, Monitor] = {"ibp_tightness": tightness}
