"""The training loop that step methods plug into: one process, one device, everything keyed by the seed."""

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.base import StepMethod
from robustsuite.models.factory import build
from robustsuite.threat import ThreatModel
from robustsuite.training.method import defense_name, hyper_parameters
from robustsuite.training.run import Progress, Run, Settings
from robustsuite.training.trained import Trained
from robustsuite.training.validation import default_size, hold_out


def train(
    method: StepMethod,
    arch: str,
    arch_params: dict[str, Any],
    data: Dataset,
    threat: ThreatModel,
    *,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 0.05,
    optimizer: str = "sgd",
    schedule: str = "one_cycle",
    weight_decay: float = 5e-4,
    clip: float = 0.0,
    seed: int = 0,
    validation: int | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Trained:
    """Train ``arch`` on ``data`` with ``method`` against ``threat`` and select an epoch on held-out examples.

    The same arguments give bit-identical weights on one machine. ``progress(done, total, info)`` is called after every
    step. Raises `DivergedError` when loss or weights stop being finite (it carries the best epoch so far), and
    `UsageError` for settings that cannot be, `ContractError` for a method that breaks its contract.
    """
    params = hyper_parameters(method)
    if validation is None:
        validation = 0 if method.select == "last" else default_size(data)
    settings = Settings(epochs, batch_size, lr, optimizer, schedule, weight_decay, clip, seed, validation)
    kept, held = hold_out(data, validation, seed)
    trained = Trained(
        module=initial_module(arch, arch_params, data, seed).to(device),
        arch=arch,
        arch_params=dict(arch_params),
        num_classes=data.num_classes,
        input_shape=data.input_shape,
        defense=defense_name(method),
        params=params,
        settings=asdict(settings),
        threat=str(threat),
        data={"name": data.name, "subset": data.subset, "n": len(data), "fingerprint": data.fingerprint},
    )
    run = Run(method, trained, settings, kept, held, threat, torch.device(device), progress)
    began = time.perf_counter()
    # cudnn may otherwise choose another algorithm, and so other last bits, in the next run
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
        run.fit()
    trained.seconds = time.perf_counter() - began
    trained.module.load_state_dict(trained.best_state)
    trained.module.eval().requires_grad_(False)
    return trained


def initial_module(arch: str, arch_params: dict[str, Any], data: Dataset, seed: int) -> nn.Module:
    """The untrained network, weights drawn by ``seed``; raises `InputError` when it cannot be built for ``data``."""
    return build(arch, arch_params, num_classes=data.num_classes, input_shape=data.input_shape, seed=seed)
