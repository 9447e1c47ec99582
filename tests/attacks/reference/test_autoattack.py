import logging
import sys

import pytest
import torch

from robustsuite.attacks.reference.autoattack import AutoAttack
from robustsuite.errors import PrerequisiteError, UsageError
from robustsuite.models.classifier import Classifier, fooled
from robustsuite.noise import Noise
from robustsuite.registry import ATTACKS
from robustsuite.threat import ThreatModel

pytestmark = pytest.mark.reference
NOISE = Noise(0, "oracle").at(torch.arange(12))
LINF = ThreatModel.parse("Linf:2/255")


@pytest.fixture
def setting(cnn, images):
    pytest.importorskip("pyautoattack")
    model, x = cnn(), images(12)
    return model, x, model.logits(x).argmax(1)


@pytest.mark.parametrize("text", ["Linf:2/255", "L2:0.1", "L1:0.8"])
def test_it_stays_inside_and_agrees_with_our_own(setting, text):
    model, x, y = setting
    threat = ThreatModel.parse(text)
    x_adv = AutoAttack(n_queries=30).run(model, x, y, threat, NOISE)
    assert threat.contains(x, x_adv).all()
    broken = fooled(model.logits(x_adv), y)
    assert 0 < broken.sum() < 12
    if threat.norm != "L1":
        own = ATTACKS.get("apgd-t").target().run(model, x, y, threat, NOISE)
        assert torch.equal(fooled(model.logits(own), y), broken)


def test_it_leaves_nothing_behind(setting):
    """Global generator, tracer, parameter gradients, its own call counts: as before, and the same result again."""
    model, x, y = setting
    attack = AutoAttack(attacks=("apgd-ce", "square"), n_queries=20)
    state, seen = torch.random.get_rng_state(), []

    def tracer(*args: object) -> None:
        seen.append(args)

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        first = attack.run(model, x, y, LINF, NOISE)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    torch.manual_seed(99)
    assert torch.equal(attack.run(model, x, y, LINF, NOISE), first)
    torch.random.set_rng_state(state)
    attack.run(model, x, y, LINF, NOISE)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None and not p.requires_grad for p in model.module.parameters())


def test_the_seed_is_that_of_the_run(setting):
    model, x, y = setting
    attack, threat = AutoAttack(attacks=("square",), n_queries=20), ThreatModel.parse("Linf:16/255")
    found = [attack.run(model, x, y, threat, Noise(seed, "oracle").at(NOISE.ids)) for seed in (0, 1, 0)]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_passes_are_counted(setting):
    model, x, y = setting
    model.passes.forward = model.passes.backward = 0
    AutoAttack(attacks=("square",), n_queries=10).run(model, x, y, ThreatModel.parse("Linf:0.00001"), NOISE)
    # randomness check 5, range 1, dynamic 1, clean 1; square: clean 1, start 1, proposals 10, result 1; verdict 1
    assert model.passes.forward == 12 * 22
    assert model.passes.backward == 0
    AutoAttack(attacks=("apgd-ce",)).run(model, x, y, ThreatModel.parse("Linf:0.00001"), NOISE)
    assert model.passes.backward == 12 * 101


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 9])
def test_few_classes_do_not_crash_it(classes, cnn, images):
    pytest.importorskip("pyautoattack")
    model, x = cnn(classes=classes), images(4)
    y = model.logits(x).argmax(1)
    x_adv = AutoAttack(n_queries=10).run(model, x, y, ThreatModel.parse("Linf:0.001"), NOISE)
    assert LINF.contains(x, x_adv).all()


@pytest.mark.parametrize(("classes", "name"), [(2, "apgd-dlr"), (2, "apgd-t"), (3, "apgd-t")])
def test_what_cannot_run_on_few_classes_is_refused_by_name(classes, name, cnn, images):
    pytest.importorskip("pyautoattack")
    model, x = cnn(classes=classes), images(2)
    with pytest.raises(UsageError, match=f"{name} needs"):
        AutoAttack(attacks=(name,)).run(model, x, torch.zeros(2, dtype=torch.long), LINF, NOISE)


def test_a_missing_package_names_the_extra(cnn, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(PrerequisiteError, match=r"robustsuite\[reference\]"):
        AutoAttack().run(cnn(), images(2), torch.zeros(2, dtype=torch.long), LINF, NOISE)


@pytest.mark.parametrize("settings", [{"version": "best"}, {"attacks": ("apgd-ce", "pgd")}])
def test_senseless_settings_are_usage_errors(settings):
    with pytest.raises(UsageError, match="AutoAttack"):
        AutoAttack(**settings)


def test_an_earlier_dynamic_model_does_not_taint_a_later_one(setting, caplog):
    """The package counts calls for the whole process; its warning must be about the model at hand."""
    model, x, y = setting

    class Dynamic(torch.nn.Module):
        def forward(self, v: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                leaf = v.detach().requires_grad_()
                torch.autograd.grad((leaf**2).sum(), leaf)
            return model.module(v)

    attack = AutoAttack(attacks=("apgd-ce",))
    dynamic = Classifier(Dynamic(), num_classes=10, input_shape=(3, 8, 8))
    with caplog.at_level(logging.WARNING, "auto-attack"):
        attack.run(dynamic, x, y, LINF, NOISE)
        assert any("dynamic" in r.message for r in caplog.records)
        caplog.clear()
        attack.run(model, x, y, LINF, NOISE)
        assert not any("dynamic" in r.message for r in caplog.records)
