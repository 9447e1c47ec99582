"""What a finished run says about its own attacks: contradictions in its ledger, and cheap probes of a keyed sample.

Gradient masking shows in things that cannot be on a model whose gradients are right: random noise or a single step
does better than many steps, a ball as large as the whole box leaves images standing, gradients are exactly zero. Most
of these tests are from Athalye, Carlini and Wagner 2018 (arXiv:1802.00420), section 3.1, and from the thresholds that
AutoAttack warns at. Every probe is keyed by seed and example, and makes batches of the run's shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from robustsuite.attacks.base import Stepper
from robustsuite.attacks.fgsm import FGSM
from robustsuite.attacks.losses import LOSSES
from robustsuite.attacks.pgd import PGD
from robustsuite.attacks.starts import inside, on_surface, within
from robustsuite.evaluation.check_sample import flag
from robustsuite.evaluation.protocol import Stage
from robustsuite.evaluation.stages import Bench
from robustsuite.models.classifier import fooled, margins
from robustsuite.models.randomized import RandomizedClassifier
from robustsuite.noise import ExampleNoise, Noise
from robustsuite.results.flags import UNRELIABLE
from robustsuite.results.ledger import Outcome, StageLedger
from robustsuite.results.schema import Flag
from robustsuite.threat import Eps, ThreatModel

_EXAMPLES = 64
_NOISE_DRAWS = 16
_BALL_POINTS = 2
_MASKED = "Gradients may be masked: attack a surrogate or use a backward-pass substitute, and query-based attacks."

SUSPICIOUS = UNRELIABLE | {"saturated_gradients", "saturated_under_attack", "loss_gap"}
"""Flags that, when raised, call for the next tier's extra stages."""


def suspicions(bench: Bench, stages: list[Stage], ledger: dict[str, StageLedger]) -> list[Flag]:
    """Flags on the run's attacks, from the merged ``ledger`` (by stage; "clean" included) and from probes.

    The probes need a white-box attack among the stages to be held against, a model that declares gradients and a
    clean image that it gets right; without one of these only the ledger speaks. They cost at most 150 forward and
    backward passes for each of at most 128 images.
    """
    access = {s.plan.name: s.entry.facts.get("access", "white-box") for s in stages if s.plan.kind == "attack"}
    white = [name for name, kind in access.items() if kind == "white-box"]
    flags = _ledger_flags(white, [name for name in access if name not in white], ledger)
    correct = ledger["clean"].outcome != Outcome.BROKEN
    if not white or bench.model.facts.differentiable == "none" or not correct.any():
        return flags
    seen = [ledger[s.plan.name].outcome for s in stages]
    settled = np.isin(seen, [Outcome.BROKEN, Outcome.CERTIFIED, Outcome.ERROR]).any(0)
    open_ = correct & ~settled
    survivors = _Sample.draw(bench, correct, first=open_)
    gradients, differentiable = _gradient_flags(survivors)
    flags += gradients
    if differentiable:
        flags += _survivor_flags(survivors, int(open_.sum()))
        flags += _step_flags(_Sample.draw(bench, correct, first=correct))
    return flags


@dataclass
class _Sample:
    """Examples to probe, on the model's device; `slots` rows make a batch, fewer once memory has run out."""

    bench: Bench
    slots: int
    x: Tensor
    y: Tensor
    ids: Tensor

    @classmethod
    def draw(cls, bench: Bench, among: np.ndarray, first: np.ndarray) -> "_Sample":
        """Up to 64 of ``among``, by their keyed numbers; those in ``first`` come first."""
        keys = Noise(bench.seed, "suspicion/sample").at(bench.data.ids).bits(1)[:, 0].numpy()
        order = np.lexsort((keys, ~first, ~among))[: min(_EXAMPLES, int(among.sum()))]
        x, y, ids, _ = bench.rows(order.tolist())
        return cls(bench, bench.slots, x, y, ids)

    def __len__(self) -> int:
        return self.y.shape[0]

    def map(self, work: Callable[[Tensor, Tensor, ExampleNoise], Tensor], name: str, x: Tensor | None = None) -> Tensor:
        """``work(x, y, noise)`` in batches of exactly `slots` rows, the last one filled up with its first."""
        x, noise = self.x if x is None else x, Noise(self.bench.seed, f"suspicion/{name}")
        out: list[Tensor] = []
        if isinstance(self.bench.model, RandomizedClassifier):
            self.bench.model.restart(noise)
        start = 0
        while start < len(self):
            index = torch.arange(start, start + self.slots, device=x.device)
            index = index.where(index < len(self), start)
            try:
                out.append(work(x[index], self.y[index], noise.at(self.ids[index]))[: len(self) - start])
            except torch.OutOfMemoryError:
                if self.slots == 1:
                    raise
                self.slots //= 2
                torch.cuda.empty_cache()
                continue
            start += self.slots
        return torch.cat(out)

    def attack(self, stepper: Stepper, name: str, threat: ThreatModel | None = None) -> Tensor:
        """The points that an attack ends at, ``[M,C,H,W]``."""
        model, ball = self.bench.model, threat or self.bench.threat
        return self.map(lambda x, y, noise: stepper.run(model, x, y, ball, noise), name)

    def logits(self, x: Tensor) -> Tensor:
        """Logits at ``x``, ``[M,K]``."""
        return self.map(lambda batch, y, noise: self.bench.model.logits(batch), "logits", x)

    def fooled_at(self, x: Tensor) -> Tensor:
        """Whether the model errs at ``x``, bool ``[M]``."""
        return fooled(self.logits(x), self.y)

    @cached_property
    def clean_margins(self) -> Tensor:
        """Margins at the images, ``[M]``."""
        return margins(self.logits(self.x), self.y)


