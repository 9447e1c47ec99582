"""One training in flight: epochs, steps, the closure, and the checks that stop it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.bounds.graph import Graph, trace
from robustsuite.bounds.ibp import ibp_margins
from robustsuite.data.dataset import Dataset
from robustsuite.defenses.base import Step, StepMethod, reduce_terms
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Passes
from robustsuite.noise import Noise, fork_global
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise
from robustsuite.training.optim import make_optimizer, schedule_factor
from robustsuite.training.trained import DivergedError, Epoch, Trained
from robustsuite.training.validation import accuracies

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """Everything about a training but method, model, data and threat. `clip` bounds the gradient's norm (0: off).

    `validation`: how many examples are held out to select the epoch by (None: a tenth, at most 200, where the method
    selects at all).
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.05
    optimizer: str = "sgd"
    schedule: str = "one_cycle"
    weight_decay: float = 5e-4
    clip: float = 0.0
    seed: int = 0
    validation: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UsageError(f"epochs and batch size must be at least 1, got {self.epochs} and {self.batch_size}.")
        if self.lr < 0 or self.weight_decay < 0 or self.clip < 0:
            raise UsageError("lr, weight decay and clip must not be negative.")


def shuffled(ids: Tensor, epoch: int, batch_size: int, seed: int) -> list[Tensor]:
    """Positions of one epoch in batches, ordered by (seed, example id, epoch).

    A last batch of one joins the batch before it: batch norm cannot normalise a single example.
    """
    keys = Noise(seed, "train/shuffle").at(ids).bits(2, draw=epoch)
    order = (keys[:, 0] << 31 | keys[:, 1] >> 1).argsort(stable=True)
    batches = list(order.split(batch_size))
    if len(batches) > 1 and batch_size > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@dataclass
