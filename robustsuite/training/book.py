"""The epochs of a training as they end: validated, entered, the best of them kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.context import Training
from robustsuite.models.loading import fits
from robustsuite.noise import Noise
from robustsuite.training.launch import Launch
from robustsuite.training.monitors import MONITORS
from robustsuite.training.settings import Settings
from robustsuite.training.trained import DivergedError, Epoch, Trained
from robustsuite.training.validation import Scores, scores


@dataclass
class Book:
    """What is known of a training so far goes into ``trained``; epochs are compared by what ``select`` says."""

    trained: Trained
    settings: Settings
    held: Dataset | None
    training: Training
    launch: Launch
    select: Literal["robust", "clean", "last"]
    monitors: Sequence[str] = ()

    def enter(self, number: int, module: nn.Module, terms: dict[str, float]) -> None:
        """Validate ``module``, book the epoch, and remember its weights when they are the best so far.

        Raises `DivergedError` when a weight is not finite.
        """
        state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        broken = [n for n, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            raise self.diverged(f"after epoch {number} the weights are no longer finite ({', '.join(broken[:4])})")
        found = self.validate(module, robust=self.select == "robust" or number == self.settings.epochs)
        trained, training = self.trained, self.training
        monitored = {
            name: MONITORS[name](module, self.held or training.data, training.threat) for name in self.monitors
        }
        trained.history.append(Epoch(number, terms, *found, **monitored))
        trained.last_state = state
        trained.forward, trained.backward = self.launch.total(training.passes.forward, training.passes.backward)
        trained.forward_before, trained.backward_before = self.launch.total(
            training.before.forward, training.before.backward
        )
        if self._score(number) >= self._score(trained.best):
            trained.best, trained.best_state = number, state

    def validate(self, module: nn.Module, *, robust: bool) -> Scores:
        """What the held-out examples say; nothing when there are none."""
        if self.held is None:
            return Scores(None, None, None, None)
        noise = Noise(self.settings.seed, "train/validation")
        return scores(module, self.held, self.training.threat, noise, robust=robust, device=self.launch.device)

    def diverged(self, what: str) -> DivergedError:
        """The error that ends the training, with the best epoch so far in it."""
        trained = self.trained
        best = trained if trained.best_state and fits(trained.module.state_dict(), trained.best_state) else None
        if best is not None:
            best.module.load_state_dict(best.best_state)
            best.module.eval().requires_grad_(False)
        kept = f"epoch {best.best} is kept as the best so far" if best else "no epoch was finished"
        return DivergedError(
            f"{what}; {kept}. Lower the learning rate (now {self.settings.lr:g}) or bound the gradient (clip).", best
        )

    def _score(self, number: int) -> tuple[float, float]:
        """What epochs are compared by; a later epoch wins a tie."""
        if number == 0:
            return -1.0, -1.0
        epoch = self.trained.history[number - 1]
        if self.held is None or self.select == "last":
            return float(number), 0.0
        if self.select == "clean":
            return epoch.clean_accuracy or 0.0, 0.0
        return epoch.robust_accuracy or 0.0, epoch.clean_accuracy or 0.0
