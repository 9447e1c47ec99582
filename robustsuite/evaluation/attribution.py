"""How well a model's explanations stand up to perturbations that leave its answers alone."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

from robustsuite.attacks.ifia import IFIA
from robustsuite.data.dataset import Dataset
from robustsuite.errors import ContractError, InputError, UsageError, VerificationError
from robustsuite.evaluation.checks import check_model, refuse
from robustsuite.models.classifier import Classifier
from robustsuite.models.saliency import centre, overlap, top_pixels
from robustsuite.noise import ExampleNoise, Noise
from robustsuite.threat import ThreatModel

_IMAGES = 256  # that a pass may hold: examples times the points of integrated gradients


@dataclass(frozen=True)
class Agreement:
    """How far pairs of maps agree, float64 ``[N]`` each; see `agreement`."""

    top_k: np.ndarray
    kendall: np.ndarray
    spearman: np.ndarray
    centre_shift: np.ndarray


@dataclass(frozen=True)
class AttributionRobustness:
    """What became of the maps of the ``ids`` that the model predicts rightly, of ``examples`` looked at.

    ``random``: after a random perturbation of full size; ``attacked``: after the attack. ``distance`` is that of the
    attack's image from the clean one. ``blind``: the attack had no gradient to follow.
    """

    examples: int
    k: int
    ids: np.ndarray
    labels: np.ndarray
    random: Agreement
    attacked: Agreement
    distance: np.ndarray
    blind: np.ndarray

    def table(self) -> pd.DataFrame:
        """One row an example."""
        columns = {"id": self.ids, "label": self.labels}
        for name, part in (("random", self.random), ("attacked", self.attacked)):
            columns |= {f"{name}_{f.name}": getattr(part, f.name) for f in fields(part)}
        return pd.DataFrame(columns | {"distance": self.distance, "blind": self.blind})


def agreement(a: Tensor, b: Tensor, k: int, height: int, width: int) -> Agreement:
    """Of maps ``[N,H*W]`` that sum to 1: top-k intersection, Kendall's tau-b, Spearman's rho, the centre's shift.

    The shift is in pixels. The two correlations are scipy's; where they are undefined, because a map is constant, they
    are 1 for equal maps and 0 for others.
    """
    shift = (centre(a.double(), height, width) - centre(b.double(), height, width)).norm(dim=1)
    pairs = list(zip(a.double().cpu().numpy(), b.double().cpu().numpy(), strict=True))
    return Agreement(
        overlap(top_pixels(a, k), top_pixels(b, k)).cpu().numpy(),
        np.array([_correlation(kendalltau, *pair) for pair in pairs]),
        np.array([_correlation(spearmanr, *pair) for pair in pairs]),
        shift.cpu().numpy(),
    )


def _correlation(rule: object, a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float(np.array_equal(a, b))
    return float(rule(a, b).statistic)  # type: ignore[operator]


def evaluate_attributions(
    model: Classifier,
    data: Dataset,
    threat: ThreatModel,
    attack: IFIA,
    *,
    seed: int = 0,
    slots: int | None = None,
) -> AttributionRobustness:
    """Attack the attributions of the examples that the model predicts rightly, ``slots`` at once.

    The last batch is filled up, so that every pass has one shape. Raises `UsageError` at eps 0, for a model whose
    attributions are not its own (randomised, or with a substitute for its gradient) and for a k that is too large,
    `ContractError` where the model is not what it declares, `InputError` when no example is predicted rightly.
    """
    _can_be_attributed(model, threat)
    attack.top(data.x)
    _check(model, data, seed)
    right = _predicted_rightly(model, data)
    size = min(len(right), slots or max(1, _IMAGES // (attack.points if attack.attribution == "integrated" else 1)))
    noise = Noise(seed, "attribution")
    parts = [
        _batch(model, batch, threat, attack, noise.at(batch.ids.to(model.device)), kept)
        for batch, kept in _batches(right, size)
    ]
    return _joined(parts, len(data))


def _can_be_attributed(model: Classifier, threat: ThreatModel) -> None:
    if threat.radius == 0:
        raise UsageError("there is nothing to attack at eps 0; give a larger one.")
    if model.facts.randomized or type(model) is not Classifier:
        raise UsageError("attributions are those of one deterministic network; this model draws as it predicts.")
    if model.facts.differentiable != "full":
        raise UsageError(
            f"attributions need a model's own gradient; this one declares '{model.facts.differentiable}'. "
            "Give the network behind the transformation."
        )


def _check(model: Classifier, data: Dataset, seed: int) -> None:
    flags = check_model(model, data, seed)
    refuse(flags, randomized=False)
    for flag in flags:
        if flag.raised and flag.name in ("zero_gradients", "quantised_input"):
            raise ContractError(f"attributions need a model's own gradient. {flag.name}: {flag.evidence}.")


def _predicted_rightly(model: Classifier, data: Dataset) -> Dataset:
    found = torch.cat([model.logits(x.to(model.device)).argmax(1).cpu() for x in data.x.split(_IMAGES)])
    right = (found == data.y).nonzero().flatten()
    if not len(right):
        raise InputError(f"the model predicts none of the {len(data)} examples rightly; nothing is worth explaining.")
    return data.take(right, data.subset)


def _batches(data: Dataset, size: int) -> Iterator[tuple[Dataset, int]]:
    """Batches of one size, and how many rows of each count; ids stay unique, so the last one reaches back."""
    for start in range(0, len(data), size):
        first = min(start, len(data) - size)
        yield data.take(torch.arange(first, first + size), data.subset), min(size, len(data) - start)


def _batch(
    model: Classifier, batch: Dataset, threat: ThreatModel, attack: IFIA, noise: ExampleNoise, kept: int
) -> AttributionRobustness:
    """The last ``kept`` rows of a batch."""
    x, y = batch.x.to(model.device), batch.y.to(model.device)
    height, width = batch.input_shape[1:]
    logits, clean = attack.look(model, x, y)
    around = x + threat.project(x, threat.radius * threat.ascent(noise.child("random").normal(batch.input_shape)))
    blind = (attack.slope(model, x, y, attack.start(x, threat, noise)).flatten(1) == 0).all(1)
    x_adv = attack.run(model, x, y, threat, noise)
    after, maps = attack.look(model, x_adv, y)
    if not bool(threat.contains(x, x_adv).all()) or not bool((after.argmax(1) == logits.argmax(1)).all()):
        raise VerificationError(
            "the attack on attributions left the ball or changed a prediction: a bug of the attack."
        )
    rows, k = slice(len(y) - kept, None), attack.top(x)
    random, attacked = (
        agreement(clean[rows], other[rows], k, height, width) for other in (attack.look(model, around, y)[1], maps)
    )
    distance, marks = threat.distance(x, x_adv)[rows].cpu().numpy(), blind[rows].cpu().numpy()
    ids, labels = batch.ids[rows].numpy(), batch.y[rows].numpy()
    return AttributionRobustness(kept, k, ids, labels, random, attacked, distance, marks)


def _joined(parts: list[AttributionRobustness], examples: int) -> AttributionRobustness:
    def one(name: str, of: list) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in of])

    random, attacked = (
        Agreement(*(one(f.name, [getattr(part, side) for part in parts]) for f in fields(Agreement)))
        for side in ("random", "attacked")
    )
    ids, labels, distance, blind = (one(name, parts) for name in ("ids", "labels", "distance", "blind"))
    return AttributionRobustness(examples, parts[0].k, ids, labels, random, attacked, distance, blind)
