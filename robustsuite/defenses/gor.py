"""Group orthogonalization regularization (GOR): groups of a layer's filters are held orthonormal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustsuite.defenses.base import Step, StepMethod, Term
from robustsuite.defenses.context import Context
from robustsuite.errors import UsageError
from robustsuite.models.hooks import weighted_layers
from robustsuite.registry import register_defense

LEAST = 4  # filters in a group
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@register_defense(
    "gor",
    kind="modifier",
    paper="Kurtz, Bar, Giryes 2023, arXiv:2306.10001",
    cost="0 passes",
    fidelity="authors' code",
    defaults={"cifar10": {"weight": 0.01}},
)
@dataclass(frozen=True)
class GOR(StepMethod):
    """Plus ``weight`` times the sum over layers and groups of ``|W_g W_g^T - I|^2``, W_g a group's filters as rows.

    Kurtz, Bar, Giryes, "Group Orthogonalization Regularization for Vision Models Adaptation and Robustness" (BMVC
    2023), as in their code: a group with at least as many filters as these have entries takes ``W_g^T W_g``. `groups`
    is the largest number of groups a layer is split into (32); a group has 4 filters or more. `between`: ``inter``
    takes neighbouring filters as a group, ``intra`` the i-th filter of each of these groups. `linear` regularizes
    linear layers as well; a network without convolutions has no others. `weight`: 0.01 with adversarial training.
    """

    weight: float = 0.01
    groups: int = 32
    between: Literal["inter", "intra"] = "inter"
    linear: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0 or self.groups < 1 or self.between not in ("inter", "intra"):
            raise UsageError(f"gor needs weight >= 0, groups >= 1 and between inter or intra, got {self}.")

    def setup(self, context: Context) -> None:
        """Raises `UsageError` for a layer whose filters do not make groups of one size."""
        for name, weight in self._layers(context.module).items():
            count = self._count(weight)
            if len(weight) % count:
                raise UsageError(
                    f"gor splits the {len(weight)} filters of the layer '{name}' into {count} groups, which are not of "
                    "one size; choose other groups or another width."
                )

    def terms(self, step: Step) -> Mapping[str, Term]:
        """The same penalty for every example."""
        if self.weight == 0:
            return {}
        penalties = [distance(self._grouped(weight)) for weight in self._layers(step.module).values()]
        return {"gor": Term(torch.stack(penalties).sum().expand(len(step.y)), self.weight)}

    def _layers(self, module: nn.Module) -> dict[str, Tensor]:
        """Weights ``[C_out,d]`` by the layer's name."""
        layers = {name: module.get_submodule(name) for name in weighted_layers(module)}
        kinds = (*CONVOLUTIONS, nn.Linear)
        if not self.linear and any(isinstance(layer, CONVOLUTIONS) for layer in layers.values()):
            kinds = CONVOLUTIONS
        return {n: layer.weight.flatten(1) for n, layer in layers.items() if isinstance(layer, kinds)}

    def _count(self, weight: Tensor) -> int:
        return max(1, min(self.groups, len(weight) // LEAST))

    def _grouped(self, weight: Tensor) -> Tensor:
        groups = weight.unflatten(0, (self._count(weight), -1))
        return groups if self.between == "inter" else groups.transpose(0, 1)


def distance(groups: Tensor) -> Tensor:
    """``sum_g |W_g W_g^T - I|_F^2`` of ``[G,n,d]``, or of ``W_g^T W_g`` where ``n >= d``."""
    n, d = groups.shape[1:]
    rows = groups.transpose(1, 2) if n >= d else groups
    gram = rows @ rows.transpose(1, 2)
    return (gram - torch.eye(min(n, d), dtype=gram.dtype, device=gram.device)).square().sum()
