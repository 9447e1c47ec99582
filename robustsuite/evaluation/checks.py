"""Contract checks of a model: what it declares is tested on a few examples before anything is spent on it.

Each check that fails names its evidence and the remedy. Those in `FATAL` refuse the model, because no number that
follows would mean anything; the others become flags of the record.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.errors import ContractError
from robustsuite.models.classifier import Classifier, margins
from robustsuite.noise import Noise
from robustsuite.results.schema import Flag

_EXAMPLES = 64
FATAL = frozenset({"finite_logits", "eval_mode", "probabilities", "batch_dependence", "randomness"})
UNRELIABLE = frozenset({"zero_gradients", "nan_gradients", "gradient_mismatch", "score_beats_white_box", "declared"})
"""Flags that, when raised, mean that gradient attacks cannot be trusted on this model."""


@dataclass(frozen=True)
class _Sample:
    model: Classifier
    x: Tensor
    y: Tensor
    ids: Tensor
    logits: Tensor
    seed: int


def check_model(model: Classifier, data: Dataset, seed: int = 0) -> list[Flag]:
    """Run every check on up to 64 examples spread over the data; no check depends on a global state."""
    index = torch.linspace(0, len(data) - 1, min(_EXAMPLES, len(data))).long()
    x, y = data.x[index].to(model.device), data.y[index].to(model.device)
    sample = _Sample(model, x, y, data.ids[index].to(model.device), model.logits(x), seed)
    flags = [_eval_mode(sample), _finite(sample)]
    if flags[-1].raised:
        return flags
    flags += [_probabilities(sample), _randomness(sample)]
    if not flags[-1].raised:
        flags.append(_batch_dependence(sample))
    flags.append(_normalisation(sample))
    if model.facts.differentiable != "none":
        flags += _gradients(sample)
    return flags


def refuse(flags: list[Flag], randomized: bool) -> None:
    """Raise `ContractError` for the raised flags that make a model unusable; declared randomness is accepted."""
    bad = [f for f in flags if f.raised and f.name in FATAL]
    if randomized:
        bad = [f for f in bad if f.name not in ("randomness", "batch_dependence")]
    if bad:
        text = "; ".join(f"{f.name}: {f.evidence}. {f.remedy}" for f in bad)
        raise ContractError(f"the model breaks its contract. {text}")


def _eval_mode(s: _Sample) -> Flag:
    training = [name or "the model" for name, m in s.model.module.named_modules() if m.training]
    return Flag(
        name="eval_mode",
        raised=bool(training),
        evidence=f"in train mode after eval(): {', '.join(training[:5])}" if training else "all modules in eval mode",
        remedy="Do not switch modes inside forward or override eval()." if training else "",
    )


def _finite(s: _Sample) -> Flag:
    bad = ~torch.isfinite(s.logits).all(1)
    where = s.ids[bad][:5].tolist()
    return Flag(
        name="finite_logits",
        raised=bool(bad.any()),
        evidence=f"NaN or infinite logits on {int(bad.sum())} of {len(bad)} images (ids {where})"
        if where
        else f"finite on {len(bad)} images",
        remedy="Look for a division by zero or a log of zero in the model." if where else "",
    )


def _probabilities(s: _Sample) -> Flag:
    sums = s.logits.sum(1)
    hit = bool((s.logits >= 0).all() and (s.logits <= 1).all() and ((sums - 1).abs() < 1e-3).all())
    return Flag(
        name="probabilities",
        raised=hit,
        evidence="every output row lies in [0,1] and sums to 1: a softmax output, whose gradients vanish"
        if hit
        else "outputs are not probabilities",
        remedy="Return logits (remove the last softmax), or pass --output probabilities to take their log."
        if hit
        else "",
    )


def _randomness(s: _Sample) -> Flag:
    again = [s.model.logits(s.x) for _ in range(2)]
    gap = max(float((s.logits - other).abs().max()) for other in again)
    # On one machine a pass at one shape repeats bit by bit; some GPU kernels add in any order.
    random = gap > 1e-5 * max(1.0, float(s.logits.abs().max()))
    flips = max(int((s.logits.argmax(1) != other.argmax(1)).sum()) for other in again)
    return Flag(
        name="randomness",
        raised=random,
        evidence=f"three passes over the same batch differ by up to {gap:.2g}, {flips} of {len(s.y)} labels change"
        if random
        else "three passes agree",
        remedy="Fix the model's randomness, or declare it with --randomized; its record will say so." if random else "",
    )


def _batch_dependence(s: _Sample) -> Flag:
    """The same image alone, in a batch of 7 and among all must get the same logits."""
    scale = max(1.0, float(s.logits.abs().max()))
    worst, k = 0.0, min(7, len(s.y))
    for size in {1, k}:
        for start in range(0, k - size + 1, size):
            part = s.model.logits(s.x[start : start + size])
            worst = max(worst, float((part - s.logits[start : start + size]).abs().max()))
    bad = worst > 1e-3 * scale
    return Flag(
        name="batch_dependence",
        raised=bad,
        evidence=f"an image's logits change by {worst:.2g} with the other images of its batch"
        if bad
        else f"batches of 1 and {k} agree with the whole",
        remedy="Use stored statistics (eval mode) instead of the batch's." if bad else "",
    )


def _normalisation(s: _Sample) -> Flag:
    """Normalisation declared twice shows in the module, declared nowhere in the accuracy."""
    layers = [type(m).__name__ for m in _leaves(s.model.module)[:3]]
    twice = sum(name.lower().startswith("normali") for name in layers) > 1
    share = float((s.logits.argmax(1) == s.y).float().mean())
    chance = 1 / s.model.num_classes
    weak = share <= chance + 0.1 and len(s.y) >= 20
    if twice:
        evidence = f"two normalisation layers at the input ({', '.join(layers)})"
        remedy = "Drop --mean/--std: the model normalises by itself."
    elif weak:
        evidence = f"only {share:.0%} of {len(s.y)} clean images are right (chance {chance:.0%})"
        remedy = "Check --mean/--std (inputs are in [0,1]), the class order and the channel order."
    else:
        evidence, remedy = f"{share:.0%} of {len(s.y)} clean images are right", ""
    return Flag(name="normalisation", raised=twice or weak, evidence=evidence, remedy=remedy)


def _leaves(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if not list(m.children())]


def _gradients(s: _Sample) -> list[Flag]:
    """Zero and NaN gradients, and finite differences against autograd along the gradient."""
    try:
        _, grad = s.model.gradient(s.x, lambda z: F.cross_entropy(z, s.y, reduction="none"))
        _, slope = s.model.gradient(s.x, lambda z: margins(z, s.y))
    except RuntimeError as error:
        evidence = f"no gradient reaches the input ({str(error).splitlines()[0]})"
        remedy = "Declare a surrogate, or rely on score-based attacks."
        return [Flag(name="zero_gradients", raised=True, evidence=evidence, remedy=remedy)]
    nan = int((~torch.isfinite(grad)).flatten(1).any(1).sum())
    zero = int((grad.flatten(1) == 0).all(1).sum())
    n = len(s.y)
    flags = [
        Flag(
            name="nan_gradients",
            raised=nan > 0,
            evidence=f"cross-entropy gradients are not finite on {nan} of {n} images",
            remedy="Gradient attacks fail there: look for square roots and logs of zero." if nan else "",
        ),
        Flag(
            name="zero_gradients",
            raised=zero > 0.01 * n,
            evidence=f"cross-entropy gradients are exactly zero on {zero} of {n} images",
            remedy="A sign of saturation: margin losses and score-based attacks are needed." if zero else "",
        ),
    ]
    return [*flags, _finite_differences(s, slope.nan_to_num(0.0))]


def _finite_differences(s: _Sample, slope: Tensor) -> Flag:
    """Directional derivative of the margin along its own gradient and a keyed direction mixed in.

    Measured with a central difference over a step that is large enough for float32 and small against the data. A
    network that is piecewise linear may have a kink in between, so the median decides.
    """
    signs = Noise(s.seed, "checks/direction").at(s.ids).signs(tuple(s.x.shape[1:]))
    direction = slope.sign() + 0.5 * signs
    step = 1e-3
    high, low = (margins(s.model.logits(s.x + k * step * direction), s.y) for k in (1, -1))
    measured = ((high - low) / (2 * step)).double()
    claimed = (slope.double() * direction).flatten(1).sum(1)
    scale = torch.maximum(measured.abs(), claimed.abs())
    usable = scale > 1e-4 * (1 + s.logits.abs().amax(1).double())
    if int(usable.sum()) < max(4, len(s.y) // 8):
        flat = "the margin is flat along its gradient on almost every image"
        remedy = "A sign of quantised inputs or saturation."
        return Flag(name="gradient_mismatch", raised=True, evidence=flat, remedy=remedy)
    ratio = ((measured - claimed).abs() / scale)[usable]
    median = float(ratio.median())
    bad = median > 0.5
    return Flag(
        name="gradient_mismatch",
        raised=bad,
        evidence=f"finite differences and autograd differ by {median:.0%} (median over {int(usable.sum())} images)",
        remedy="Gradients are masked or substituted: a backward-pass substitute or score-based attacks are needed."
        if bad
        else "",
    )
