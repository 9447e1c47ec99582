"""Three verdicts on random models: against closed forms, and the same however the run went."""

import runpy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustsuite.attacks import register_attack
from robustsuite.attacks.apgd import APGDCE
from robustsuite.attacks.starts import within
from robustsuite.data.reference import load_data
from robustsuite.evaluation.evaluator import evaluate
from robustsuite.evaluation.ledger import Blocks, LedgerStore
from robustsuite.evaluation.progress import Silent
from robustsuite.evaluation.stages import Bench, run_clean, run_stage
from robustsuite.evaluation.verdicts import read_points, recount, run_verdicts
from robustsuite.models.classifier import Classifier, Facts
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.registry import ATTACKS
from robustsuite.results.arithmetic import verdict_metrics
from robustsuite.results.ledger import CLEAN, VERDICT, Outcome, StageLedger

TOYS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
LinearNet, Problem, linear_problem = TOYS["LinearNet"], TOYS["Problem"], TOYS["linear_problem"]
EPS, SIGMA, DRAWS = 0.02, 0.05, 100


@dataclass(frozen=True)
class MeanAPGD(APGDCE):
    """APGD that is steered by the mean loss of the draws."""

    def step(self, model, state, threat, noise):
        threat, rule = within(threat, state.x[0].numel()), self.rule(threat)
        loss, logits, grad = model.loss_gradient(state.x_adv, lambda z: self.losses(z, state))
        rule.advance(state, loss, grad.nan_to_num(0), rule.settle(state, logits), threat)
        return state


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    register_attack("mean-apgd", norms=("Linf",), access="white-box", kind="bounded")(MeanAPGD)
    yield
    ATTACKS.entries.pop("mean-apgd", None)


class Noisy(nn.Module):
    """A network that sees its input through Gaussian noise, drawn for each image or once for the batch."""

    def __init__(self, inner: nn.Module, shared: bool = False) -> None:
        super().__init__()
        self.inner, self.shared = inner, shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + SIGMA * (torch.randn_like(x[:1]) if self.shared else torch.randn_like(x)))


def noisy_problem(n: int = 60, eot: int = 4, draws: int = DRAWS, shared: bool = False) -> Problem:
    problem = linear_problem(n, module=Noisy(LinearNet(16), shared), randomized=True)
    problem.model = RandomizedClassifier(problem.model, eot=eot, draws=draws)
    return problem


def whole(store: LedgerStore, stage: str) -> StageLedger:
    out = StageLedger.empty(store.blocks.n)
    for block in range(store.blocks.count):
        found = store.read(stage, block)
        assert found is not None
        out.put(store.blocks.positions(block), found[0])
    return out


def attacked(
    problem: Problem, folder: Path, attacks=("mean-apgd",), steps: int = 10, eps: float = EPS, slots: int = 8
) -> tuple[Bench, LedgerStore]:
    """The clean predictions and the stages, without the rest of a run."""
    params = {f"{name}.steps": steps for name in attacks}
    prepared = problem.prepare(list(attacks), params=params, eps=str(eps))
    bench = Bench(prepared.model, prepared.data, prepared.threat, 0, slots, Silent())
    store = LedgerStore(folder, Blocks(len(prepared.data), prepared.request.block_size))
    run_clean(bench, store, store.blocks.mine())
    undecided = whole(store, CLEAN).outcome == Outcome.SURVIVED
    for stage in prepared.stages:
        run_stage(bench, store, stage, store.blocks.mine(), undecided)
        undecided &= whole(store, stage.plan.name).outcome != Outcome.BROKEN
    return bench, store


def verdicts(bench: Bench, store: LedgerStore, stages=("mean-apgd",)) -> tuple[StageLedger, StageLedger]:
    return run_verdicts(bench, store, stages), whole(store, CLEAN)


def accuracy(problem: Problem, eps: float) -> np.ndarray:
    """Phi((m - eps ||w||_1) / (sigma ||w||_2)), with 16 weights of +1 and -1: the accuracy of one draw."""
    margin = problem.radius * 16
    return torch.distributions.Normal(0.0, 1.0).cdf((margin - eps * 16) / (SIGMA * 4)).double().numpy()


@pytest.mark.parametrize("shared", [False, True])
def test_the_three_verdicts_are_those_of_the_closed_form(tmp_path, shared):
    problem = noisy_problem(200, shared=shared)
    verdict, clean = verdicts(*attacked(problem, tmp_path, slots=50))
    errors = clean.outcome == Outcome.BROKEN
    right = np.where(errors, accuracy(problem, 0.0), accuracy(problem, EPS))
    expected, majority, worst = verdict_metrics(verdict, clean, DRAWS)
    together = 50 if shared else 1  # examples that share a pass may all be lucky at once
    sd = float(np.sqrt(together * (right * (1 - right)).sum() / DRAWS)) / len(right)
    assert expected.value == pytest.approx(right.mean(), abs=5 * sd)
    assert expected.ci95[0] < right.mean() < expected.ci95[1]
    sure = (abs(right - 0.5) > 4 * np.sqrt(0.25 / DRAWS)) & ~errors
    assert sure.sum() > 120
    assert np.array_equal((2 * verdict.extra["wrong"] <= DRAWS)[sure], (right > 0.5)[sure])
    assert majority.value == pytest.approx((right > 0.5)[~errors].sum() / 200, abs=1.1 * (~sure).mean())
    never = np.where(errors, 0.0, right**DRAWS)
    spread = float(np.sqrt(together * (never * (1 - never)).sum())) / len(right)
    assert worst.value == pytest.approx(never.mean(), abs=5 * spread)
    assert worst.value < majority.value


