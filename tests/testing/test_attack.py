"""Attacks with a fault seeded into each: the suite names it in words."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from robustsuite.attacks import Attack, State, Stepper
from robustsuite.attacks.base import rows, settle
from robustsuite.attacks.slots import fresh
from robustsuite.models.classifier import Classifier, margins
from robustsuite.registry import Entry
from robustsuite.testing import check_attack

FACTS = {"norms": ("Linf",), "access": "white-box", "kind": "bounded", "min_classes": 2, "randomized": False}


@dataclass(frozen=True)
class Good(Attack):
    """One step along the gradient of the margin, as far as the ball allows."""

    def run(self, model, x, y, threat, noise):
        return x + threat.project(x, self.direction(model, x, y) * threat.radius)

    def direction(self, model, x, y):
        return model.gradient(x, lambda z: -margins(z, y))[1].sign()


def findings_of(cls, **facts):
    return check_attack(Entry("faulty", cls, FACTS | facts, "test"))


def failures(cls, **facts):
    return {f.name.removeprefix("Linf: "): f for f in findings_of(cls, **facts) if not f.ok}


def make(run, **parts):
    """An attack class with this `run`."""
    cls = type("Faulty", (Good,), {"run": run, "__doc__": "Has a fault.", "__module__": __name__, **parts})
    return dataclass(frozen=True)(cls)


def run_of(name):
    """The runs with a fault, by its name."""

    def leaves_the_ball(self, model, x, y, threat, noise):
        return (x + 1.2 * threat.radius * self.direction(model, x, y)).clamp(0, 1)

    def leaves_the_box(self, model, x, y, threat, noise):
        return x + threat.radius * self.direction(model, x, y)

    def works_in_place(self, model, x, y, threat, noise):
        delta = threat.project(x, self.direction(model, x, y) * threat.radius)
        return x.add_(delta)

    def global_rng(self, model, x, y, threat, noise):
        return x + threat.project(x, (2 * torch.rand(x.shape) - 1) * threat.radius)

    def seeds_globally(self, model, x, y, threat, noise):
        torch.manual_seed(0)
        return Good.run(self, model, x, y, threat, noise)

    def sees_neighbours(self, model, x, y, threat, noise):
        grad = model.gradient(x, lambda z: -margins(z, y))[1]
        return x + threat.project(x, grad / grad.abs().max() * threat.radius)

    def keyed_by_row(self, model, x, y, threat, noise):
        rows_noise = noise.noise.at(torch.arange(len(x))).uniform(x.shape[1:])
        return x + threat.project(x, (2 * rows_noise - 1) * threat.radius)

    def nan(self, model, x, y, threat, noise):
        x_adv = Good.run(self, model, x, y, threat, noise)
        x_adv[0, 0, 0, 0] = float("nan")
        return x_adv

    def wrong_shape(self, model, x, y, threat, noise):
        return Good.run(self, model, x, y, threat, noise).flatten(1)

    def wrong_type(self, model, x, y, threat, noise):
        return Good.run(self, model, x, y, threat, noise).double()

    def returns_a_pair(self, model, x, y, threat, noise):
        return Good.run(self, model, x, y, threat, noise), y

    def crashes(self, model, x, y, threat, noise):
        return x / self.missing

    def exits(self, model, x, y, threat, noise):
        raise SystemExit("no licence")

    def divides_by_eps(self, model, x, y, threat, noise):
        delta = threat.project(x, self.direction(model, x, y) * threat.radius)
        return x + delta * (threat.radius / float(threat.eps))

    def trains_the_model(self, model, x, y, threat, noise):
        model.module.train()
        return Good.run(self, model, x, y, threat, noise)

    def fills_grad(self, model, x, y, threat, noise):
        model.module.requires_grad_(True)
        model.module(x).sum().backward()
        model.module.requires_grad_(False)
        return Good.run(self, model, x, y, threat, noise)

    def climbs_down(self, model, x, y, threat, noise):
        return x + threat.project(x, -self.direction(model, x, y) * threat.radius)

    def needs_four_logits(self, model, x, y, threat, noise):
        model.logits(x).topk(4, dim=1)
        return Good.run(self, model, x, y, threat, noise)

    def follows_the_seed(self, model, x, y, threat, noise):
        return x + threat.project(x, noise.signs(x.shape[1:]) * threat.radius)

    return locals()[name]


FAULTS = [
    ("leaves_the_ball", "candidates", "leave the ball"),
    ("leaves_the_box", "candidates", "pixels must lie in [0,1]"),
    ("works_in_place", "hands off", "wrote into x"),
    ("global_rng", "hands off", "torch's global generator"),
    ("global_rng", "repeatable", "two runs with the same noise differ"),
    ("seeds_globally", "hands off", "torch's global generator"),
    ("sees_neighbours", "independent of neighbours", "other images of their batch are exchanged"),
    ("keyed_by_row", "independent of neighbours", "permuted together with its ids"),
    ("nan", "candidates", "NaN"),
    ("wrong_shape", "candidates", "expected x_adv like x"),
    ("wrong_type", "candidates", "torch.float64"),
    ("returns_a_pair", "candidates", "got tuple"),
    ("exits", "candidates", "SystemExit: no licence"),
    ("divides_by_eps", "eps = 0", "ZeroDivisionError"),
    ("trains_the_model", "hands off", "another mode"),
    ("fills_grad", "hands off", ".grad"),
    ("climbs_down", "strength", "breaks 0%"),
    ("needs_four_logits", "candidates", "selected index k out of range"),
    ("follows_the_seed", "repeatable", "randomized=True is not declared"),
]


def test_a_sound_attack_passes():
    assert failures(Good) == {}


@pytest.mark.parametrize(("fault", "finding", "words"), FAULTS)
def test_a_fault_is_found_and_named(fault, finding, words):
    found = failures(make(run_of(fault)))
    assert finding in found
    assert words in found[finding].detail
    assert found[finding].remedy


def test_a_crash_names_type_message_and_line_in_the_plugins_file():
    detail = failures(make(run_of("crashes")))["candidates"].detail
    line = next(i for i, text in enumerate(open(__file__), 1) if "return x / self.missing" in text)  # noqa: SIM115, PTH123
    assert "AttributeError: 'Faulty' object has no attribute 'missing'" in detail
    assert f"(test_attack.py, line {line})" in detail


def test_a_score_attack_that_takes_gradients_is_found():
    assert "asked the model for a gradient" in failures(Good, access="score")["access"].detail


def test_a_score_attack_that_differentiates_the_module_itself_is_found():
    def run(self, model, x, y, threat, noise):
        leaf = x.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(-margins(model.module(leaf), y).sum(), leaf)
        return x + threat.project(x, grad.sign() * threat.radius)

    assert failures(make(run)) == {}
    assert "does not require grad" in failures(make(run), access="score")["access"].detail


def test_a_label_attack_that_reads_scores_is_found():
    def run(self, model, x, y, threat, noise):
        logits = model.logits(x)
        return x + threat.project(x, (0.1 * logits.amax(1)).view(-1, 1, 1, 1).expand_as(x))

    assert "replaced by their argmax" in failures(make(run), access="label")["access"].detail


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"norms": ("L7",)}, "norms must be"),
        ({"norms": "Linf"}, "norms must be"),
        ({"access": "oracle"}, "access must be one of"),
        ({"kind": "big"}, "kind must be one of"),
        ({"min_classes": 1}, "min_classes"),
    ],
)
def test_wrong_facts_are_named(facts, words):
    assert words in failures(Good, **facts)["facts"].detail


def test_missing_facts_are_named():
    (finding,) = [f for f in check_attack(Entry("faulty", Good, {"norms": ("Linf",)}, "test")) if not f.ok]
    assert "access, kind" in finding.detail


def test_the_form_of_the_class_is_checked():
    @dataclass
    class Thawed(Attack):
        """Can be changed."""

        def run(self, model, x, y, threat, noise):
            return x

    @dataclass(frozen=True)
    class Bare(Good):
        """Has a parameter without default."""

        steps: int = field()

    class Plain(Good):
        """Is no dataclass of its own."""

    @dataclass(frozen=True)
    class Silent(Good):
        pass

    class Stranger:
        pass

    told = {cls.__name__: failures(cls)["class"].detail for cls in (Thawed, Plain, Bare, Silent, Stranger)}
    assert "got a dataclass that can be changed" in told["Thawed"]
    assert "no dataclass of its own" in told["Plain"]
    assert told["Bare"] == "no default for steps."
    assert told["Silent"] == "it has no docstring."
    assert "derived from Attack" in told["Stranger"]


def test_large_budgets_are_lowered_and_said():
    seen = []

    @dataclass(frozen=True)
    class Long(Good):
        """Counts what it is made with."""

        n_queries: int = 5000

        def run(self, model, x, y, threat, noise):
            seen.append(self.n_queries)
            return Good.run(self, model, x, y, threat, noise)

    told = {f.name: f for f in findings_of(Long)}
    assert set(seen) == {150}
    assert "n_queries" in told["parameters"].detail


@dataclass(frozen=True)
class GoodStepper(Stepper):
    """Sign steps on the margin."""

    steps: int = 10

    @property
    def budget(self):
        return self.steps

    def init(self, x, y, logits, lane, threat, noise):
        return State(**fresh(x, y, lane, noise, x.clone()))

    def step(self, model, state, threat, noise):
        logits, grad = model.gradient(state.x_adv, lambda z: -margins(z, state.y))
        move = settle(state, logits, self.budget)
        return self.advance(state, grad, move, threat)

    def advance(self, state, grad, move, threat):
        delta = state.x_adv - state.x + 0.3 * threat.radius * grad.sign()
        state.x_adv = (state.x + threat.project(state.x, delta)).where(rows(move, state.x), state.x_adv)
        return state


@dataclass(frozen=True)
class MovesDone(GoodStepper):
    """Moves slots that are done."""

    def advance(self, state, grad, move, threat):
        return GoodStepper.advance(self, state, grad, torch.ones_like(move), threat)


@dataclass(frozen=True)
class CountsTwice(GoodStepper):
    """Counts two evaluations a step."""

    def advance(self, state, grad, move, threat):
        state.it += move
        return GoodStepper.advance(self, state, grad, move, threat)


@dataclass(frozen=True)
class NeverEnds(GoodStepper):
    """Has no end."""

    def step(self, model, state, threat, noise):
        state.it += ~state.done
        return state


@dataclass(frozen=True)
class IgnoresRefusal(GoodStepper):
    """Stops at a refused candidate again."""

    def step(self, model, state, threat, noise):
        state.muted = torch.full_like(state.muted, -1)
        return GoodStepper.step(self, model, state, threat, noise)


@dataclass(frozen=True)
class CountsItself(GoodStepper):
    """Its step size shrinks with a count of its own, which slots do not share."""

    def step(self, model, state, threat, noise):
        state.own = getattr(state, "own", 0) + 1
        return GoodStepper.step(self, model, state, threat, noise)

    def advance(self, state, grad, move, threat):
        delta = state.x_adv - state.x + 0.5 / state.own * threat.radius * grad.sign()
        state.x_adv = (state.x + threat.project(state.x, delta)).where(rows(move, state.x), state.x_adv)
        return state


@dataclass
class CountingState(State):
    """Holds a number that has no slots."""

    total: int = 0


@dataclass(frozen=True)
class NoSlots(GoodStepper):
    """Keeps a number in its state."""

    def init(self, x, y, logits, lane, threat, noise):
        return CountingState(**fresh(x, y, lane, noise, x.clone()))


def test_a_sound_stepper_passes():
    assert failures(GoodStepper) == {}


@pytest.mark.parametrize(
    ("cls", "finding", "words"),
    [
        (MovesDone, "stepper's steps", "of a slot that is done"),
        (CountsTwice, "stepper's steps", "did not count by one"),
        (NeverEnds, "stepper's steps", "still not done"),
        (IgnoresRefusal, "stepper's refused candidates", "stop again"),
        (CountsItself, "stepper in the engine", "end differently with 3 slots"),
        (NoSlots, "stepper's state", "state.total must be a tensor"),
    ],
)
def test_a_fault_of_a_stepper_is_found_and_named(cls, finding, words):
    found = failures(cls)
    assert finding in found, found
    assert words in found[finding].detail


def test_the_toys_are_what_they_claim():
    """The closed form is the distance at which an exact attack begins to succeed, in every norm."""
    from robustsuite.testing.toys import linear_case
    from robustsuite.threat import ThreatModel

    for norm in ("Linf", "L2", "L1"):
        case = linear_case(norm, 3, (1, 4, 4), 5, rowwise=True)
        weight, y = case.model.module[1].weight.double(), case.y
        flat = case.x.double().flatten(1)
        for scale, breaks in ((0.999, False), (1.001, True)):
            hit = torch.zeros(5, dtype=torch.bool)
            for k in range(3):
                w = weight[k] - weight[y]
                direction = ThreatModel.parse(f"{norm}:1").ascent(w)
                point = flat + scale * case.closed_form.view(-1, 1) * direction
                assert bool(((point > 0) & (point < 1)).all())
                logits = point @ weight.T + case.model.module[1].bias.double()
                hit |= logits.argmax(1) != y
            assert bool((hit == breaks).all())


def test_classifiers_of_the_suite_are_classifiers():
    from robustsuite.testing.toys import net_case

    case = net_case("Linf", 3, (1, 6, 6), 4, rowwise=True)
    assert isinstance(case.model, Classifier)
    assert isinstance(case.model.module, nn.Module)
