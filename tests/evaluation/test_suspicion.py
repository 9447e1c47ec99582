"""Probes find masked gradients, stay silent on honest models, and keep to their sample, their keys and their budget."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.evaluation.checks import check_model
from robustsuite.evaluation.evaluator import Prepared
from robustsuite.evaluation.progress import Silent
from robustsuite.evaluation.stages import Bench
from robustsuite.evaluation.suspicion import SUSPICIOUS, suspicions
from robustsuite.models.classifier import Classifier
from robustsuite.models.normalize import Normalize
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.models.smoothed import SmoothedClassifier
from robustsuite.results.flags import UNRELIABLE
from robustsuite.results.ledger import Outcome, StageLedger
from robustsuite.results.schema import Flag

FOOLING = runpy.run_path(str(Path(__file__).with_name("fooling.py")))
ready, carried_out = FOOLING["ready"], FOOLING["carried_out"]


def probed(prepared: Prepared, slots: int = 16, broken: Tensor | None = None, seed: int = 0) -> dict[str, Flag]:
    """The flags of a made-up run whose attacks broke the examples in ``broken`` and no other."""
    n = len(prepared.data)
    ledger = {name: StageLedger.empty(n) for name in ["clean", *[s.plan.name for s in prepared.stages]]}
    right = prepared.model.logits(prepared.data.x).argmax(1) == prepared.data.y
    ledger["clean"].outcome[:] = right.where(right, 0).numpy() + (~right).numpy() * Outcome.BROKEN
    if broken is not None:
        ledger[prepared.stages[0].plan.name].outcome[broken.numpy()] = Outcome.BROKEN
    bench = Bench(prepared.model, prepared.data, prepared.threat, seed, slots, Silent())
    return {f.name: f for f in suspicions(bench, prepared.stages, ledger)}


@pytest.fixture(scope="module")
def honest() -> nn.Module:
    return FOOLING["honest_network"]()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return FOOLING["test_images"](40)


def cnn_a(channels: int, side: int, path: Path) -> nn.Sequential:
    features = 32 * (side // 4) ** 2
    net = nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    net.load_state_dict(torch.load(path, weights_only=True))
    return net


def published(root: Path, name: str) -> tuple[Classifier, Dataset, str]:
    """An adversarially trained CNN-A, 70 of its images, and the ball that results are published for."""
    folder, channels, side, threat = {"mnist": ("mnist", 1, 28, "Linf:0.3"), "cifar": ("cifar10", 3, 32, "Linf:2/255")}[
        name
    ]
    x = torch.from_numpy(np.load(root / folder / "sdp_x.npy")).permute(0, 3, 1, 2).contiguous()[:70]
    y = torch.from_numpy(np.load(root / folder / "sdp_y.npy")).long()[:70]
    net = cnn_a(channels, side, root / "checkpoints" / f"{name}_cnn_a_adv.model")
    if name == "cifar":
        mean, std = ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
        net = nn.Sequential(Normalize(tuple(v / 255 for v in mean), tuple(v / 255 for v in std)), net)
    model = Classifier(net, num_classes=10, input_shape=(channels, side, side))
    return model, Dataset(name, x, y, torch.arange(70), 10), threat


@pytest.mark.parametrize("name", ["mnist", "cifar"])
def test_adversarially_trained_networks_raise_no_flag(shared_data, tmp_path, name):
    model, data, threat = published(shared_data, name)
    outcomes = carried_out(ready(model, data, threat, ["apgd-margin"], steps=25), tmp_path)
    assert outcomes.robust > 30
    assert not outcomes.raised & SUSPICIOUS


@pytest.mark.parametrize("threat", ["Linf:0.05", "L2:0.5", "L1:1.5"])
def test_an_ordinary_network_raises_no_flag_in_any_norm(honest, tmp_path, threat):
    model, data = FOOLING["classifier"](honest), FOOLING["test_images"](60)
    outcomes = carried_out(ready(model, data, threat, ["pgd"], steps=40), tmp_path)
    assert 0 < outcomes.robust < 60
    assert not outcomes.raised & SUSPICIOUS


def test_a_smoothed_classifier_is_probed_through_its_surrogate(honest, digits):
    base = FOOLING["classifier"](honest)
    model = SmoothedClassifier(base, sigma=0.1, n=100, m=4, batch=200)
    flags = probed(ready(model, digits, "L2:0.05", ["apgd-ce"]), slots=20)
    assert not [f for f in flags.values() if f.raised and f.name in UNRELIABLE]


def test_flags_depend_on_the_seed_alone(honest, digits):
    prepared = ready(FOOLING["classifier"](honest), digits, FOOLING["THREAT"], ["apgd-ce"])
    torch.manual_seed(1)
    first, state = probed(prepared), torch.random.get_rng_state()
    torch.manual_seed(2)
    second = probed(prepared)
    assert first == second
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing was drawn
    assert all(f.evidence for f in first.values())
    assert {name for name, f in first.items() if f.raised} == {name for name, f in first.items() if f.remedy}


class Recording(nn.Module):
    """Counts rows and notes batch shapes; refuses more rows than ``limit``, as a full device would."""

    def __init__(self, inner: nn.Module, limit: int = 1000) -> None:
        super().__init__()
        self.inner, self.limit, self.sizes = inner, limit, set()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > self.limit:
            raise torch.OutOfMemoryError("too many rows")
        self.sizes.add(x.shape[0])
        return self.inner(x)


def test_probes_keep_the_batch_shape_and_the_budget(honest):
    data = FOOLING["test_images"](300)
    module = Recording(honest)
    prepared = ready(FOOLING["classifier"](module), data, "Linf:0.01", ["apgd-ce"])
    prepared.model.logits(data.x)
    passes = prepared.model.passes
    passes.forward = passes.backward = 0
    module.sizes.clear()
    probed(prepared, slots=32)
    assert module.sizes == {32, 300}  # 300: the made-up clean pass
    assert passes.forward - 300 + passes.backward <= 128 * 150


def test_probes_go_on_with_smaller_batches_when_memory_runs_out(honest, digits):
    whole = probed(ready(FOOLING["classifier"](honest), digits, FOOLING["THREAT"], ["apgd-ce"]), slots=20)
    narrow = Recording(honest, limit=20)
    prepared = ready(FOOLING["classifier"](narrow), digits.take(torch.arange(20), "20"), FOOLING["THREAT"], ["apgd-ce"])
    flags = probed(prepared, slots=40)
    assert flags.keys() == whole.keys()
    assert narrow.sizes == {20}


def test_score_attacks_that_break_what_gradients_left_are_evidence(problem):
    prepared = problem.prepare(["square", "pgd"], eps="0.05")
    broken = torch.arange(5)
    flags = probed(prepared, broken=broken)
    assert flags["score_beats_white_box"].raised
    assert "square broke 5 of 40 examples that pgd had left" in flags["score_beats_white_box"].evidence
    assert not probed(prepared, broken=broken[:2])["score_beats_white_box"].raised


def test_a_run_that_left_what_a_short_attack_breaks_is_unreliable(problem):
    """A made-up run that broke nothing; closed form: every example within the radius can be broken in one step."""
    prepared = problem.prepare(["pgd"], eps="0.05")
    within = problem.radius < 0.05
    assert int(within.sum()) > 4
    assert f"break {int(within.sum())} of 40" in probed(prepared)["probe_beats_run"].evidence
    assert probed(prepared)["probe_beats_run"].raised
    assert not probed(prepared, broken=within)["probe_beats_run"].raised


def test_noise_that_breaks_what_gradients_left_is_evidence(problem):
    """Corners of a ball 0.5 wide: of 16 random ones the best moves the margin past many of the made-up survivors."""
    flags = probed(problem.prepare(["pgd"], eps="0.5"))
    assert flags["noise_beats_white_box"].raised
    assert not probed(problem.prepare(["pgd"], eps="0.001"))["noise_beats_white_box"].raised


class Reversed(nn.Module):
    """The right gradient on the images' own grid, its opposite everywhere else."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        on_grid = (x * 16 == (x * 16).round()).flatten(1).all(1, keepdim=True)
        along = torch.where(on_grid, z, -z)
        return (z - along).detach() + along


