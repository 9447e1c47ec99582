import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from robustsuite.attacks.reference import torchattacks as adapters
from robustsuite.data.dataset import Dataset
from robustsuite.errors import PrerequisiteError, UnknownNameError
from robustsuite.evaluation.evaluator import evaluate, prepare
from robustsuite.evaluation.protocol import custom_protocol, make, with_params
from robustsuite.models.classifier import Classifier, fooled
from robustsuite.noise import Noise
from robustsuite.registry import ATTACKS, Registry
from robustsuite.results.schema import ModelPart
from robustsuite.testing import check_attack
from robustsuite.threat import ThreatModel

pytestmark = pytest.mark.reference
NOISE = Noise(0, "oracle").at(torch.arange(12))
# Smaller budgets: the point of the sweep is that every class runs.
SMALL = {
    "steps": 2,
    "n_queries": 12,
    "max_iterations": 10,
    "binary_search_steps": 2,
    "nb_sample": 8,
    "num_iter_set": 2,
    "noise_batch_size": 2,
}


def attack(name, **params):
    pytest.importorskip("torchattacks")
    return make(ATTACKS.get(f"torchattacks:{name}"), params)


def found():
    return [e for e in ATTACKS if e.name.startswith("torchattacks:")]


@pytest.fixture
def problem_of(setting):
    model, x, y = setting
    data = Dataset("toy", x, y, torch.arange(12), 10)
    part = ModelPart(name="toy", reference="toy", weights_sha256="0" * 64, format="pt", n_params=1)
    return model, part, data


@pytest.fixture
def setting(cnn, images):
    model, x = cnn(), images(12)
    return model, x, model.logits(x).argmax(1)


def test_the_classes_are_found_by_looking_at_them():
    pytest.importorskip("torchattacks")
    names = {e.name.partition(":")[2] for e in found()}
    assert {"FGSM", "PGD", "PGDL2", "APGD", "APGDT", "FAB", "Square", "CW", "DeepFool", "EADL1", "PIFGSM"} <= names
    # L0, no attack at all, no norm, needs a training set, needs attacks
    assert not {"OnePixel", "JSMA", "VANILA", "GN", "LGV", "MultiAttack"} & names


def test_what_a_class_declares():
    pytest.importorskip("torchattacks")
    facts = {e.name.partition(":")[2]: e.facts for e in found()}
    assert facts["PGD"]["norms"] == ("Linf",)
    assert facts["PGDL2"]["norms"] == ("L2",)
    assert facts["FAB"]["norms"] == ("Linf", "L2", "L1")
    assert (facts["Square"]["access"], facts["APGD"]["access"]) == ("score", "white-box")
    assert facts["AutoAttack"]["access"] == "white-box"
    assert (facts["CW"]["kind"], facts["PIFGSM"]["kind"]) == ("minimum-norm", "bounded")
    assert [facts[n]["min_classes"] for n in ("PGD", "APGDT", "AutoAttack")] == [2, 4, 4]
    assert all(f["batch_coupled"] and f["randomized"] for f in facts.values())


@pytest.mark.parametrize("entry", found(), ids=lambda e: e.name)
def test_every_class_runs_in_every_norm_and_keeps_to_the_box(entry, setting):
    model, x, y = setting
    names = set(entry.target.__dataclass_fields__)
    for norm, eps in (("Linf", "16/255"), ("L2", "3"), ("L1", "2")):
        if norm not in entry.facts["norms"]:
            continue
        run = make(entry, {k: v for k, v in SMALL.items() if k in names}).run
        threat = ThreatModel.parse(f"{norm}:{eps}")
        if (entry.name, norm) == ("torchattacks:FAB", "L1"):
            with pytest.raises(UnboundLocalError):  # 3.5.1 declares L1 and forgets to measure it
                run(model, x, y, threat, NOISE)
            continue
        x_adv = run(model, x, y, threat, NOISE)
        assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, torch.float32, False)
        assert bool(((x_adv >= 0) & (x_adv <= 1)).all())


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "APGD", "DeepFool"])
def test_it_keeps_the_contract_of_an_attack(name):
    pytest.importorskip("torchattacks")
    broken = [str(f) for f in check_attack(ATTACKS.get(f"torchattacks:{name}"), {}) if not f.ok]
    assert not broken, "\n".join(broken)


