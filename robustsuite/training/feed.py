"""The training data on its device, made into steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.defenses.context import Training
from robustsuite.defenses.step import Step
from robustsuite.noise import Noise
from robustsuite.training.inner import maximise
from robustsuite.training.launch import Launch
from robustsuite.training.settings import Settings


@dataclass
class Feed:
    """This process's share of every batch, as the `Step` that a method sees; `total` steps are the whole training."""

    training: Training
    settings: Settings
    launch: Launch
    total: int

    def __post_init__(self) -> None:
        data, device = self.training.data, self.launch.device
        self.module = self.training.module
        self.x, self.y, self.ids = (t.to(device) for t in (data.x, data.y, data.ids))
        if self.settings.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.compiled = torch.compile(self.module) if self.settings.compile else None

    def step(self, rows: Tensor, done: int, epoch: int, **slots: Any) -> Step:
        """The examples at ``rows`` after ``done`` steps; ``slots`` are further fields of `Step`."""
        mine = self.launch.share(rows)
        part = len(mine) / len(rows)
        y = self.y[mine]
        classes = self.training.num_classes
        return Step(
            module=self.module,
            x=self.x[mine],
            y=y,
            q=nn.functional.one_hot(y, classes).to(self.x.dtype),
            threat=self.training.threat,
            progress=done / self.total,
            num_classes=classes,
            noise=Noise(self.settings.seed, f"train/step{done}").at(self.ids[mine]),
            inner=maximise,
            graph=self.training.graph,
            epoch=epoch,
            autocast=self.launch.autocast,
            compiled=self.compiled,
            reduce=lambda grads: self.launch.mean(grads, part),
            passes=self.training.passes,
            **slots,
        )
