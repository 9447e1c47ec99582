"""A certifier as a plugin: the exact radius of linear models."""

from dataclasses import dataclass

import torch
from torch import nn

from robustsuite.certification import Certificates, Certifier, register_certifier


@register_certifier("my_linear", norms=("Linf", "L2"))
@dataclass(frozen=True)
class MyLinear(Certifier):
    """``min_k (z_y - z_k) / ||w_y - w_k||_q`` with the dual norm q, less what float32 rounding could cost."""

    def unsupported(self, model, threat):
        kinds = [type(m) for m in model.module.modules()]
        return None if kinds == [nn.Sequential, nn.Flatten, nn.Linear] else "it is not one linear layer"

    def certify(self, model, x, y, threat, noise):
        weight, logits = model.module[1].weight.double(), model.logits(x).double()
        top = logits.argmax(1)
        gaps = logits.gather(1, top.view(-1, 1)) - logits - 1e-6 * (1 + weight.abs().sum(1).max())
        order = {"Linf": 1, "L2": 2}[threat.norm]
        sizes = (weight[top].unsqueeze(1) - weight).norm(order, dim=2)
        radius = (gaps / sizes).scatter(1, top.view(-1, 1), torch.inf).amin(1)
        return Certificates(radius.clamp(0, 1e6), top, "deterministic")
