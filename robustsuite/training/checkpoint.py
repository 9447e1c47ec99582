"""A training written to disk: weights, and the sidecar that says how to load them and where they come from."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from robustsuite.models.sidecar import Sidecar, save_checkpoint
from robustsuite.training.trained import Trained

Which = Literal["best", "last"]


def save_trained(trained: Trained, path: str | Path, which: Which = "best") -> Path:
    """Write the ``best`` (selected) or ``last`` epoch's weights as safetensors with a sidecar; return the former.

    Raises `PrerequisiteError` when the files cannot be written.
    """
    state = trained.best_state if which == "best" else trained.last_state
    return save_checkpoint(path, state, sidecar_of(trained, which))


def sidecar_of(trained: Trained, which: Which = "best") -> Sidecar:
    """What the sidecar says: how to load the weights, and everything that repeats the training.

    No time and no machine: the sidecar goes into records, and equal trainings must give equal records.
    """
    defense: dict[str, Any] = {
        "name": trained.defense,
        "params": trained.params,
        "modifiers": trained.modifiers,
        "threat": trained.threat,
        "settings": trained.settings,
        "data": trained.data,
        "epoch": trained.best if which == "best" else len(trained.history),
        "held_out": {name: _held_out(trained, number) for name, number in _reported(trained).items()},
        "passes": {"forward": trained.forward, "backward": trained.backward},
    }
    shape = trained.input_shape
    return Sidecar(
        arch=trained.arch,
        arch_params=trained.arch_params,
        num_classes=trained.num_classes,
        input_shape=(shape[0], shape[1], shape[2]),
        defense=defense,
    )


def _reported(trained: Trained) -> dict[str, int]:
    return {"best": trained.best, "last": len(trained.history)}


def _held_out(trained: Trained, number: int) -> dict[str, Any]:
    """The epoch's accuracies on held-out examples, those that were measured."""
    epoch = asdict(trained.history[number - 1])
    return {k: epoch[k] for k in ("clean_accuracy", "robust_accuracy") if epoch[k] is not None}