def test_one_step_that_beats_ten_is_evidence(honest, digits):
    flags = probed(ready(FOOLING["classifier"](Reversed(honest)), digits, FOOLING["THREAT"], ["apgd-ce"]))
    assert flags["single_step_beats_multi_step"].raised
    assert "a 10-step PGD 0" in flags["single_step_beats_multi_step"].evidence


def test_a_declared_random_model_is_probed_with_keyed_draws(honest, digits, tmp_path):
    noisy = FOOLING["classifier"](FOOLING["MASKS"]["noisy"](honest))
    prepared = ready(RandomizedClassifier(noisy, eot=4, draws=10), digits, "Linf:0.1", ["pgd"], steps=10)
    first = carried_out(prepared, tmp_path / "a")
    assert not first.raised & UNRELIABLE
    torch.manual_seed(5)
    assert carried_out(prepared, tmp_path / "b") == first


def test_nothing_is_probed_without_a_gradient_attack_or_a_right_prediction(problem):
    assert probed(problem.prepare(["square"])) == {}
    problem.data.y[:] = 1 - problem.data.y
    assert probed(problem.prepare(["pgd"])) == {}


def test_the_checks_that_mask_are_among_the_suspicious():
    assert UNRELIABLE < SUSPICIOUS


def test_the_checks_leave_torch_as_it_was(honest, digits):
    model = FOOLING["classifier"](FOOLING["MASKS"]["optimising"](honest))
    before = torch.is_grad_enabled(), torch.autograd.grad, torch.random.get_rng_state()
    check_model(model, digits)
    assert before[:2] == (torch.is_grad_enabled(), torch.autograd.grad)
    assert torch.equal(before[2], torch.random.get_rng_state())
    names = {f.name for f in check_model(FOOLING["classifier"](honest), digits) if f.raised}
    assert not names  # nothing of the model before sticks