def _many(count: int, of: int, share: float = 0.03) -> bool:
    """More than a share, and more than the two examples that chance alone explains on a small set."""
    return count > max(2, share * of)


def _ledger_flags(white: list[str], others: list[str], ledger: dict[str, StageLedger]) -> list[Flag]:
    """What attacks without gradients broke although those with gradients had been there, or will come."""
    if not white or not others:
        return []
    n = len(ledger["clean"].outcome)
    extra = sum(int((ledger[name].outcome == Outcome.BROKEN).sum()) for name in others)
    # AutoAttack warns above 0.2 %.
    evidence = f"{', '.join(others)} broke {extra} of {n} examples that {', '.join(white)} had left"
    return [flag("score_beats_white_box", _many(extra, n, 0.002), evidence, _MASKED)]


def _gradient_flags(s: _Sample) -> tuple[list[Flag], bool]:
    """Gradients that are exactly zero, at the images and at random points of the ball; whether there are any."""
    try:
        zero = {loss: sum(_zeros(s, loss, point) for point in range(1 + _BALL_POINTS)) for loss in ("ce", "margin")}
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        evidence = f"no gradient reaches the input ({str(error).splitlines()[0]})"
        return [flag("zero_gradients_under_attack", True, evidence, _MASKED)], False
    points = len(s) * (1 + _BALL_POINTS)
    dead, blind = zero["margin"], max(zero["ce"] - zero["margin"], 0)
    where = f"{points} points ({len(s)} images and random points of their balls)"
    vanished = f"the margin's gradient is exactly zero at {dead} of {where}"
    saturated = f"cross-entropy alone has a gradient of exactly zero at {blind} of {where}"
    remedy = "The logits saturate: cross-entropy sees nothing there, use margin, DLR and query-based attacks."
    return [
        flag("zero_gradients_under_attack", dead > 0.01 * points, vanished, _MASKED),
        flag("saturated_under_attack", blind > 0.01 * points, saturated, remedy),
    ], True


def _zeros(s: _Sample, loss: str, point: int) -> int:
    """Images with a gradient of exactly zero at the image (point 0) or at a random point of the ball."""
    ball = within(s.bench.threat, s.x[0].numel())

    def zero(x: Tensor, y: Tensor, noise: ExampleNoise) -> Tensor:
        at = inside(x, ball, noise, torch.full_like(y, point)) if point else x
        _, grad = s.bench.model.gradient(at, lambda z: LOSSES[loss](z, y))
        return (grad.flatten(1) == 0).all(1)

    return int(s.map(zero, "points").sum())


def _climb(steps: int) -> PGD:
    """PGD on the margin to the very end: what barely fools a random model once is no evidence."""
    return PGD(steps=steps, loss="margin", stop_when_fooled=False)