def test_robust_accuracy_is_that_of_the_majority(tmp_path):
    problem = noisy_problem()
    _, store = attacked(problem, tmp_path)
    part, clean = whole(store, "mean-apgd"), whole(store, CLEAN)
    tried = clean.outcome == Outcome.SURVIVED
    assert np.array_equal(part.outcome[tried] == Outcome.BROKEN, 2 * part.extra["wrong"][tried] > DRAWS)
    assert (part.forward[tried] == 11 * problem.model.per_evaluation).all()  # nobody stops early


def test_what_most_draws_get_wrong_unattacked_is_a_clean_error(tmp_path):
    problem = noisy_problem()
    far = int(problem.radius.argmax())
    problem.data.y[far] = 1 - problem.data.y[far]
    bench, store = attacked(problem, tmp_path)
    verdict, clean = verdicts(bench, store)
    part = whole(store, "mean-apgd")
    assert (clean.outcome[far], part.outcome[far]) == (Outcome.BROKEN, Outcome.SKIPPED)
    assert clean.extra["wrong"][far] > DRAWS / 2
    assert (verdict.distance[far], verdict.outcome[far]) == (0.0, Outcome.SURVIVED)
    expected, majority, _ = verdict_metrics(verdict, clean, DRAWS)
    verdict.extra["wrong"][far] = 0  # lucky draws do not make it robust, but they count in the expectation
    lucky = verdict_metrics(verdict, clean, DRAWS)
    assert lucky[1] == majority
    assert lucky[0].value > expected.value


def test_stored_points_give_the_same_votes_again(tmp_path):
    problem = noisy_problem()
    bench, store = attacked(problem, tmp_path, ("pgd", "mean-apgd"), 4)
    verdict, clean = verdicts(bench, store, ("pgd", "mean-apgd"))
    kept = 0
    for block in range(store.blocks.count):
        points = read_points(store.adversarials_path(VERDICT, block))
        kept += len(points)
        again = recount(bench, store.blocks.positions(block), points)
        assert np.array_equal(again.extra["wrong"], verdict.extra["wrong"][store.blocks.positions(block)])
        for stage in ("pgd", "mean-apgd"):  # and the judge its own
            found = read_points(store.adversarials_path(stage, block))
            for position, x_adv in found.items():
                x, y, ids, _ = bench.rows([position])
                (said,) = bench.judge().exact(x, y, ids, torch.from_numpy(x_adv[None]))
                part, row = whole(store, stage), position
                assert (said.wrong, said.broken) == (part.extra["wrong"][row], True)
    assert kept >= (clean.outcome == Outcome.SURVIVED).sum() * 0.8  # survivors with an error in 100 draws too
    assert run_verdicts(bench, store, []).extra["wrong"].tolist() == verdict.extra["wrong"].tolist()  # read back


def outcomes(run_dir: Path) -> dict[str, bytes]:
    names = ("ledger", "adversarials", "left")
    paths = [p for name in names for p in run_dir.glob(f"{name}/*/*") if "flag" not in p.parent.name]
    return {str(p.relative_to(run_dir)): p.read_bytes() for p in paths}


def test_shards_resumption_and_global_seeds_change_nothing(tmp_path):
    attacks = ["pgd", "mean-apgd"]
    params = {"pgd.steps": 3, "mean-apgd.steps": 3}

    def prepared():
        return noisy_problem(draws=20).prepare(attacks, params=params, eps=str(EPS))

    torch.manual_seed(1)
    first = prepared()  # building a network draws from the global generator
    before = torch.get_rng_state()
    want = outcomes(evaluate(first, tmp_path / "one").directory)
    assert torch.equal(torch.get_rng_state(), before)
    assert any(name.startswith("left") for name in want)
    torch.manual_seed(2)
    for shard in ((1, 2), (0, 2)):
        sharded = evaluate(prepared(), tmp_path / "two", shard=shard).directory
    assert outcomes(sharded) == want
    resumed = tmp_path / "three" / sharded.name
    shutil.copytree(sharded, resumed)
    (resumed / "record.json").unlink()
    lost = sorted(resumed.glob("ledger/mean-apgd/*"))[2:5] + sorted(resumed.glob("ledger/pgd/*"))[3:4]
    for path in lost:
        path.unlink()
    evaluate(prepared(), tmp_path / "three")
    assert outcomes(resumed) == want


class DropoutCNN(nn.Module):
    """A small network whose dropout stays on."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 12, 3, padding=1)
        self.linear = nn.Linear(12 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.dropout(F.max_pool2d(self.convolution(x).relu(), 2).flatten(1), 0.5, training=True)
        return self.linear(hidden)


@pytest.fixture(scope="module")
def dropout_cnn() -> DropoutCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, data = DropoutCNN(), load_data("digits", split="train")
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(300):
            batch = torch.randint(len(data), (128,))
            loss = F.cross_entropy(net(data.x[batch]), data.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


def test_expectation_over_draws_attacks_dropout_better_than_one_draw(dropout_cnn, tmp_path):
    data = load_data("digits", subset="first:64")
    base = Classifier(dropout_cnn, num_classes=10, input_shape=data.input_shape, facts=Facts(randomized=True))
    expected = {}
    for eot in (1, 8):
        model = RandomizedClassifier(base, eot=eot)
        problem = Problem(model, data, noisy_problem(8).part, torch.zeros(64))
        verdict, clean = verdicts(*attacked(problem, tmp_path / str(eot), steps=15, eps=0.1, slots=16))
        expected[eot] = verdict_metrics(verdict, clean, DRAWS)[0].value
    assert 0 < expected[8] < expected[1]