def half_space(linear, images, norm):
    """A linear model of two classes, its images far from the box's sides, and their exact distances."""
    x = 0.4 + 0.2 * images(12)
    weight = torch.randn(3 * 8 * 8, generator=torch.Generator().manual_seed(1))
    bias = -(x.flatten(1) @ weight).mean()
    model = linear(torch.stack([-weight, weight]), torch.stack([-bias, bias]), (3, 8, 8))
    dual = weight.abs().sum() if norm == "Linf" else weight.norm() if norm == "L2" else weight.abs().max()
    logits = model.logits(x)
    return model, x, logits.argmax(1), (x.flatten(1) @ weight + bias).abs() / dual


@pytest.mark.parametrize(
    ("name", "norm", "params"),
    [
        ("FGSM", "Linf", {}),
        ("PGD", "Linf", {"steps": 20, "alpha": 0.002}),
        ("APGD", "Linf", {"steps": 20}),
        ("APGD", "L2", {"steps": 20}),
        ("PGDL2", "L2", {"steps": 40, "alpha": 0.02}),
        ("DeepFool", "L2", {"overshoot": 0.001}),
        ("CW", "L2", {"c": 1.0, "steps": 400, "lr": 0.005}),
        ("FAB", "Linf", {"steps": 20}),
    ],
)
def test_a_half_space_is_reached_exactly_from_where_it_is_within_eps(name, norm, params, linear, images):
    model, x, y, distance = half_space(linear, images, norm)
    eps = float(distance.median()) * 1.001
    # APGD's last step is finite: leave 3 % around eps to rounding and step sizes.
    clear = (distance < 0.97 * eps) | (distance > 1.0001 * eps)
    assert clear.sum() >= 4
    threat = ThreatModel.parse(f"{norm}:{eps}")
    x_adv = attack(name, **params).run(model, x, y, threat, NOISE)
    broken = fooled(model.logits(x_adv), y) & (threat.norms(x_adv - x) <= eps * 1.001)
    assert torch.equal(broken[clear], (distance < eps)[clear])


def test_deepfool_lands_on_the_nearest_point(linear, images):
    model, x, y, distance = half_space(linear, images, "L2")
    threat = ThreatModel.parse("L2:10")
    x_adv = attack("DeepFool", overshoot=0.02).run(model, x, y, threat, NOISE)
    assert torch.allclose(threat.norms(x_adv - x).float(), 1.02 * distance, rtol=1e-3)


def test_what_a_minimum_norm_attack_finds_outside_of_the_ball_is_not_claimed(linear, images):
    model, x, y, distance = half_space(linear, images, "L2")
    eps = float(distance.median())
    x_adv = attack("DeepFool").run(model, x, y, ThreatModel.parse(f"L2:{eps}"), NOISE)
    far = distance > eps
    assert 0 < far.sum() < 12
    assert torch.equal(x_adv[far], x[far])


def test_fgsm_is_ours(setting):
    model, x, y = setting
    threat = ThreatModel.parse("Linf:2/255")
    own = ATTACKS.get("fgsm").target().run(model, x, y, threat, NOISE)
    assert torch.allclose(attack("FGSM").run(model, x, y, threat, NOISE), own, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "own", "text"),
    [
        ("PGD", "pgd", "Linf:4/255"),
        ("APGD", "apgd-ce", "Linf:4/255"),
        ("APGD", "apgd-ce", "L2:0.1"),
        ("APGDT", "apgd-t", "Linf:2/255"),
        ("PGDL2", "pgd", "L2:0.1"),
    ],
)
def test_it_breaks_what_ours_breaks(name, own, text, setting):
    model, x, y = setting
    threat = ThreatModel.parse(text)
    params = {"alpha": threat.radius / 4} if name.startswith("PGD") else {}
    theirs = attack(name, steps=40, **params).run(model, x, y, threat, NOISE)
    assert threat.contains(x, theirs).all()
    ours = ATTACKS.get(own).target().run(model, x, y, threat, NOISE)
    broken = fooled(model.logits(theirs), y)
    assert 0 < broken.sum() < 12
    assert torch.equal(broken, fooled(model.logits(ours), y))


