"""The network that a solution of the convex program stands for."""

import torch
from torch import Tensor, nn

from robustsuite.errors import UsageError

_NEGLIGIBLE = 1e-9  # of the largest norm


def neurons(v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """First-layer rows ``[m,d+1]`` (the last entry a bias) and output weights ``[m]``, largest neurons first.

    Each v that is not 0 gives the neuron ``v / sqrt|v|`` with the weight ``sqrt|v|``, each w one with ``-sqrt|w|``:
    half the sum of their squares is ``|v| + |w|``, so that the program's penalty is weight decay.
    """
    both, sign = torch.cat([v, w]), torch.cat([torch.ones(len(v)), -torch.ones(len(w))]).to(v)
    norms = both.norm(dim=1)
    order = norms.argsort(descending=True, stable=True)
    order = order[norms[order] > _NEGLIGIBLE * norms.max()]
    root = norms[order].sqrt()
    return both[order] / root.unsqueeze(1), sign[order] * root


def two_layers(module: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The layers of ``Flatten, Linear, ReLU, Linear`` with two logits; raises `UsageError` for any other network."""
    kinds = [type(part) for part in module] if isinstance(module, nn.Sequential) else []
    if kinds != [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]:
        raise UsageError(
            f"convex training is for two-layer ReLU networks, not for a {type(module).__name__} of other layers; use "
            "the architecture mlp with depth=1."
        )
    assert isinstance(module, nn.Sequential)
    first, last = module[1], module[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return first, last


@torch.no_grad()
def write_into(module: nn.Module, rows: Tensor, weights: Tensor) -> None:
    """Let ``module`` answer with the logits ``(0, f)``, ``f(x) = sum_j weights_j max(0, rows_j . (x, 1))``.

    Its cross-entropy is then the logistic loss of f. Neurons that it has beside those of ``rows`` become 0. Raises
    `UsageError` when it has fewer, or is no `two_layers`.
    """
    first, last = two_layers(module)
    if len(rows) > first.out_features:
        raise UsageError(f"the solution has {len(rows)} neurons, the network {first.out_features}; make it wider.")
    for parameter in module.parameters():
        parameter.zero_()
    first.weight[: len(rows)] = rows[:, :-1].to(first.weight)
    first.bias[: len(rows)] = rows[:, -1].to(first.bias)
    last.weight[1, : len(rows)] = weights.to(last.weight)
