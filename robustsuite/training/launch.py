"""Where a training runs: device, precision and processes, carried by Lightning Fabric.

Gradients are averaged in one all-reduce after the backward pass rather than by a wrapper around the module: the module
that is attacked, perturbed, averaged and differentiated twice is then the user's own, and its parameter gradients are
touched by nobody. Fabric takes seconds to import, so a plain float32 run of one process goes without it.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from robustsuite.errors import UsageError

Precision = Literal["fp32", "bf16"]
PRECISIONS = ("fp32", "bf16")


class Launch:
    """One process of a training: ``rank`` of ``world``, its device, and what the processes tell each other.

    `devices` processes are started, on as many devices (on a CPU: that share its cores). Raises `UsageError` for a
    precision that does not exist or more devices than there are.
    """

    def __init__(self, device: str | torch.device = "cpu", precision: str = "fp32", devices: int = 1) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"no precision '{precision}'; choose {' or '.join(PRECISIONS)}.")
        if devices < 1:
            raise UsageError(f"devices must be at least 1, got {devices}.")
        self.device, self.precision, self.rank, self.world = torch.device(device), precision, 0, 1
        if self.device.type == "cuda" and devices > torch.cuda.device_count():
            raise UsageError(f"{devices} devices were asked for, this machine has {torch.cuda.device_count()}.")
        self.fabric: Any = None
        if precision == "fp32" and devices == 1:
            return
        from lightning_fabric import Fabric

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        self.fabric = Fabric(
            accelerator=self.device.type,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )
        self.fabric.launch()
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size
        if devices > 1:
            self.device = self.fabric.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        return nullcontext() if self.fabric is None else self.fabric.autocast()

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch."""
        return rows[self.rank :: self.world]

    def mean(self, tensors: Sequence[Tensor], part: float) -> list[Tensor]:
        """The sum over the processes of ``part`` times each tensor, in one message; ``part``: this one's share."""
        if self.world == 1:
            return list(tensors)
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors]) * part
        flat = self.fabric.all_reduce(flat, reduce_op="sum")
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def total(self, *counts: int) -> list[int]:
        """The sum over the processes of each count."""
        if self.world == 1:
            return list(counts)
        return self.fabric.all_reduce(torch.tensor(counts, device=self.device), reduce_op="sum").tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            self.fabric.barrier()
