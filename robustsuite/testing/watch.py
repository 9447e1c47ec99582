"""Catches what a plugin must leave alone: its inputs, the model, and everything global."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustsuite.testing.finding import expect

_REMEDIES = {
    "wrote": "Work on a copy (x.clone()) and write in place into nothing that was handed in.",
    "drew": "Take every random number from the noise that is handed in: noise.uniform(shape), noise.normal(shape).",
    "left": "Leave the model as it was; an attack or certifier only asks it.",
    "switched": "Undo every global switch before returning.",
}


_UNSEEN = 1_876_543_211


class Watch:
    """Context that remembers tensors, a module and global state, and says what has changed when it ends.

    Inside, the global generators are in a state that no plugin has seen, so that seeding them shows too; whatever
    happens, they and the global switches are put back.
    """

    def __init__(self, module: nn.Module | None = None, **tensors: Tensor) -> None:
        self.module = module
        self.tensors = {name: (t, t.clone(), t.requires_grad) for name, t in tensors.items()}
        self.found: list[str] = []
        if module is not None:
            self.state = {name: t.clone() for name, t in module.state_dict().items()}
            self.modes = [m.training for m in module.modules()]
            self.wanted = [p.requires_grad for p in module.parameters()]
            self.grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]

    def __enter__(self) -> "Watch":
        self.outside = _generators()
        self.switches = _switches()
        torch.manual_seed(_UNSEEN)
        np.random.seed(_UNSEEN)  # noqa: NPY002 -- the legacy global generator is what is watched
        random.seed(_UNSEEN)
        self.inside = _generators()
        return self

    def __exit__(self, *exc: object) -> None:
        self.found = self._changes()
        torch.set_rng_state(self.outside[0])
        np.random.set_state(self.outside[1])  # noqa: NPY002
        random.setstate(self.outside[2])
        torch.set_grad_enabled(self.switches["grad mode"])
        torch.set_default_dtype(self.switches["default dtype"])
        torch.set_num_threads(self.switches["threads"])
        torch.use_deterministic_algorithms(self.switches["deterministic algorithms"])
        torch.backends.cuda.matmul.allow_tf32 = self.switches["TF32"]

    def _changes(self) -> list[str]:
        """One phrase for each thing that is not as it was; the first word is the kind."""
        found = [
            f"wrote into {name}"
            for name, (tensor, copy, wants) in self.tensors.items()
            if not _same(tensor, copy) or tensor.requires_grad != wants
        ]
        now = _generators()
        same = torch.equal(now[0], self.inside[0]), repr(now[1]) == repr(self.inside[1]), now[2] == self.inside[2]
        for name, untouched in zip(("torch", "NumPy", "Python"), same, strict=True):
            if not untouched:
                found.append(f"drew from (or seeded) {name}'s global generator")
        if self.switches != _switches():
            found.append(f"switched a global setting ({_first_difference(self.switches, _switches())})")
        return found + (self._model_changes(self.module) if self.module is not None else [])

    def _model_changes(self, module: nn.Module) -> list[str]:
        found = []
        now = module.state_dict()
        moved = [name for name, t in self.state.items() if name not in now or not _same(t, now[name])]
        if moved:
            found.append(f"left the model's {', '.join(moved[:3])} changed")
        if self.modes != [m.training for m in module.modules()]:
            found.append("left the model in another mode (train instead of eval, or the reverse)")
        if self.wanted != [p.requires_grad for p in module.parameters()]:
            found.append("left requires_grad of the model's parameters changed")
        grads = [p.grad for p in module.parameters()]
        if not all(_same(a, b) for a, b in zip(self.grads, grads, strict=True)):
            found.append("left another .grad on the model's parameters (loss.backward() writes them)")
        return found

    def expect_nothing(self) -> str:
        """Raise `Violation` naming what has changed."""
        found = self.found
        remedies = dict.fromkeys(_REMEDIES[phrase.split()[0]] for phrase in found)
        expect(not found, f"it {'; it '.join(found)}.", " ".join(remedies))
        return "inputs, model, generators and global switches are as they were"


def _generators() -> tuple[Tensor, dict[str, Any], Any]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return torch.get_rng_state(), dict(numpy_state), random.getstate()


def _switches() -> dict[str, Any]:
    return {
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "TF32": torch.backends.cuda.matmul.allow_tf32,
    }


def _first_difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    return next(f"{k}: {before[k]} became {after[k]}" for k in before if before[k] != after[k])


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5)))
