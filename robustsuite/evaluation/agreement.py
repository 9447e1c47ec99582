"""How much of a run may come out otherwise when it is repeated: nothing on its own machine, little on another.

At one batch shape and thread count a processor repeats a run to the bit. Another processor or GPU, or another torch,
moves the last bits, so that an example at the edge may fall on the other side.
"""

import hashlib
import platform
from dataclasses import dataclass

import torch

from robustsuite.results.provenance import cpu_model, package_versions
from robustsuite.results.schema import Record


@dataclass(frozen=True)
class Allowance:
    """What another machine may do: each answer differs with a probability of at most ``rate``, independently.

    So many differences that an honest run would show them with a probability of at most ``failure`` refute a run.
    """

    rate: float
    failure: float

    def most(self, n: int) -> int:
        """The smallest k for which P(Binomial(n, rate) > k) <= failure, by the exact tail."""
        from scipy.stats import binom

        return int(binom.isf(self.failure, n, self.rate)) if self.rate else 0

    def missed(self, n: int, false: float) -> float:
        """The probability that ``n`` answers pass of which each is wrong with probability ``false``."""
        from scipy.stats import binom

        return float(binom.cdf(self.most(n), n, false))

    def __str__(self) -> str:
        return f"{self.rate:.2%} may differ, an honest run fails with a probability of at most {self.failure:.1%}"


EXACT = Allowance(0.0, 0.0)
"""Of the run's own machine."""
PREDICTIONS = Allowance(rate=0.001, failure=0.001)
"""Single decisions of the model on given images."""
OUTCOMES = Allowance(rate=0.005, failure=0.01)
"""Outcomes of whole attacks and certifiers, whose many steps amplify the last bits."""


def same_machine(record: Record, device: torch.device) -> bool:
    """Whether this is the machine that made the record, by name, processor, device and torch: it repeats every bit."""
    host = record.host
    there = host.hostname_sha256, host.cpu, host.device_name, record.provenance.packages.get("torch")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    node = hashlib.sha256(platform.node().encode()).hexdigest()
    return there == (node, cpu_model(), name, package_versions().get("torch"))


def allowance(record: Record, device: torch.device, elsewhere: Allowance) -> Allowance:
    """`EXACT` on the machine that made the record, ``elsewhere`` on any other."""
    return EXACT if same_machine(record, device) else elsewhere
