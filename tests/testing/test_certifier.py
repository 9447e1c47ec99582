"""Certifiers with a fault seeded into each: the suite names it in words."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from robustsuite.certification import Certificates, Certifier
from robustsuite.registry import Entry
from robustsuite.testing import check_certifier

DUAL = {"Linf": 1.0, "L2": 2.0, "L1": float("inf")}


@dataclass(frozen=True)
class Lipschitz(Certifier):
    """Exact on linear models: margin over the dual norm; on a ReLU network, the product of the layers' norms."""

    def unsupported(self, model, threat):
        kinds = {type(m) for m in model.module.modules()} - {nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU}
        return f"unknown layers {kinds}" if kinds else None

    def certify(self, model, x, y, threat, noise):
        logits = model.logits(x).double()
        top = logits.argmax(1)
        layers = [m.weight.double() for m in model.module.modules() if isinstance(m, nn.Linear)]
        first = layers[0]
        if len(layers) == 1:
            sizes = torch.linalg.vector_norm(first[top].unsqueeze(1) - first, ord=DUAL[threat.norm], dim=2)
        else:
            rows = torch.linalg.vector_norm(first, ord=DUAL[threat.norm], dim=1)
            sizes = ((layers[1][top].unsqueeze(1) - layers[1]).abs() * rows).sum(2)
        gaps = logits.gather(1, top.view(-1, 1)) - logits - 1e-6
        radius = (gaps / sizes.clamp(min=1e-12)).scatter(1, top.view(-1, 1), torch.inf).amin(1).clamp(min=0)
        return self.give(radius, top, x, y, noise)

    def give(self, radius, top, x, y, noise):
        return Certificates(radius, top, "deterministic")


def make(**parts):
    cls = type("Faulty", (Lipschitz,), {"__doc__": "Has a fault.", "__module__": __name__, **parts})
    return dataclass(frozen=True)(cls)


def failures(cls, norms=("Linf", "L2", "L1")):
    findings = check_certifier(Entry("faulty", cls, {"norms": norms}, "test"))
    return {f.name: f for f in findings if not f.ok}


GIVES = {
    "doubled": lambda self, r, top, x, y, noise: Certificates(2 * r, top, "deterministic"),
    "negative": lambda self, r, top, x, y, noise: Certificates(r - 10, top, "deterministic"),
    "infinite": lambda self, r, top, x, y, noise: Certificates(r / 0, top, "deterministic"),
    "float32": lambda self, r, top, x, y, noise: Certificates(r.float(), top, "deterministic"),
    "short": lambda self, r, top, x, y, noise: Certificates(r[:1].repeat(2), top, "deterministic"),
    "too_high": lambda self, r, top, x, y, noise: Certificates(r, top + 100, "deterministic"),
    "vague": lambda self, r, top, x, y, noise: Certificates(r, top, "very likely"),
    "believes_y": lambda self, r, top, x, y, noise: Certificates(r, y, "deterministic"),
    "empty": lambda self, r, top, x, y, noise: Certificates(0 * r, top, "deterministic"),
    "global_rng": lambda self, r, top, x, y, noise: Certificates(r * torch.rand(len(r)), top, "deterministic"),
    "sampled": lambda self, r, top, x, y, noise: Certificates(r * noise.uniform((1,)).flatten(), top, "deterministic"),
    "averages": lambda self, r, top, x, y, noise: Certificates(r.minimum(r.mean()), top, "deterministic"),
    "writes": lambda self, r, top, x, y, noise: Certificates(r, top, "deterministic") if x.mul_(0.5) is x else None,
    "nothing": lambda self, r, top, x, y, noise: None,
    "crashes": lambda self, r, top, x, y, noise: r.no_such_method(),
}


def test_a_sound_certifier_passes():
    assert failures(Lipschitz) == {}


@pytest.mark.parametrize(
    ("fault", "finding", "words"),
    [
        ("doubled", "sound on linear models", "by up to a factor 2"),
        ("negative", "certificates", "negative or not finite"),
        ("infinite", "certificates", "negative or not finite"),
        ("float32", "certificates", "radius must be torch.float64 [8], got torch.float32"),
        ("short", "certificates", "got torch.float64 [2]"),
        ("too_high", "certificates", "predicted must lie in [-1, 3)"),
        ("vague", "certificates", "got 'very likely'"),
        ("believes_y", "where the model is wrong", "for the wrong label"),
        ("empty", "sound on linear models", "certifies none"),
        ("global_rng", "hands off", "torch's global generator"),
        ("sampled", "repeatable", "guarantee says 'deterministic'"),
        ("averages", "independent of neighbours", "place in the batch"),
        ("writes", "hands off", "wrote into x"),
        ("nothing", "certificates", "got NoneType"),
        ("crashes", "certificates", "AttributeError"),
    ],
)
def test_a_fault_is_found_and_named(fault, finding, words):
    found = failures(make(give=GIVES[fault]), norms=("L2",))
    assert f"L2: {finding}" in found, found
    assert words in found[f"L2: {finding}"].detail
    assert found[f"L2: {finding}"].remedy


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_radius_too_large_by_five_percent_is_found_on_linear_models(norm):
    five = make(give=lambda self, r, top, x, y, noise: Certificates(1.05 * r, top, "deterministic"))
    assert "unsound" in failures(five, (norm,))[f"{norm}: sound on linear models"].detail


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_certifier_that_forgets_a_layer_is_found_by_brute_force(norm):
    """Exact where there is one layer, wrong where there are two: no closed form says so."""

    def certify(self, model, x, y, threat, noise):
        found = Lipschitz.certify(self, model, x, y, threat, noise)
        two = sum(isinstance(m, nn.Linear) for m in model.module.modules()) == 2
        return Certificates(found.radius * (8 if two else 1), found.predicted, found.guarantee)

    found = failures(make(certify=certify), (norm,))
    assert list(found) == [f"{norm}: sound against brute force"]
    assert "hold a point of another class" in found[f"{norm}: sound against brute force"].detail


def test_a_false_statement_is_no_matter_of_confidence():
    wrong = make(give=lambda self, r, top, x, y, noise: Certificates(2 * r, top, "confidence 0.999"))
    assert "L2: sound on linear models" in failures(wrong, ("L2",))


def test_certifying_what_is_not_understood_is_found():
    blind = make(unsupported=lambda self, model, threat: None)
    assert "L2: unsupported models" in failures(blind, ("L2",))


def test_an_unsupported_that_raises_or_mumbles_is_found():
    def raises(self, model, threat):
        return Lipschitz.unsupported(self, model, threat) and 1 / 0

    mumbles = make(unsupported=lambda self, model, threat: bool(Lipschitz.unsupported(self, model, threat)) or None)
    assert "ZeroDivisionError" in failures(make(unsupported=raises), ("L2",))["L2: unsupported models"].detail
    assert "must return text or None, got True" in failures(mumbles, ("L2",))["L2: unsupported models"].detail


def test_a_certifier_for_nothing_is_named():
    never = make(unsupported=lambda self, model, threat: "I know transformers alone")
    detail = failures(never, ("L2",))["L2: certificates"].detail
    assert "supports neither" in detail
    assert "I know transformers alone" in detail


def test_norms_must_be_declared():
    (finding,) = [f for f in check_certifier(Entry("faulty", Lipschitz, {}, "test")) if not f.ok]
    assert finding.name == "facts"
    assert "must declare norms" in finding.detail
