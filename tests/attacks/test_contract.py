"""What every stepper promises: ball and box, one evaluation a step, slots that do not see each other."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from robustsuite.attacks.base import State, Stepper
from robustsuite.attacks.square import Square
from robustsuite.models.classifier import Classifier, fooled, margins
from robustsuite.noise import Noise
from robustsuite.registry import ATTACKS
from robustsuite.threat import Eps, ThreatModel

WEAK = {"Linf": "Linf:1/255", "L2": "L2:0.02", "L1": "L1:0.05"}
STRONG = {"Linf": "Linf:16/255", "L2": "L2:0.7", "L1": "L1:4"}
NOISE = Noise(0, "test")


def start(
    stepper: Stepper, model: Classifier, x: Tensor, y: Tensor, ids: Tensor, threat: ThreatModel, lane: int = 0
) -> State:
    return stepper.init(x, y, model.logits(x), torch.full_like(y, lane), threat, NOISE.at(ids))


def snapshot(state: State) -> dict[str, Tensor]:
    return {f.name: getattr(state, f.name).clone() for f in fields(state)}


@pytest.fixture
def setting(cnn, images):
    model, x = cnn(), images(8)
    return model, x, model.logits(x).argmax(1), torch.arange(8) + 100


def test_results_stay_in_ball_and_box(stepper, norm, setting):
    model, x, y, ids = setting
    x = (x * 1.5 - 0.25).clamp(0, 1)  # many pixels on the box
    y = model.logits(x).argmax(1)
    for text in (WEAK[norm], STRONG[norm]):
        threat = ThreatModel.parse(text)
        wide = 3 if getattr(stepper, "largereps", False) else 1  # radii of the ball that it searches, not of its result
        searched = ThreatModel(threat.norm, Eps(wide * threat.eps.fraction))
        state = start(stepper, model, x, y, ids, threat)
        for _ in range(stepper.budget):
            assert searched.contains(x, state.x_adv).all()
            state = stepper.step(model, state, threat, NOISE.at(ids))
            assert threat.contains(x, state.x_adv)[state.done].all()
        assert threat.contains(x, stepper.run(model, x, y, threat, NOISE.at(ids))).all()


def test_init_calls_no_model_and_a_step_is_one_evaluation(stepper, norm, setting):
    model, x, y, ids = setting
    logits, threat = model.logits(x), ThreatModel.parse(WEAK[norm])
    model.passes.forward = model.passes.backward = 0
    state = stepper.init(x, y, logits, torch.zeros_like(y), threat, NOISE.at(ids))
    assert (model.passes.forward, model.passes.backward) == (0, 0)
    for done in range(1, 4):
        state = stepper.step(model, state, threat, NOISE.at(ids))
        assert (model.passes.forward, model.passes.backward) == tuple(8 * done * c for c in stepper.cost)


def test_state_has_a_slot_dimension_and_owns_its_memory(stepper, norm, setting):
    model, x, y, ids = setting
    logits, lane = model.logits(x), torch.zeros_like(y)
    state = stepper.init(x, y, logits, lane, ThreatModel.parse(WEAK[norm]), NOISE.at(ids))
    tensors = [getattr(state, f.name) for f in fields(state)]
    assert all(t.shape[0] == 8 and t.is_contiguous() for t in tensors)
    pointers = [t.data_ptr() for t in [*tensors, x, y, ids, lane]]
    assert len(set(pointers)) == len(pointers)


def test_unbroken_slots_stop_at_the_budget(stepper, norm, setting):
    model, x, y, ids = setting
    threat = ThreatModel.parse(f"{norm}:0")
    state = start(stepper, model, x, y, ids, threat)
    for _ in range(stepper.budget - 1):
        state = stepper.step(model, state, threat, NOISE.at(ids))
    assert not state.done.any()
    state = stepper.step(model, state, threat, NOISE.at(ids))
    assert state.done.all()
    assert not state.fooled.any()
    assert (state.it == stepper.budget).all()


def test_a_slot_that_is_done_keeps_its_row(stepper, norm, setting):
    model, x, y, ids = setting
    threat = ThreatModel.parse(STRONG[norm])
    state = start(stepper, model, x, y, ids, threat)
    state.done[2] = True  # as an engine does with what it cancels
    kept: dict[int, dict[str, Tensor]] = {2: {k: v[2] for k, v in snapshot(state).items()}}
    shared = {"plans", "planned"}  # random numbers for later, planned for all slots at once
    for _ in range(stepper.budget + 2):
        state = stepper.step(model, state, threat, NOISE.at(ids))
        now = snapshot(state)
        for slot in range(8):
            row = {k: v[slot] for k, v in now.items()}
            if slot in kept:
                assert all(torch.equal(row[k], v) for k, v in kept[slot].items() if k not in shared)
            elif bool(state.done[slot]):
                kept[slot] = row
    assert len(kept) == 8
    assert state.fooled.any()
    assert fooled(model.logits(state.x_adv), y)[state.fooled].all()


def follow(stepper: Stepper, model: Classifier, state: State, threat: ThreatModel, steps: int) -> list[dict]:
    course = []
    for _ in range(steps):
        state = stepper.step(model, state, threat, NOISE.at(state.ids))
        course.append(snapshot(state))
    return course


def test_a_slot_does_not_see_the_others(stepper, norm, setting, images):
    """The same example in another slot, among other examples: the same bits at the same batch shape."""
    model, x, y, ids = setting
    threat = ThreatModel.parse(WEAK[norm])
    steps = min(stepper.budget, 40)
    alone = follow(stepper, model, start(stepper, model, x, y, ids, threat), threat, steps)
    other = images(8, seed=9)
    other[5] = x[1]
    other_y, other_ids = model.logits(other).argmax(1), torch.arange(8) + 900
    other_ids[5] = ids[1]
    among = follow(stepper, model, start(stepper, model, other, other_y, other_ids, threat), threat, steps)
    for a, b in zip(alone, among, strict=True):
        for key in a.keys() - {"plans", "planned"}:
            assert torch.equal(a[key][1], b[key][5]), key


@pytest.mark.parametrize("late", [1, 7, 33])
def test_a_slot_that_is_refilled_late_runs_the_same_course(stepper, norm, setting, late):
    model, x, y, ids = setting
    threat = ThreatModel.parse(WEAK[norm])
    steps = min(stepper.budget, 40)
    early = follow(stepper, model, start(stepper, model, x, y, ids, threat), threat, steps)
    swapped = torch.arange(8).flip(0)
    state = start(stepper, model, x[swapped], y[swapped], ids[swapped], threat)
    follow(stepper, model, state, threat, late)
    fresh = start(stepper, model, x[3:4], y[3:4], ids[3:4], threat)
    for f in fields(state):
        getattr(state, f.name)[6] = getattr(fresh, f.name)[0]
    for a, b in zip(early, follow(stepper, model, state, threat, steps), strict=True):
        assert torch.equal(a["x_adv"][3], b["x_adv"][6])
        assert torch.equal(a["it"][3], b["it"][6])


def test_a_refused_candidate_is_passed_over(stepper, norm, setting):
    """With its evaluation muted, the same course runs on beyond it."""
    model, x, y, ids = setting
    y = y.clone()
    y[0] = 1 - y[0]  # wrong from the start: FGSM has no other candidate before its last
    threat = ThreatModel.parse(STRONG[norm])
    first = start(stepper, model, x, y, ids, threat)
    while not bool(first.done.all()):
        first = stepper.step(model, first, threat, NOISE.at(ids))
    again = start(stepper, model, x, y, ids, threat)
    again.muted = torch.where(first.fooled, first.it - 1, again.muted)
    refused = first.fooled & (first.it < stepper.budget)
    assert refused.any()
    passed_over = torch.zeros_like(refused)
    while not bool(again.done.all()):
        at_candidate = refused & (again.it == again.muted)
        assert torch.equal(again.x_adv[at_candidate], first.x_adv[at_candidate])
        again = stepper.step(model, again, threat, NOISE.at(ids))
        assert not again.fooled[at_candidate].any()
        assert not again.done[at_candidate].any()
        passed_over |= at_candidate
    assert torch.equal(passed_over, refused)
    assert (again.it > first.it)[refused].all()


def test_lanes_differ_where_the_attack_is_random(stepper, norm, setting):
    model, x, y, ids = setting
    threat = ThreatModel.parse(STRONG[norm])
    a, b = (start(stepper, model, x, y, ids, threat, lane=lane).x_adv for lane in (0, 1))
    random = type(stepper).__name__ not in ("FGSM", "MALT", "FAB", "FABT")  # whose first lane starts at the image
    assert bool((a != b).flatten(1).any(1).all()) == random


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_any_number_of_classes(stepper, norm, classes, cnn, images):
    model, x = cnn(classes=classes), images(6)
    y, threat = model.logits(x).argmax(1), ThreatModel.parse(STRONG[norm])
    x_adv = stepper.run(model, x, y, threat, NOISE.at(torch.arange(6)))
    assert threat.contains(x, x_adv).all()
    assert torch.isfinite(x_adv).all()
    before, after = margins(model.logits(x), y), margins(model.logits(x_adv), y)
    assert (after < before).float().mean() >= (0.5 if isinstance(stepper, Square) else 0.8)
    assert after.mean() < before.mean() - 0.01


@pytest.mark.parametrize("classes", [2, 3, 5, 8, 10, 100, 1000])
def test_every_attack_runs_on_any_number_of_classes(classes, cnn, images):
    """Every one that is registered here, in all its norms, on DLR where it has a choice of losses."""
    model, x = cnn(classes=classes), images(2)
    y, ids = model.logits(x).argmax(1), torch.arange(2)
    tried = set()
    for entry in ATTACKS:
        if entry.name.startswith("reference:") or not entry.origin.startswith("robustsuite."):
            continue
        names = {f.name for f in fields(entry.target)}
        small = {"steps": 6, "n_queries": 8, "n_iter": 4, "n_targets": 3, "loss": "dlr"}
        attack = entry.target(**{name: value for name, value in small.items() if name in names})
        for norm in entry.facts["norms"]:
            threat = ThreatModel.parse(STRONG[norm])
            x_adv = attack.run(model, x, y, threat, NOISE.at(ids))
            assert threat.contains(x, x_adv).all(), (entry.name, norm)
            assert (x_adv != x).any(), (entry.name, norm)
        tried.add(entry.name)
    assert tried >= {"fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-margin", "apgd-t", "fab", "fab-t", "pma", "square"}


def test_nan_gradients_leave_the_slot_where_it_is(stepper, norm, images):
    class Broken(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)[:, :3]
            return z + 0 * (z - z).sqrt()  # the root's gradient at 0 is infinite, times 0: NaN

    model = Classifier(Broken(), num_classes=3, input_shape=(3, 8, 8))
    x = images(4)
    y, threat = model.logits(x).argmax(1), ThreatModel.parse(WEAK[norm])
    x_adv = stepper.run(model, x, y, threat, NOISE.at(torch.arange(4)))
    assert threat.contains(x, x_adv).all()


@pytest.mark.parametrize(
    ("name", "norms", "access"),
    [
        ("fgsm", ("Linf", "L2", "L1"), "white-box"),
        ("pgd", ("Linf", "L2", "L1"), "white-box"),
        ("apgd-ce", ("Linf", "L2", "L1"), "white-box"),
        ("apgd-dlr", ("Linf", "L2", "L1"), "white-box"),
        ("apgd-margin", ("Linf", "L2", "L1"), "white-box"),
        ("apgd-t", ("Linf", "L2", "L1"), "white-box"),
        ("pma", ("Linf", "L2"), "white-box"),
        ("malt", ("Linf", "L2", "L1"), "white-box"),
        ("beta", ("Linf", "L2"), "white-box"),
        ("fab-t", ("Linf", "L2", "L1"), "white-box"),
        ("fab", ("Linf", "L2", "L1"), "white-box"),
        ("square", ("Linf", "L2", "L1"), "score"),
        ("reference:autoattack", ("Linf", "L2", "L1"), "white-box"),
    ],
)
def test_registration(name, norms, access):
    entry = ATTACKS.get(name)
    assert entry.facts["norms"] == norms
    assert entry.facts["access"] == access
    assert entry.facts["kind"] == "bounded"
    assert entry.facts["min_classes"] == 2
    assert entry.facts["randomized"] == (name != "fgsm")
    assert "arXiv:" in entry.facts["paper"]
    assert entry.summary.endswith(".") or len(entry.summary) > 20
