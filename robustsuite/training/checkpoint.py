"""A training written to disk: weights, and the sidecar that says how to load them and where they come from."""

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from robustsuite.defenses.services import Fitted
from robustsuite.models.checkpoint import read_state
from robustsuite.models.companion import pin
from robustsuite.models.sidecar import Sidecar, beside, find_sidecar, save_checkpoint, save_weights
from robustsuite.registry import DEFENSES
from robustsuite.training.trained import State, Trained

Which = Literal["best", "last"]


def save_trained(trained: Trained, path: str | Path, which: Which = "best") -> Path:
    """Write the ``best`` (selected) or ``last`` epoch's weights as safetensors with a sidecar; return the former.

    Of a `Fitted` they are those of its network; its other parts lie beside them, as ``PATH.PARAMETER.safetensors``.
    Raises `PrerequisiteError` when the files cannot be written.
    """
    state = trained.best_state if which == "best" else trained.last_state
    sidecar = sidecar_of(trained, which)
    if trained.fitted is None:
        return save_checkpoint(path, state, sidecar)
    fitted, path = trained.fitted, Path(path)
    wrap = _with_files(fitted, state, sidecar, path.with_name(path.name.removesuffix(".safetensors")))
    network = _under(fitted.network, state)
    if fitted.source:
        source = find_sidecar(fitted.source)
        network = read_state(fitted.source).state
        if source is not None:
            defense = (sidecar.defense or {}) | {"network": source.defense}
            sidecar = source.model_copy(update={"defense": defense})
    return save_checkpoint(path, network, sidecar.model_copy(update={"wrap": wrap}))


def _with_files(fitted: Fitted, state: State, own: Sidecar, stem: Path) -> dict[str, Any]:
    """Write the parts that the wrap names; its parameters, with their paths and hashes filled in."""
    wrap, folder = dict(fitted.wrap), stem.parent
    for parameter, part in fitted.files.items():
        file = stem.with_name(f"{stem.name}.{parameter}.safetensors")
        if parameter in fitted.networks:
            save_checkpoint(file, _under(part, state), own.model_copy(update={"defense": None}))
        else:
            save_weights(file, _under(part, state))
        name, _, place = parameter.partition(".")
        wrap[name] = [*wrap.get(name, []), str(file)] if place else str(file)
    known = {field.name for field in dataclasses.fields(DEFENSES.get(wrap["name"]).target)}
    for name in dict.fromkeys(parameter.partition(".")[0] for parameter in (*fitted.files, *fitted.paths)):
        several = isinstance(wrap[name], list)
        files = wrap[name] if several else [wrap[name]]
        hashes, placed = [pin(file) for file in files], [beside(file, folder) for file in files]
        if f"{name}_sha256" in known:
            wrap[f"{name}_sha256"] = hashes if several else hashes[0]
        wrap[name] = placed if several else placed[0]
    return wrap


def _under(part: str, state: State) -> State:
    """The weights of the submodule ``part``."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


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
        "passes": trained.passes,
    }
    parts = (trained.defense, *(modifier["name"] for modifier in trained.modifiers))
    facts = {name: DEFENSES.get(name).facts for name in parts if name in DEFENSES}  # others are objects of a script
    known = {name: said["fidelity"] for name, said in facts.items() if "fidelity" in said}
    if known:
        defense["fidelity"] = known
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