def _survivor_flags(s: _Sample, left: int) -> list[Flag]:
    """Cheap attacks on what the run left, and one without a bound."""
    left = min(left, len(s))
    short, long = _climb(10), _climb(40)
    noise = _broken(s, _noisy(s), left)
    probe = noise | _broken(s, s.attack(FGSM(loss="margin"), "fgsm"), left) | _broken(s, s.attack(short, "pgd"), left)
    by_noise, by_probe = int(noise.sum()), int(probe.sum())
    sampled = f"of {left} sampled examples that the run left"
    whole = _whole_box(s.bench.threat, s.x[0].numel())
    standing = len(s) - int(s.fooled_at(s.attack(long, "unbounded", whole)).sum())
    return [
        flag(
            "noise_beats_white_box",
            _many(by_noise, left),
            f"random points of the ball break {by_noise} {sampled}",
            _MASKED,
        ),
        flag(
            "probe_beats_run",
            _many(by_probe, left, 0.05),
            f"noise, FGSM and a 10-step PGD on the margin break {by_probe} {sampled}",
            "The run's attacks are too weak for this model: run a stronger tier, with margin and query-based attacks.",
        ),
        flag(
            "unbounded_attack_fails",
            _many(standing, len(s), 0.05),
            f"a 40-step PGD free in the whole box ({whole}) leaves {standing} of {len(s)} images standing",
            _MASKED,
        ),
    ]


def _broken(s: _Sample, x_adv: Tensor, left: int) -> np.ndarray:
    """Which of the first ``left`` examples the evaluator calls broken at ``x_adv``, bool ``[left]``."""
    if not bool(s.fooled_at(x_adv)[:left].any()):  # judging costs a sampling classifier a thousand passes an example
        return np.zeros(left, bool)
    verdicts = replace(s.bench, slots=s.slots).judge()(s.x[:left], s.y[:left], s.ids[:left], x_adv[:left])
    return np.array([v.broken for v in verdicts])


def _noisy(s: _Sample) -> Tensor:
    """For each example the point with the smallest margin among random points of the ball's surface."""
    ball = within(s.bench.threat, s.x[0].numel())

    def worst(x: Tensor, y: Tensor, noise: ExampleNoise) -> Tensor:
        found, best = x.clone(), torch.full_like(x[:, 0, 0, 0], float("inf"))
        for draw in range(_NOISE_DRAWS):
            if ball.norm == "Linf":  # corners of the cube reach further than its faces do
                point = (x + ball.radius * noise.signs(x.shape[1:], draw)).clamp_(0, 1)
            else:
                point = on_surface(x, ball, noise, torch.full_like(y, draw))
            margin = margins(s.bench.model.logits(point), y)
            better = margin < best
            best = margin.where(better, best)
            found = point.where(better.view(-1, 1, 1, 1), found)
        return found

    return s.map(worst, "noise")


def _whole_box(threat: ThreatModel, pixels: int) -> ThreatModel:
    """The ball that holds the box wherever its centre lies."""
    eps = {"Linf": 1, "L2": math.ceil(pixels**0.5), "L1": pixels}
    return replace(threat, eps=Eps.parse(eps[threat.norm]))


def _step_flags(s: _Sample) -> list[Flag]:
    """One step against ten, ten against forty, and cross-entropy against the margin, each judged where it ends."""
    ten, forty = _climb(10), _climb(40)
    ends = {
        "one": s.attack(FGSM(loss="margin"), "one"),
        "ten": s.attack(ten, "steps"),
        "forty": s.attack(forty, "steps"),
        "ce": s.attack(replace(ten, loss="ce"), "steps"),
    }
    logits = {name: s.logits(x) for name, x in ends.items()}
    broke = {name: int(fooled(z, s.y).sum()) for name, z in logits.items()}
    margin = {name: margins(z, s.y) for name, z in logits.items()}
    gain = s.clean_margins - margin["ten"]
    worse = int((margin["forty"] > margin["ten"] + 0.05 * gain.abs()).sum())
    gap = abs(broke["ten"] - broke["ce"])
    m = len(s)
    return [
        flag(
            "single_step_beats_multi_step",
            _many(broke["one"] - broke["ten"], m),
            f"FGSM breaks {broke['one']} of {m} images, a 10-step PGD {broke['ten']}",
            _MASKED,
        ),
        flag(
            "more_steps_help_nothing",
            _many(broke["ten"] - broke["forty"], m) or _many(worse, m, 0.5),
            f"10 steps break {broke['ten']} of {m} images and 40 steps {broke['forty']}; "
            f"with 40 the loss ends lower on {worse}",
            _MASKED,
        ),
        flag(
            "loss_gap",
            _many(gap, m, 0.1),  # honest networks were seen to differ by 4 of 64
            f"a 10-step PGD breaks {broke['ce']} of {m} images with cross-entropy, {broke['ten']} with the margin",
            "The losses disagree: use attacks with both, and with DLR.",
        ),
    ]
