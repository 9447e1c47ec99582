"""The contract of a step method: slot by slot, and through the real training loop."""

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.defenses.composed import Composed, fills
from robustsuite.defenses.context import Context
from robustsuite.defenses.step import InnerSpec, Step, Term, reduce_terms
from robustsuite.noise import Noise, fork_global
from robustsuite.registry import ARCHITECTURES
from robustsuite.testing.finding import Report, expect
from robustsuite.testing.step_values import NOT_FINITE, valid_labels, valid_terms, valid_views
from robustsuite.testing.toys import SEED, toy_data
from robustsuite.testing.watch import Watch
from robustsuite.threat import ThreatModel
from robustsuite.training.inner import maximise
from robustsuite.training.loop import train

_PROGRESS = (0.0, 0.5, 1.0)
_BATCH = 8
_THREATS = ("Linf:0.1", "L2:0.5")
_TRAINING = ("mlp", {"hidden": 16, "depth": 1})


def check_step_method(report: Report, method: Composed) -> None:
    """Add findings on every slot; the later ones only if the terms are terms at all."""
    bench = _Bench(method)
    if report.check("terms", bench.terms):
        report.check("gradients", bench.gradients)
        report.check("views", bench.views)
        report.check("repeatable", bench.repeatable)
        report.check("hands off", bench.hands_off)
        report.check("reduction", bench.reduction)
        report.check("batch of one", bench.one)
        report.check("training", bench.training)


@dataclasses.dataclass
class _Played:
    """One step as the loop makes it, and what the inner maximisation found on the way."""

    step: Step
    terms: Mapping[str, Term]
    scalars: dict[str, Tensor]
    found: list[tuple[InnerSpec, Tensor]]

    @property
    def loss(self) -> Tensor:
        return torch.stack(list(self.scalars.values())).sum()


