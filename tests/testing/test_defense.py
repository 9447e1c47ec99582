"""Defenses with a fault seeded into each: the suite names it in words."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from robustsuite.defenses import FitMethod, Fitted, InnerSpec, StepMethod, Term, WrapMethod, ce
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.registry import DEFENSES, Entry
from robustsuite.testing import check_defense


@dataclass(frozen=True)
class Good(StepMethod):
    """Cross-entropy on an adversarial view; ``scale`` multiplies it."""

    scale: float = 1.0

    def views(self, step):
        return {"adv": step.maximise(InnerSpec(steps=2))}

    def terms(self, step):
        return {"ce": Term(ce(step.logits("adv"), step.q), self.scale)}


def make(base=Good, **parts):
    cls = type("Faulty", (base,), {"__doc__": "Has a scale.", "__module__": __name__, **parts})
    return dataclass(frozen=True)(cls)


def failures(cls, kind="step"):
    findings = check_defense(Entry("faulty", cls, {"kind": kind}, "test"))
    return {f.name: f for f in findings if not f.ok}


def scalar(self, step):
    return {"ce": Term(ce(step.logits("adv"), step.q).mean())}


def not_finite(self, step):
    return {"kl": Term((step.logits("adv").softmax(1) - 2).log().sum(1))}


def infinite_gradient(self, step):
    return {"ce": Term(ce(step.logits("adv"), step.q) + (step.logits("clean").sum(1) * 0).sqrt())}


def detached(self, step):
    return {"ce": Term(ce(step.logits("adv"), step.q).detach().requires_grad_(True))}


def coupled(self, step):
    values = ce(step.logits("adv"), step.q)
    return {"ce": Term(values * values.detach().sum())}


def normalised(self, step):
    logits = step.logits("adv")
    return {"ce": Term(ce((logits - logits.mean(0)) / logits.var(0, correction=0).sqrt(), step.q))}


def uphill(self, step):
    return {"ce": Term(-ce(step.logits("adv"), step.q))}


def random_terms(self, step):
    return {"ce": Term(ce(step.logits("adv"), step.q) * torch.rand(len(step.y)))}


def no_terms(self, step):
    return {}


def bare_terms(self, step):
    return {"ce": ce(step.logits("adv"), step.q)}


def own_attack(self, step):
    """Forgets that backward fills the parameters' .grad."""
    x = step.x.clone().requires_grad_(True)
    ce(step.forward(x), step.q).sum().backward()
    return {"adv": step.x + step.threat.project(step.x, step.threat.radius * step.threat.ascent(x.grad))}


def outside(self, step):
    return {"adv": step.x + 1.5 * step.threat.radius}


def not_a_number(self, step):
    return {"adv": step.x / 0}


def eval_left(self, step):
    step.module.eval()
    return {"adv": step.x}


def in_place(self, step):
    step.x += 0.01
    return {"adv": step.x}


def wrong_labels(self, step):
    return step.q * 2


FAULTS = [
    ({"terms": scalar}, "terms", "'ce' must hold one value an example, [8], got a scalar"),
    ({"terms": not_finite}, "terms", "'kl' is NaN or infinite on 8 of 8"),
    ({"terms": no_terms}, "terms", "must be a dict of Term"),
    ({"terms": bare_terms}, "terms", "must be a dict of Term"),
    ({"views": not_a_number}, "terms", "the view 'adv' holds NaN"),
    ({"labels": wrong_labels}, "terms", "sum to 1"),
    ({"terms": infinite_gradient}, "gradients", "not finite"),
    ({"terms": detached}, "gradients", "no gradient reaches any parameter"),
    ({"terms": coupled}, "reduction", "the same batch twice over"),
    ({"terms": normalised}, "batch of one", "NaN"),
    ({"terms": random_terms}, "repeatable", "the same step gives the loss"),
    ({"terms": random_terms}, "hands off", "torch's global generator"),
    ({"views": own_attack}, "hands off", ".grad on the model's parameters"),
    ({"views": outside}, "views", "leave ball or box"),
    ({"views": eval_left}, "hands off", "another mode"),
    ({"views": in_place}, "hands off", "step.x"),
    ({"terms": uphill}, "training", "right answers, chance is 33%"),
]


def test_a_sound_step_method_passes():
    assert failures(Good) == {}


@pytest.mark.parametrize(
    ("parts", "finding", "words"), FAULTS, ids=[f"{w}-{next(iter(p.values())).__name__}" for p, w, _ in FAULTS]
)
def test_a_fault_is_found_and_named(parts, finding, words):
    found = failures(make(**parts))
    assert finding in found, found
    assert words in found[finding].detail
    assert found[finding].remedy


def test_a_method_that_couples_examples_on_purpose_says_so():
    assert "reduction" not in failures(make(terms=coupled, batch_coupled=True))


