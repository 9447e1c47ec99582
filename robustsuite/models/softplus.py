"""ReLU replaced by softplus for one pass: a piecewise linear network gets the curvature that its kinks hide."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustsuite.errors import UsageError

_OVERWRITING = (torch.relu_, Tensor.relu_)
_RELU = (F.relu, torch.relu, Tensor.relu, *_OVERWRITING)


class SoftplusForReLU(TorchFunctionMode):
    """Context in which every ReLU is ``softplus(beta z) / beta``, at most ``log(2) / beta`` away from it.

    The network itself, and other threads, are left alone. Other kinks (leaky ReLU, clamp, max pooling) stay as they
    are. Ghorbani, Abid, Zou (AAAI 2019); Dombrowski et al. (NeurIPS 2019) for beta. Raises `UsageError` unless beta is
    positive.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        if not beta > 0:
            raise UsageError(f"softplus in place of ReLU needs beta > 0, got {beta}.")
        self.beta = beta

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Replace relu in all its spellings."""
        if func not in _RELU:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("input", "inplace"), args, strict=False)) | (kwargs or {})
        z = given["input"]
        if func in _OVERWRITING or given.get("inplace"):  # whoever overwrites may not look at what is returned
            return z.copy_(F.softplus(z.clone(), beta=self.beta))
        return F.softplus(z, beta=self.beta)
