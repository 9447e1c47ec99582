"""The training loop that step methods plug into and fit methods draw on, everything in it keyed by the seed."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.base import FitMethod, StepMethod
from robustsuite.defenses.composed import Composed
from robustsuite.defenses.context import Context
from robustsuite.errors import UsageError
from robustsuite.models.allocator import keep_memory
from robustsuite.models.classifier import Passes
from robustsuite.models.factory import build
from robustsuite.noise import Noise, generator_seed
from robustsuite.threat import ThreatModel
from robustsuite.training.fit import Fit
from robustsuite.training.launch import Launch
from robustsuite.training.losses import Progress
from robustsuite.training.method import as_composed, defense_name, described, make_trainable
from robustsuite.training.resume import resume
from robustsuite.training.run import LEAST, Run, shuffled
from robustsuite.training.settings import Settings
from robustsuite.training.store import Store
from robustsuite.training.trained import Trained
from robustsuite.training.validation import default_size, hold_out


def train(
    method: StepMethod | FitMethod,
    arch: str,
    arch_params: dict[str, Any],
    data: Dataset,
    threat: ThreatModel,
    *,
    device: str | torch.device = "cpu",
    devices: int = 1,
    progress: Progress | None = None,
    keep_at: str | Path | None = None,
    keep_every: float = 60.0,
    **settings: Any,
) -> Trained:
    """Train ``arch`` on ``data`` with ``method`` against ``threat`` and select an epoch on held-out examples.

    ``settings`` are the fields of `Settings`. The same arguments give bit-identical weights on one machine.
    ``progress(done, total, info)`` is called after every step. With ``keep_at`` (where the checkpoint will go) the
    state is written beside it every ``keep_every`` seconds and after each epoch, or when a fit method keeps one; the
    same call again goes on from there, and ends as if it had never been killed. Raises `DivergedError` when loss or
    weights stop being finite (it carries the best epoch so far), `UsageError` for settings that cannot be,
    `ContractError` for a method that breaks its contract, `InputError` for a state that belongs to another training.
    """
    composed = method if isinstance(method, FitMethod) else as_composed(method)
    validation = settings.pop("validation", None)
    if validation is None:
        validation = 0 if composed.select == "last" else default_size(data)
    chosen = Settings(validation=validation, **settings)
    _refuse(composed, chosen, threat, devices)
    kept, held = hold_out(data, validation, chosen.seed)
    launch = Launch(device, chosen.precision, devices)
    base, *modifiers = described(composed)
    trained = Trained(
        module=initial_module(arch, arch_params, data, chosen.seed).to(launch.device),
        arch=arch,
        arch_params=dict(arch_params),
        num_classes=data.num_classes,
        input_shape=data.input_shape,
        defense=base["name"],
        params=base["params"],
        modifiers=modifiers,
        settings=asdict(chosen) | ({"devices": devices} if devices > 1 else {}),
        threat=str(threat),
        rank=launch.rank,
        data={"name": data.name, "subset": data.subset, "n": len(data), "fingerprint": data.fingerprint},
    )
    store = Store(keep_at, request_of(trained), keep_every) if keep_at is not None else None
    began = time.perf_counter()
    keep_memory()
    state = store.load() if store is not None else None
    run = _in_flight(composed, trained, chosen, kept, held, threat, launch, progress, store, state)
    # cudnn may otherwise choose another algorithm, and so other last bits, in the next run
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
        run.fit()
    trained.seconds = time.perf_counter() - began
    trained.module.load_state_dict(trained.best_state)
    trained.module.eval().requires_grad_(False)
    launch.wait()
    return trained


def initial_module(arch: str, arch_params: dict[str, Any], data: Dataset, seed: int) -> nn.Module:
    """The untrained network, weights drawn by ``seed``; raises `InputError` when it cannot be built for ``data``."""
    return build(arch, arch_params, num_classes=data.num_classes, input_shape=data.input_shape, seed=seed)


def request_of(trained: Trained) -> dict[str, Any]:
    """Everything that decides the weights."""
    names = ("arch", "arch_params", "defense", "params", "modifiers", "settings", "threat", "data")
    return {name: getattr(trained, name) for name in names}


def _refuse(method: Composed | FitMethod, settings: Settings, threat: ThreatModel, devices: int) -> None:
    """What no training can do, with the reason."""
    parts = method.parts if isinstance(method, Composed) else ((defense_name(method), method),)
    for name, part in parts:
        if threat.norm not in part.norms:
            raise UsageError(f"{name} is made for {' and '.join(part.norms)}, not for {threat}; choose such a threat.")
    if isinstance(method, FitMethod):
        if devices > 1:
            raise UsageError(f"{parts[0][0]} is a fit method, whose loop runs in one process; leave --devices out.")
        return
    if devices > 1 and min(LEAST, settings.batch_size) < 2 * devices:
        raise UsageError(
            f"{devices} devices need batches of at least {2 * devices} examples, two for each; batch_size is "
            f"{settings.batch_size}, and the last batch of an epoch may have {LEAST}."
        )
    if method.second_order and settings.precision != "fp32":
        raise UsageError("this method differentiates gradients, which bf16 does not survive; use --precision fp32.")
    if method.second_order and settings.compile:
        raise UsageError("this method differentiates gradients, which compiled modules cannot; leave --compile out.")
    if method.batch_coupled and devices > 1:
        raise UsageError(
            "this method's loss couples the examples of a batch, and each of several devices sees only its part; use "
            "one device."
        )


def _in_flight(
    method: Composed | FitMethod,
    trained: Trained,
    settings: Settings,
    data: Dataset,
    held: Dataset | None,
    threat: ThreatModel,
    launch: Launch,
    progress: Progress | None,
    store: Store | None,
    state: dict[str, Any] | None,
) -> Run | Fit:
    """The training where ``state`` left it, or at its beginning."""

    def order(epoch: int) -> list[Tensor]:
        return [rows.to(launch.device) for rows in shuffled(data.ids, epoch, settings.batch_size, settings.seed)]

    shown = progress if launch.first else None
    parts = _parts(trained, settings, data, threat, launch)
    if isinstance(method, FitMethod):
        fit = Fit(
            **parts, held=held, method=method, trained=trained, settings=settings, loop=settings, launch=launch,
            order=order, progress=shown, store=store,
        )  # fmt: skip
        if state is not None:
            fit.take_up(state)
        return fit
    total = settings.epochs * len(order(0)) * method.replays
    context = Context(**parts, total=total, batches=lambda epoch: iter(order(epoch)), resuming=state is not None)
    run = Run(method, trained, settings, data, held, context, launch, shown, store)
    if state is not None:
        resume(run, state)
    return run


def _parts(trained: Trained, settings: Settings, data: Dataset, threat: ThreatModel, launch: Launch) -> dict[str, Any]:
    """The fields of `Training`, which every method sees."""
    before = Passes()

    def fresh(name: str) -> nn.Module:
        return initial_module(trained.arch, trained.arch_params, data, generator_seed(settings.seed, name) >> 31)

    def other(name: str, params: dict[str, Any], on: Dataset = data) -> nn.Module:
        recipe: dict[str, Any] = asdict(settings)
        recipe |= {"validation": 0, "seed": generator_seed(settings.seed, name) >> 31}
        made = make_trainable(name, (), params)
        found = train(made, trained.arch, trained.arch_params, on, threat, device=launch.device, **recipe)
        before.forward += found.forward + found.forward_before
        before.backward += found.backward + found.backward_before
        return found.module

    return {
        "module": trained.module,
        "threat": threat,
        "data": data,
        "num_classes": data.num_classes,
        "input_shape": data.input_shape,
        "epochs": settings.epochs,
        "noise": Noise(settings.seed, "train/setup"),
        "device": launch.device,
        "build": fresh,
        "train_other": other,
        "before": before,
    }