def test_a_wider_inner_ball_is_no_fault():
    wide = make(views=lambda self, step: {"adv": step.maximise(InnerSpec(steps=2, eps=2.0))})
    assert failures(wide) == {}


def test_an_unexplained_parameter_is_named():
    @dataclass(frozen=True)
    class Silent(Good):
        """Says nothing of its parameter."""

        gamma: float = 2.0

    assert "scale, gamma" in failures(Silent)["documentation"].detail


def test_the_kind_must_be_declared_and_fit_the_class():
    assert "got 'step method'" in failures(Good, "step method")["facts"].detail
    assert "derived from WrapMethod" in failures(Good, "wrap")["class"].detail


class Probabilities(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).softmax(1)


class Rolling(nn.Module):
    """Answers a little differently each time."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.count = 0

    def forward(self, x):
        self.count += 1
        return self.inner(x) + self.count


@dataclass(frozen=True)
class Softmax(WrapMethod):
    """Returns probabilities."""

    def wrap(self, model):
        return Classifier(Probabilities(model.module), num_classes=model.num_classes, input_shape=model.input_shape)


@dataclass(frozen=True)
class Undeclared(WrapMethod):
    """Is random and does not say so."""

    randomized = False

    def wrap(self, model):
        facts = Facts(randomized=self.randomized)
        shape = model.input_shape
        return Classifier(Rolling(model.module), num_classes=model.num_classes, input_shape=shape, facts=facts)


@dataclass(frozen=True)
class Declared(Undeclared):
    """Is random and says so."""

    randomized = True


@dataclass(frozen=True)
class NotAModel(WrapMethod):
    """Returns the module."""

    def wrap(self, model):
        return model.module


@dataclass(frozen=True)
class Identity(WrapMethod):
    """Changes nothing."""

    def wrap(self, model):
        return model


@pytest.mark.parametrize(
    ("cls", "words"),
    [(Softmax, "probabilities"), (Undeclared, "randomness"), (NotAModel, "must return a Classifier")],
)
def test_a_fault_of_a_wrap_is_found_and_named(cls, words):
    assert words in failures(cls, "wrap")["wrap"].detail


@pytest.mark.parametrize("cls", [Identity, Declared])
def test_a_sound_wrap_passes(cls):
    assert failures(cls, "wrap") == {}


@dataclass(frozen=True)
class Fit(FitMethod):
    """SGD on the cross-entropy, ``sign`` of it."""

    sign: float = 1.0

    def fit(self, services):
        net, optimizer, first = services.module, services.optimizer(services.module), 1
        if services.kept is not None:
            net.load_state_dict(services.kept["net"])
            self.again(services, optimizer)
            first = services.kept["epoch"] + 1
        for epoch in range(first, services.epochs + 1):
            for step in services.batches(epoch):
                services.descend(step, optimizer, {"ce": Term(self.loss(step))})
            services.report(epoch)
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            services.keep(state)
        return self.result(net)

    def loss(self, step):
        return self.sign * ce(step.forward(step.x), step.q)

    def again(self, services, optimizer):
        optimizer.load_state_dict(services.kept["optimizer"])

    def result(self, net):
        return net


def upward(self, step):
    return -0.01 * ce(step.forward(step.x), step.q)


CALLS = []


def counting(self, step):
    """Depends on what was done before."""
    CALLS.append(step)
    return ce(step.forward(step.x), step.q) * (1 + 0.001 * len(CALLS))


def without_momentum(self, services, optimizer):
    pass


def softmax(self, net):
    return Fitted(Probabilities(net), "inner", {"name": "bit_depth", "bits": 8})


def foreign(self, net):
    return nn.Linear(2, 2)


FIT_FAULTS = [
    ({"loss": upward}, "training", "right answers, chance is 33%"),
    ({"loss": counting}, "repeatable", "the same training again ends with other weights"),
    ({"again": without_momentum}, "resuming", "killed and taken up again ends with other weights"),
    ({"result": softmax}, "checkpoint", "the checkpoint's logits differ"),
    ({"result": foreign}, "training", "other weights than 'mlp' has"),
]


def test_a_sound_fit_method_passes():
    assert failures(Fit, "fit") == {}


@pytest.mark.parametrize(("parts", "finding", "words"), FIT_FAULTS)
def test_a_fault_of_a_fit_method_is_found_and_named(parts, finding, words):
    found = failures(make(Fit, __doc__="Has a sign.", **parts), "fit")
    assert finding in found, found
    assert words in found[finding].detail


def test_the_training_of_the_mixing_network_keeps_the_contract():
    findings = check_defense(DEFENSES.get("adaptive_smoothing_head"))
    assert all(f.ok for f in findings), "\n".join(map(str, findings))
    assert {"training", "repeatable", "resuming", "checkpoint"} < {f.name for f in findings}
