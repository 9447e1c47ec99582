"""One training in flight: epochs, steps, the closure, and the checks that stop it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.bounds.graph import Graph, trace
from robustsuite.bounds.ibp import ibp_margins
from robustsuite.data.dataset import Dataset
from robustsuite.defenses.composed import Composed
from robustsuite.defenses.context import Context
from robustsuite.defenses.step import Step, reduce_terms
from robustsuite.errors import UsageError
from robustsuite.models.classifier import Passes
from robustsuite.noise import Noise, fork_global
from robustsuite.training.inner import maximise
from robustsuite.training.launch import Launch
from robustsuite.training.modes import mode
from robustsuite.training.optim import make_optimizer, schedule_factor
from robustsuite.training.resume import state_of
from robustsuite.training.settings import Settings
from robustsuite.training.store import Store
from robustsuite.training.trained import DivergedError, Epoch, Trained
from robustsuite.training.validation import Scores, scores

Progress = Callable[[int, int, dict[str, Any]], None]
CHECK_EVERY = 16  # steps between looks at the loss on an accelerator, where each look makes the host wait
LEAST = 8  # examples in a batch


def shuffled(ids: Tensor, epoch: int, batch_size: int, seed: int) -> list[Tensor]:
    """Positions of one epoch in batches, ordered by (seed, example id, epoch).

    A last batch of less than `LEAST` joins the one before it: batch norm cannot normalise a single example, nor can
    several processes share one.
    """
    batches = list(Noise(seed, "train/shuffle").at(ids).order(epoch).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < min(LEAST, batch_size):
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@dataclass
class Run:
    """A training in flight."""

    method: Composed
    trained: Trained
    settings: Settings
    data: Dataset
    held: Dataset | None
    context: Context
    launch: Launch
    progress: Progress | None
    store: Store | None = None
    done: int = 0
    epoch: int = 1
    position: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    passes: Passes = field(default_factory=Passes)

    def __post_init__(self) -> None:
        self.module = self.trained.module
        self.device = self.launch.device
        self.x, self.y, self.ids = (t.to(self.device) for t in (self.data.x, self.data.y, self.data.ids))
        if self.settings.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.compiled = torch.compile(self.module) if self.settings.compile else None
        self.method.setup(self.context)
        self.optimizer = make_optimizer(self.settings, self.module, self.context.auxiliaries.values())
        self.factor = schedule_factor(self.settings.schedule)
        self.total = self.context.total
        self._graph: Graph | None = None
        self._unchecked: list[tuple[int, list[str], Tensor, Tensor]] = []

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Positions of an epoch's batches, each as often as the method replays it."""
        for rows in self.context.batches(epoch):
            for _ in range(self.method.replays):
                yield rows

    def fit(self) -> None:
        """All epochs that are left; leaves history, best and last weights in `trained`."""
        while self.epoch <= self.settings.epochs:
            self._epoch()
            self.context.epoch, self.context.done = self.epoch, self.done
            self.method.epoch_end(self.context)
            self._keep(self.epoch)
            self.epoch, self.position, self.sums = self.epoch + 1, 0, {}
            self._save(always=True)

    def _epoch(self) -> None:
        self._train_mode()
        for place, rows in enumerate(self.batches(self.epoch)):
            if place < self.position:
                continue
            self.step(rows)
            self.position = place + 1
            self._save()
        self._check()

    def _save(self, always: bool = False) -> None:
        if self.store is not None and self.launch.first and (always or self.store.due()):
            self._check()
            self.store.save(state_of(self))

    def _train_mode(self) -> None:
        self.module.train()
        for auxiliary in self.context.auxiliaries.values():
            auxiliary.module.train(auxiliary.trained)

    def step(self, rows: Tensor) -> None:
        """One optimiser step on the examples at ``rows``: data, labels, views, closure, update, post_step."""
        # Modules that draw (dropout) know only the global generator: each step gives it a seed of its own.
        with fork_global(self.settings.seed, f"train/step{self.done}"):
            step = self._begin(rows)
            self.method.data(step)
            step.q = self.method.labels(step)
            step.views.update(self.method.views(step))
            scalars = self._update(step)
        self.method.post_step(step)
        self.done += 1
        self._note(step, scalars, len(rows))

    def closure(self, step: Step) -> dict[str, Tensor]:
        """The loss terms as scalars, on the views as they are: may be evaluated again without a new attack."""
        step.forget_logits()
        # The same dropout masks however often it is evaluated
        with fork_global(self.settings.seed, f"train/step{self.done}/closure"):
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
        mine = self.launch.share(rows)
        part = len(mine) / len(rows)
        y = self.y[mine]
        return Step(
            module=self.module,
            x=self.x[mine],
            y=y,
            q=nn.functional.one_hot(y, self.data.num_classes).to(self.x.dtype),
            threat=self.context.threat,
            progress=self.done / self.total,
            num_classes=self.data.num_classes,
            noise=Noise(self.settings.seed, f"train/step{self.done}").at(self.ids[mine]),
            inner=maximise,
            bounds=self._margins,
            epoch=self.epoch,
            aux=self.context.aux,
            memories=self.context.memories,
            joint=self.method.joint,
            adjust=self.method.inner,
            autocast=self.launch.autocast,
            compiled=self.compiled,
            reduce=lambda grads: self.launch.mean(grads, part),
            passes=self.passes,
        )

    def _update(self, step: Step) -> dict[str, Tensor]:
        """Perturb the weights, differentiate, restore, and step; batch-norm statistics move once, in the last pass."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        offsets = self.method.perturb(step, lambda: self._quiet(step))
        before = [p.detach().clone() for p in parameters] if offsets is not None else []
        with torch.no_grad():
            for parameter, offset in zip(parameters, offsets or [], strict=False):
                parameter.add_(offset)
        scalars = self.closure(step)
        self.optimizer.zero_grad(set_to_none=True)
        self.method.gradient(step, scalars)
        with torch.no_grad():
            if offsets is not None and self.method.restore == "before_update":
                for parameter, old in zip(parameters, before, strict=True):
                    parameter.copy_(old)
            self._descend(step)
            if offsets is not None and self.method.restore == "after_update":
                for parameter, offset in zip(parameters, offsets, strict=True):
                    parameter.sub_(offset)
        return scalars

    def _quiet(self, step: Step) -> Tensor:
        trained = [auxiliary.module for auxiliary in self.context.auxiliaries.values() if auxiliary.trained]
        with ExitStack() as stack:
            for module in (self.module, *trained):
                stack.enter_context(mode(module, "train_frozen"))
            return torch.stack(list(self.closure(step).values())).sum()

    def _descend(self, step: Step) -> None:
        moved = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.launch.world > 1:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in moved]
            for parameter, grad in zip(moved, step.reduce(grads), strict=True):
                parameter.grad = grad
        if self.settings.clip:
            nn.utils.clip_grad_norm_(moved, self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * group["scale"] * self.factor(step.progress)
        self.optimizer.step()

    def _margins(self, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
        if self._graph is None:
            self._graph = trace(self.module, self.data.input_shape)
        return ibp_margins(self._graph, lower, upper, y)

    def _note(self, step: Step, scalars: dict[str, Tensor], size: int) -> None:
        values = torch.stack([scalar.detach() for scalar in scalars.values()])
        if self.launch.world > 1:
            (values,) = step.reduce([values])
        self._unchecked.append((size, list(scalars), values, step.noise.ids))
        if self.device.type == "cpu" or len(self._unchecked) >= CHECK_EVERY:
            self._check()

    def _check(self) -> None:
        """Look at the losses since the last look; raises `DivergedError` at the first that is not finite."""
        first = self.done - len(self._unchecked) + 1
        for number, (size, names, tensor, ids) in enumerate(self._unchecked, first):
            values = dict(zip(names, tensor.tolist(), strict=True))
            bad = {name: value for name, value in values.items() if not abs(value) < float("inf")}
            if bad:
                shown = ", ".join(str(int(i)) for i in ids[:8])
                raise self._diverged(
                    f"the loss is no longer finite at step {number} of {self.total} (epoch {self.epoch}): "
                    + ", ".join(f"term '{name}' is {value}" for name, value in bad.items())
                    + f", on the batch of {len(ids)} examples with the ids {shown}{', ...' if len(ids) > 8 else ''}"
                )
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * size / (len(self.data) * self.method.replays)
            if self.progress is not None:
                info = {"epoch": self.epoch, "epochs": self.settings.epochs, "loss": sum(values.values()), **values}
                self.progress(number, self.total, info)
        self._unchecked = []

    def _diverged(self, what: str) -> DivergedError:
        best = self.trained if self.trained.best_state else None
        if best is not None:
            best.module.load_state_dict(best.best_state)
            best.module.eval().requires_grad_(False)
        kept = f"epoch {best.best} is kept as the best so far" if best else "no epoch was finished"
        return DivergedError(
            f"{what}; {kept}. Lower the learning rate (now {self.settings.lr:g}) or bound the gradient (clip).", best
        )

    def _keep(self, number: int) -> None:
        """Validate, book the epoch, and remember its weights when they are the best so far."""
        module = self.method.keep(self.context) or self.module
        state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        broken = [n for n, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            raise self._diverged(f"after epoch {number} the weights are no longer finite ({', '.join(broken[:4])})")
        found = self._validate(module, number)
        self.trained.history.append(Epoch(number, dict(self.sums), *found))
        self.trained.last_state = state
        self.trained.forward, self.trained.backward = self.passes.forward, self.passes.backward
        if self._score(number) >= self._score(self.trained.best):
            self.trained.best, self.trained.best_state = number, state

    def _validate(self, module: nn.Module, number: int) -> Scores:
        if self.held is None:
            return Scores(None, None, None, None)
        robust = self.method.select == "robust" or number == self.settings.epochs
        noise = Noise(self.settings.seed, "train/validation")
        return scores(module, self.held, self.context.threat, noise, robust=robust, device=self.device)

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