def test_square_breaks_with_queries_alone(setting):
    model, x, y = setting
    model.passes.forward = model.passes.backward = 0
    threat = ThreatModel.parse("Linf:8/255")
    x_adv = attack("Square", n_queries=200).run(model, x, y, threat, NOISE)
    ours = ATTACKS.get("square").target(n_queries=200).run(model, x, y, threat, NOISE)
    broken, own = fooled(model.logits(x_adv), y), fooled(model.logits(ours), y)
    assert broken.any()
    assert (broken != own).sum() <= 2
    assert model.passes.backward == 0


def test_it_leaves_nothing_behind_and_its_seed_is_that_of_the_run(setting):
    model, x, y = setting
    threat = ThreatModel.parse("Linf:16/255")
    run = attack("Square", n_queries=20).run
    before = (torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    first = run(model, x, y, threat, NOISE)
    after = (torch.random.get_rng_state(), np.random.get_state()[1], random.getstate())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    torch.manual_seed(99)
    assert torch.equal(run(model, x, y, threat, NOISE), first)
    assert not torch.equal(run(model, x, y, threat, Noise(1, "oracle").at(NOISE.ids)), first)
    assert not torch.equal(run(model, x, y, threat, Noise(0, "other").at(NOISE.ids)), first)
    assert all(p.grad is None and not p.requires_grad for p in model.module.parameters())


def test_a_network_that_it_switches_is_switched_back(setting, monkeypatch):
    model, x, y = setting
    package = pytest.importorskip("torchattacks")

    def meddle(self, images, labels):
        self.model.train()
        self.model.requires_grad_(True)
        self.model(images).sum().backward()
        return images

    monkeypatch.setattr(package.FGSM, "forward", meddle)
    attack("FGSM").run(model, x, y, ThreatModel.parse("Linf:1/255"), NOISE)
    assert not any(m.training for m in model.module.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.module.parameters())


def test_passes_are_counted_and_a_network_without_parameters_will_do(setting):
    _, x, _ = setting
    table = torch.randn(192, 4, generator=torch.Generator().manual_seed(0))

    class Fixed(nn.Module):
        def forward(self, v):
            return v.flatten(1) @ table

    model = Classifier(Fixed(), num_classes=4, input_shape=(3, 8, 8))
    y = model.logits(x).argmax(1)
    model.passes.forward = model.passes.backward = 0
    attack("PGD", steps=7).run(model, x, y, ThreatModel.parse("Linf:1/255"), NOISE)
    assert (model.passes.forward, model.passes.backward) == (12 * 7, 12 * 7)


def test_a_stage_of_a_run_with_parameters_from_outside(problem_of, tmp_path):
    pytest.importorskip("torchattacks")
    protocol = with_params(custom_protocol(["torchattacks:PGD"], []), {"torchattacks:PGD.alpha": 0.01})
    prepared = prepare(*problem_of, ThreatModel.parse("Linf:8/255"), protocol, slots=4, threads=1)
    assert prepared.stages[0].plan.params["alpha"] == 0.01
    record = evaluate(prepared, tmp_path).record
    (stage,) = [s for s in record.stages if s.kind == "attack"]
    assert (stage.status, stage.plugin) == ("done", "torchattacks:PGD")
    assert stage.n_broken > 0


def test_an_unknown_class_has_the_nearest_names():
    pytest.importorskip("torchattacks")
    with pytest.raises(UnknownNameError, match="Did you mean 'torchattacks:PGD'"):
        ATTACKS.get("torchattacks:PDG")


def test_without_the_package_its_names_say_what_to_install_and_lists_go_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    registry = Registry("attack", "robustsuite.attacks")
    registry.family("torchattacks")(adapters.register_all)
    monkeypatch.setattr(registry, "_discovered", True)
    registry.register("mine")(object)
    with pytest.raises(PrerequisiteError, match=r"robustsuite\[reference\]"):
        registry.get("torchattacks:PGD")
    assert [e.name for e in registry] == ["mine"]
    assert "mine" in registry


def test_it_is_imported_only_when_one_of_its_names_is_asked_for():
    code = (
        "import json, sys; from robustsuite.registry import ATTACKS; ATTACKS.get('pgd'); "
        "print(json.dumps('torchattacks' in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) is False
