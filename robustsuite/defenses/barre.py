"""BARRE: the members of a randomised ensemble, trained one after the other against all of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.base import FitMethod, InnerSpec, Step, Term
from robustsuite.defenses.ensemble_sampling import in_shares, optimal_sampling
from robustsuite.defenses.losses import ce
from robustsuite.defenses.services import Fitted, Services
from robustsuite.errors import UsageError
from robustsuite.models.arc import arc
from robustsuite.models.randomized_ensemble import MeanProbability
from robustsuite.noise import Noise
from robustsuite.registry import register_defense
from robustsuite.threat import Norm


@register_defense(
    "barre",
    kind="fit",
    paper="Dbouk, Shanbhag 2023, arXiv:2302.01375, algorithm 2",
    cost="1 + steps (members + 1) / 2 passes on average, and optimal sampling",
    defaults={"cifar10": {"members": 5}},
    fidelity="authors' code",
)
@dataclass(frozen=True)
class BARRE(FitMethod):
    """Boosting: each member begins as a copy of the last, and learns what attacks the ensemble of all so far.

    Dbouk, Shanbhag, "On the Robustness of Randomized Ensembles to Adversarial Perturbations" (ICML 2023). The attack is
    PGD (`steps`, 10, of `alpha`, 0.25, in units of eps, from the half ball) on the logarithm of the members' mean
    probabilities; it maximises, and the new member alone minimises, the cross-entropy plus `other` (1) times the mean
    cross-entropy of the other classes under the negated logits. The recipe's epochs are shared out evenly among the
    `members` (5; theirs are 100 each), the learning rate's schedule begins anew with each.

    The probabilities are equal, until there are `osp_from` (4) members: from the middle of such a member's epochs on,
    every `osp_every` (10) and after the last, `osp_steps` (10) steps of projected subgradient descent lower the
    expected error on `osp_examples` (2048) of the training images under ARC, in steps of `osp_lr` (10) times the
    learning rate over the number of the step. Where examples are held out, each member keeps the weights and the
    probabilities of its epoch with the best expected accuracy under ARC (10 steps of eps). Here the order in which ARC
    takes the members is drawn as in their code, and weights are rounded to hundredths; members with none are left out.

    The result is a `randomized_ensemble`. With one member it is adversarial training.
    """

    members: int = 5
    steps: int = 10
    alpha: float = 0.25
    other: float = 1.0
    osp_from: int = 4
    osp_every: int = 10
    osp_steps: int = 10
    osp_lr: float = 10.0
    osp_examples: int = 2048
    select: ClassVar[Literal["robust", "clean", "last"]] = "last"
    norms: ClassVar[tuple[Norm, ...]] = ("Linf", "L2")

    def __post_init__(self) -> None:
        if min(self.members, self.osp_from, self.osp_every, self.osp_steps, self.osp_examples) < 1:
            raise UsageError(f"barre needs members, osp_from, osp_every, osp_steps and osp_examples >= 1, got {self}.")
        if min(self.steps, self.alpha, self.other, self.osp_lr) < 0:
            raise UsageError(f"barre needs steps, alpha, other and osp_lr >= 0, got {self}.")

    def fit(self, services: Services) -> Fitted:
        """Member after member."""
        if services.epochs < self.members:
            raise UsageError(f"barre needs an epoch for each of its {self.members} members, got {services.epochs}.")
        boosting = _Boosting(self, services)
        for epoch in range(boosting.done + 1, services.epochs + 1):
            boosting.epoch(epoch)
        return boosting.result()


@dataclass
class _Boosting:
    """The members so far, frozen but the last; the best epoch of that one."""

    method: BARRE
    services: Services
    members: list[nn.Module] = field(default_factory=list)
    done: int = 0

    def __post_init__(self) -> None:
        services, count = self.services, self.method.members
        self.ends = [services.epochs * m // count for m in range(count + 1)]
        kept = services.kept
        for _ in range(len(kept["members"]) if kept else 1):
            self._add()
        if kept:
            for member, state in zip(self.members, kept["members"], strict=True):
                member.load_state_dict(state)
            self.optimizer.load_state_dict(kept["optimizer"])
            self.weights, self.best, self.done = kept["weights"].cpu(), kept["best"], kept["epoch"]

    def epoch(self, epoch: int) -> None:
        """One of all epochs; the member that it belongs to is added at its first."""
        if epoch > self.ends[len(self.members)]:
            self._add()
        count, method = len(self.members), self.method
        begin, end = self.ends[count - 1], self.ends[count]
        for step in self.services.batches(epoch):
            step.progress = (step.progress * self.services.epochs - begin) / (end - begin)
            self.services.descend(step, self.optimizer, self._terms(step))
        since = epoch - begin - (end - begin) // 2
        due = epoch == end or (since > 0 and since % method.osp_every == 0)
        if count >= method.osp_from and due:
            self._sample()
        self._choose(epoch == end)
        self.services.report(epoch, result=self.result())
        self.services.keep(self._state(epoch))

    def result(self) -> Fitted:
        """The ensemble of the members with a share."""
        shares = in_shares(self.weights)
        used = [m for m, share in enumerate(shares) if share]
        whole = MeanProbability([self.members[m] for m in used], [shares[m] for m in used])
        wrap = {"name": "randomized_ensemble", "weights": [float(shares[m]) for m in used]}
        files = {f"members.{place - 1}": f"members.{place}" for place in range(1, len(used))}
        return Fitted(whole, "members.0", wrap, files, tuple(files))

    def _add(self) -> None:
        services = self.services
        if self.members:
            last = self.members[-1]
            new = services.build(f"member{len(self.members)}").to(services.device)
            new.load_state_dict(last.state_dict())
            last.eval().requires_grad_(False)
            self.members.append(new)
        else:
            self.members.append(services.module)
        self.optimizer: Optimizer = services.optimizer(self.members[-1])
        self.weights = torch.full((len(self.members),), 1 / len(self.members), dtype=torch.float64)
        self.best: dict[str, Any] = {}

    def _terms(self, step: Step) -> dict[str, Term]:
        """The losses of the newest member on what attacks all of them."""
        weights = [(m, w) for m, w in zip(self.members, in_shares(self.weights), strict=True) if w]
        newest, method = self.members[-1], self.method
        whole = MeanProbability([m for m, _ in weights], [w for _, w in weights]) if self.members[1:] else newest

        def objective(logits: Tensor) -> Tensor:
            return ce(logits, step.q) + method.other * others(logits, step.y)

        spec = InnerSpec(objective, method.steps, method.alpha, init_eps=0.5, target=whole, draw=len(self.members) - 1)
        x_adv = step.maximise(spec)
        # The step counts a pass of the ensemble as one, and it is one of each member
        more = method.steps * len(step.y) * (len(weights) - 1)
        step.passes.forward, step.passes.backward = step.passes.forward + more, step.passes.backward + more
        newest.train()
        logits = step.forward(x_adv, newest)
        terms = {"ce_adv": Term(ce(logits, step.q))}
        return terms | ({"others": Term(others(logits, step.y), method.other)} if method.other else {})

    def _sample(self) -> None:
        """Set the weights by optimal sampling."""
        services, method = self.services, self.method
        rows = services.noise.child("osp").at(services.data.ids).order()[: method.osp_examples]
        subset = services.data.take(rows.cpu(), "osp")

        def errors(weights: Tensor, step: int) -> Tensor:
            noise = services.noise.child(f"osp/{len(self.members)}/{step}")
            right, _ = self._attacked(subset, weights, noise)
            return 1 - right

        rate = method.osp_lr * self.optimizer.param_groups[0]["lr"]
        self.weights = optimal_sampling(errors, self.weights, steps=method.osp_steps, rate=rate)

    def _choose(self, last: bool) -> None:
        """Remember the newest member's epoch if it is the best on held-out examples, and go back to that at its end."""
        held, newest = self.services.held, self.members[-1]
        if held is None:
            return
        _, accuracy = self._attacked(held, self.weights, self.services.noise.child("held"))
        if accuracy > self.best.get("accuracy", -1.0):
            state = {name: tensor.clone() for name, tensor in newest.state_dict().items()}
            self.best = {"accuracy": accuracy, "state": state, "weights": self.weights}
        if last:
            newest.load_state_dict(self.best["state"])
            self.weights = self.best["weights"].cpu()

    def _attacked(self, data: Dataset, weights: Tensor, noise: Noise) -> tuple[Tensor, float]:
        """Accuracies under ARC: of each member, float64 ``[M]``, and the expected one."""
        services, size = self.services, self.services.settings.batch_size
        asked = [_Asked(member.eval(), services) for member in self.members]
        shares, right = weights.tolist(), torch.zeros(len(asked), dtype=torch.float64)
        for images, labels in zip(data.x.split(size), data.y.split(size), strict=True):
            x, y = images.to(services.device), labels.to(services.device)
            x_adv = arc(asked, shares, x, y, services.threat, steps=10, alpha=1.0, classes=2, order=noise)
            right += torch.stack([(m.logits(x_adv).argmax(1) == y).double().sum() for m in asked]).cpu()
        self.members[-1].train()
        return right / len(data), float(weights @ right) / len(data)

    def _state(self, epoch: int) -> dict[str, Any]:
        members = [member.state_dict() for member in self.members]
        return {
            "members": members,
            "optimizer": self.optimizer.state_dict(),
            "weights": self.weights,
            "best": self.best,
            "epoch": epoch,
        }


@dataclass
class _Asked:
    """A member as ARC asks it; passes are the training's."""

    module: nn.Module
    services: Services

    def logits(self, x: Tensor) -> Tensor:
        return self.services.forward(x, self.module)

    def gradient(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        self.services.passes.forward += len(x)
        self.services.passes.backward += len(x)
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.module(leaf)
            (grad,) = torch.autograd.grad(losses(logits).sum(), leaf)
        return logits.detach(), grad


def others(logits: Tensor, y: Tensor) -> Tensor:
    """``mean_{k != y} -log softmax(-z)_k``, ``[B]``: large where one of the other classes has a large logit."""
    each = -(-logits).log_softmax(1)
    return (each.sum(1) - each.gather(1, y.view(-1, 1)).squeeze(1)) / (logits.shape[1] - 1)