@dataclasses.dataclass
class _Bench:
    method: Composed
    data: Dataset = dataclasses.field(default_factory=toy_data)

    @property
    def threats(self) -> tuple[str, ...]:
        """Those of `_THREATS` that the method is made for."""
        return tuple(text for text in _THREATS if text.partition(":")[0] in self.method.norms)

    def module(self) -> nn.Module:
        """A network with parameters of its own, in train mode, without batch norm or dropout."""
        with fork_global(SEED, "testing/defense"):
            return nn.Sequential(
                nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
            ).train()

    def play(self, module: nn.Module, rows: Tensor, progress: float, threat: str = "", seed: int = SEED) -> _Played:
        """The loop's order: labels, views, terms, weights, reduction."""
        threat = threat or (self.threats or _THREATS)[0]
        found: list[tuple[InnerSpec, Tensor]] = []

        def inner(step: Step, spec: InnerSpec, x: Tensor, q: Tensor) -> Tensor:
            found.append((spec, maximise(step, spec, x, q)))
            return found[-1][1]

        y = self.data.y[rows]
        q = nn.functional.one_hot(y, self.data.num_classes).float()
        context = self.context(module, threat)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.method.setup(context)
        module.load_state_dict(before)  # weights to begin with are no part of a step
        step = Step(
            module=module,
            x=self.data.x[rows].clone(),
            y=y.clone(),
            q=q,
            threat=ThreatModel.parse(threat),
            progress=progress,
            num_classes=self.data.num_classes,
            noise=Noise(seed, "testing/step").at(self.data.ids[rows]),
            inner=inner,
            graph=context.graph,
            aux=context.aux,
            memories=context.memories,
            joint=self.method.joint,
            adjust=self.method.inner,
        )
        self.method.data(step)
        size = len(step.y)
        step.q = self.method.labels(step)
        valid_labels(step.q, size, self.data.num_classes)
        views = self.method.views(step)
        valid_views(views, size)
        step.views.update({name: view.detach() for name, view in views.items()})
        terms = self.method.terms(step)
        valid_terms(terms, size)
        scalars = reduce_terms(terms, self.method.weights(step, terms), size)
        return _Played(step, terms, scalars, found)

    def context(self, module: nn.Module, threat: str) -> Context:
        """A training of two epochs as `setup` sees it; another network that it asks to be trained stays untrained."""
        rows = torch.arange(len(self.data)).split(_BATCH)
        return Context(
            module=module,
            threat=ThreatModel.parse(threat),
            data=self.data,
            num_classes=self.data.num_classes,
            input_shape=self.data.input_shape,
            epochs=2,
            total=2 * len(rows),
            noise=Noise(SEED, "testing/setup"),
            device=torch.device("cpu"),
            build=lambda name: _another(module),
            train_other=lambda name, params, data=None: _another(module),
            batches=lambda epoch: iter(rows),
        )

    def rows(self, n: int = _BATCH) -> Tensor:
        return torch.arange(n) * 5

    def terms(self) -> str:
        names: dict[str, None] = {}
        for progress in _PROGRESS:
            names |= dict.fromkeys(self.play(self.module(), self.rows(), progress).terms)
        return f"one finite value an example, [{_BATCH}]: {', '.join(names)}"

    def gradients(self) -> str:
        for progress in _PROGRESS:
            module = self.module()
            self.play(module, self.rows(), progress).loss.backward()
            grads = {name: p.grad for name, p in module.named_parameters()}
            bad = [n for n, g in grads.items() if g is not None and not bool(torch.isfinite(g).all())]
            expect(not bad, f"gradients of {', '.join(bad)} are not finite at progress {progress}.", NOT_FINITE)
            dead = [n for n, g in grads.items() if g is None or not bool(g.any())]
            expect(
                len(dead) < len(grads),
                f"no gradient reaches any parameter at progress {progress}.",
                "Compute the terms from step.logits(view) or step.forward(x); do not detach them.",
            )
        return "finite, and they reach the parameters"

    def views(self) -> str:
        told: dict[str, None] = {}
        for text in self.threats:
            played = self.play(self.module(), self.rows(), 0.5, text)
            step = played.step
            for name, attached in step.views.items():
                view = attached.detach()
                found = [spec for spec, x_adv in played.found if torch.equal(x_adv, view)]
                bounded = found[0].project if found else name.startswith("adv")
                if not bounded:
                    continue  # noisy copies and the like may lie anywhere
                scale = found[0].eps if found else 1.0
                threat = step.threat.scaled(scale)
                outside = int((~threat.contains(step.x, view)).sum())
                far = float(threat.distance(step.x, view).max())
                expect(
                    outside == 0,
                    f"{outside} of {_BATCH} images of the view '{name}' leave ball or box of {threat} "
                    f"(distance up to {far:.4g}, pixels {float(view.min()):.4g} to {float(view.max()):.4g}).",
                    "Let step.maximise(InnerSpec(...)) find it, or end with x + step.threat.project(x, delta).",
                )
                told[name] = None
        return f"{', '.join(told)} inside of ball and box" if told else "no adversarial view"

    def repeatable(self) -> str:
        for progress in _PROGRESS:
            module = self.module()
            played = self.play(module, self.rows(), progress)
            again = float(self.play(module, self.rows(), progress).loss.detach())
            first = float(played.loss.detach())
            remedy = "Draw from step.noise alone, and keep no state in the method."
            expect(first == again, f"the same step gives the loss {first:.9g}, then {again:.9g}.", remedy)
            played.step.forget_logits()
            terms = self.method.terms(played.step)
            scalars = reduce_terms(terms, self.method.weights(played.step, terms), len(played.step.y))
            closure = float(torch.stack(list(scalars.values())).sum().detach())
            expect(
                first == closure,
                f"terms, evaluated again on the same views, gives {closure:.9g} instead of {first:.9g}.",
                "Make random things in views; terms and weights are functions of the step.",
            )
        return "bit-identical, also when the terms are evaluated again"

    def hands_off(self) -> str:
        """Nothing but the graph of the loss may be left behind; .grad is the optimiser's."""
        module = self.module()
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 0.25)
        for progress in _PROGRESS:
            with Watch(module, **{"the data": self.data.x}) as watch:
                played = self.play(module, self.rows(), progress)
            watch.expect_nothing()
            same = torch.equal(played.step.x, self.data.x[self.rows()])
            same &= torch.equal(played.step.y, self.data.y[self.rows()])
            changes = any(fills(part, "data") for _, part in self.method.parts)
            expect(same or changes, "it wrote into step.x or step.y.", "Work on a copy, or fill the data slot.")
        return "parameters, their .grad, mode, inputs and generators are as they were"

    def reduction(self) -> str:
        """A batch twice over has the same mean loss, unless the method says that examples are coupled."""
        if self.method.batch_coupled:
            return "not tested: it declares batch_coupled"
        for progress in _PROGRESS:
            module = self.module()
            once = float(self.play(module, self.rows(), progress).loss.detach())
            twice = float(self.play(module, self.rows().repeat(2), progress).loss.detach())
            expect(
                abs(once - twice) <= 1e-4 * max(1.0, abs(once)),
                f"the loss of a batch is {once:.6g}, of the same batch twice over {twice:.6g}.",
                "Each term holds one example's own loss: no sums, means or norms over the batch. A loss that couples "
                "examples on purpose declares batch_coupled = True.",
            )
        return "a batch twice over has the same loss"

    def one(self) -> str:
        for progress in _PROGRESS:
            self.play(self.module(), self.rows(1), progress)
        return "works"

    def training(self) -> str:
        """Some epochs of the real loop lower the loss that is trained on."""
        arch, params = _TRAINING
        threat = str(ThreatModel.parse((self.threats or _THREATS)[0]).scaled(0.5))
        shape, classes = self.data.input_shape, self.data.num_classes
        factory = ARCHITECTURES.get(arch).target
        trained = train(
            self.method,
            arch,
            params,
            self.data,
            ThreatModel.parse(threat),
            epochs=8,
            batch_size=16,
            lr=0.1,
            seed=SEED,
            validation=0,
        )
        with fork_global(SEED, "train/init"):
            fresh = factory(num_classes=classes, input_shape=shape, **params)
        before = float(self.play(copy.deepcopy(fresh), self.rows(16), 1.0, threat).loss.detach())
        fresh.load_state_dict(trained.last_state)
        after = float(self.play(copy.deepcopy(fresh), self.rows(16), 1.0, threat).loss.detach())
        companions = self.context(copy.deepcopy(fresh), threat)  # setup may give it other weights
        self.method.setup(companions)
        own = bool(companions.aux) or any(companions.memories.values())
        expect(
            after < before or own,  # what was learnt along with the network is not there for the fresh one
            f"8 epochs on an easy toy problem move the loss from {before:.4g} to {after:.4g}.",
            "Check the signs of the terms: the loop minimises their weighted sum.",
        )
        with torch.no_grad():
            right = float((fresh.eval()(self.data.x).argmax(1) == self.data.y).float().mean())
        expect(
            right > 1 / classes + 0.2,
            f"8 epochs on an easy toy problem end at {right:.0%} right answers, chance is {1 / classes:.0%}.",
            "Check the signs of the terms, and that they know the labels.",
        )
        return f"8 epochs of a toy problem: loss {before:.4g} to {after:.4g}, {right:.0%} right answers"


def _another(module: nn.Module) -> nn.Module:
    """The architecture of ``module`` with other weights."""
    other = copy.deepcopy(module)
    with fork_global(SEED, "testing/another"):
        for part in other.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
    return other