class Run:
    """A training in flight. Forward and backward go through `module` alone and the optimiser through `_update`, so that
    a launcher (Fabric) can wrap both; perturbations are made on the unwrapped module.
    """

    method: StepMethod
    trained: Trained
    settings: Settings
    data: Dataset
    held: Dataset | None
    threat: ThreatModel
    device: torch.device
    progress: Progress | None
    done: int = 0
    passes: Passes = field(default_factory=Passes)

    def __post_init__(self) -> None:
        self.module = self.trained.module
        self.optimizer = make_optimizer(
            self.settings.optimizer, self.module.parameters(), self.settings.lr, self.settings.weight_decay
        )
        self.factor = schedule_factor(self.settings.schedule)
        self.x, self.y, self.ids = (t.to(self.device) for t in (self.data.x, self.data.y, self.data.ids))
        self.total = self.settings.epochs * len(shuffled(self.data.ids, 0, self.settings.batch_size, 0))
        self._graph: Graph | None = None

    def fit(self) -> None:
        """All epochs; leaves history, best and last weights in `trained`."""
        for number in range(1, self.settings.epochs + 1):
            terms = self.epoch(number)
            self._keep(number, terms)

    def epoch(self, number: int) -> dict[str, float]:
        """One pass over the data; the mean of each term over its examples."""
        self.module.train()
        sums: dict[str, float] = {}
        for rows in shuffled(self.data.ids, number, self.settings.batch_size, self.settings.seed):
            values = self.step(rows.to(self.device), number)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value * len(rows) / len(self.data)
            self.done += 1
            if self.progress is not None:
                info = {"epoch": number, "epochs": self.settings.epochs, "loss": sum(values.values()), **values}
                self.progress(self.done, self.total, info)
        return sums

    def step(self, rows: Tensor, epoch: int) -> dict[str, float]:
        """One optimiser step on the examples at ``rows``: labels, views, closure, update, post_step."""
        # Modules that draw (dropout) know only the global generator: each step gives it a seed of its own.
        with fork_global(self.settings.seed, f"train/step{self.done}"):
            step = self._begin(rows)
            step.q = self.method.labels(step)
            step.views.update({name: view.detach() for name, view in self.method.views(step).items()})
            forwards = self.passes.forward
            scalars = self.closure(step)
            forwards = self.passes.forward - forwards
            values = {name: float(scalar.detach()) for name, scalar in scalars.items()}
            self._check(values, step, epoch)
            self._update(torch.stack(list(scalars.values())).sum(), step.progress)
            self.passes.backward += forwards
            self.method.post_step(step)
        return values

    def closure(self, step: Step) -> dict[str, Tensor]:
        """The loss terms as scalars, on the views as they are: may be evaluated again without a new attack."""
        step.forget_logits()
        try:
            terms = self.method.terms(step)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"batch norm cannot train on {len(step.y)} example at a time; raise batch_size."
            ) from error
        return reduce_terms(terms, self.method.weights(step, terms), len(step.y))

    def _begin(self, rows: Tensor) -> Step:
        y = self.y[rows]
        return Step(
            module=self.module,
            x=self.x[rows],
            y=y,
            q=nn.functional.one_hot(y, self.data.num_classes).to(self.x.dtype),
            threat=self.threat,
            progress=self.done / self.total,
            num_classes=self.data.num_classes,
            noise=Noise(self.settings.seed, f"train/step{self.done}").at(self.ids[rows]),
            inner=maximise,
            bounds=self._margins,
            passes=self.passes,
        )

    def _update(self, loss: Tensor, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self.factor(progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        self.optimizer.step()

    def _margins(self, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
        if self._graph is None:
            self._graph = trace(self.module, self.data.input_shape)
        return ibp_margins(self._graph, lower, upper, y)

    def _check(self, values: dict[str, float], step: Step, epoch: int) -> None:
        bad = {name: value for name, value in values.items() if not abs(value) < float("inf")}
        if not bad:
            return
        ids = ", ".join(str(int(i)) for i in step.noise.ids[:8])
        raise self._diverged(
            f"the loss is no longer finite at step {self.done + 1} of {self.total} (epoch {epoch}): "
            + ", ".join(f"term '{name}' is {value}" for name, value in bad.items())
            + f", on the batch of {len(step.y)} examples with the ids {ids}{', ...' if len(step.y) > 8 else ''}"
        )

    def _diverged(self, what: str) -> DivergedError:
        best = self.trained if self.trained.best_state else None
        if best is not None:
            best.module.load_state_dict(best.best_state)
            best.module.eval().requires_grad_(False)
        kept = f"epoch {best.best} is kept as the best so far" if best else "no epoch was finished"
        return DivergedError(
            f"{what}; {kept}. Lower the learning rate (now {self.settings.lr:g}) or bound the gradient (clip).", best
        )

    def _keep(self, number: int, terms: dict[str, float]) -> None:
        """Validate, book the epoch, and remember its weights when they are the best so far."""
        state = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        broken = [n for n, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            raise self._diverged(f"after epoch {number} the weights are no longer finite ({', '.join(broken[:4])})")
        clean, robust = self._validate(number)
        self.trained.history.append(Epoch(number, terms, clean, robust))
        self.trained.last_state = state
        self.trained.forward, self.trained.backward = self.passes.forward, self.passes.backward
        if self._score(number) >= self._score(self.trained.best):
            self.trained.best, self.trained.best_state = number, state

    def _validate(self, number: int) -> tuple[float | None, float | None]:
        if self.held is None:
            return None, None
        robust = self.method.select == "robust" or number == self.settings.epochs
        noise = Noise(self.settings.seed, "train/validation")
        return accuracies(self.module, self.held, self.threat, noise, robust=robust, device=self.device)

    def _score(self, number: int) -> tuple[float, float]:
        """What epochs are compared by; a later epoch wins a tie."""
        if number == 0:
            return -1.0, -1.0
        epoch = self.trained.history[number - 1]
        if self.held is None or self.method.select == "last":
            return float(number), 0.0
        if self.method.select == "clean":
            return epoch.clean_accuracy or 0.0, 0.0
        return epoch.robust_accuracy or 0.0, epoch.clean_accuracy or 0.0
