"""Contract checks of a model: what it declares is tested on a few examples before anything is spent on it.

Each check that fails names its evidence and the remedy. Those in `FATAL` refuse the model, because no number that
follows would mean anything; the others become flags of the record.
"""

import torch
from torch import Tensor, nn

from robustsuite.data.dataset import Dataset
from robustsuite.errors import ContractError
from robustsuite.evaluation.check_gradients import forward_effects, gradients, quantised_input
from robustsuite.evaluation.check_sample import Sample, flag
from robustsuite.models.classifier import Classifier
from robustsuite.results.schema import Flag

_EXAMPLES = 64
FATAL = frozenset({"finite_logits", "eval_mode", "probabilities", "batch_dependence", "randomness"})


def check_model(model: Classifier, data: Dataset, seed: int = 0) -> list[Flag]:
    """Run every check on up to 64 examples spread over the data; no check depends on a global state."""
    index = torch.linspace(0, len(data) - 1, min(_EXAMPLES, len(data))).long()
    x, y = data.x[index].to(model.device), data.y[index].to(model.device)
    sample = Sample(model, x, y, data.ids[index].to(model.device), model.logits(x), seed)
    flags = [_eval_mode(sample), _finite(sample)]
    if flags[-1].raised:
        return flags
    flags += [_probabilities(sample), _randomness(sample)]
    if not flags[-1].raised:
        flags.append(_batch_dependence(sample))
    flags += [_normalisation(sample), quantised_input(sample), *forward_effects(sample)]
    if model.facts.differentiable != "none":
        flags += gradients(sample)
    return flags


def refuse(flags: list[Flag], randomized: bool) -> None:
    """Raise `ContractError` for the raised flags that make a model unusable; declared randomness is accepted."""
    bad = [f for f in flags if f.raised and f.name in FATAL]
    if randomized:
        bad = [f for f in bad if f.name not in ("randomness", "batch_dependence")]
    if bad:
        text = "; ".join(f"{f.name}: {f.evidence}. {f.remedy}" for f in bad)
        raise ContractError(f"the model breaks its contract. {text}")


def _eval_mode(s: Sample) -> Flag:
    training = [name or "the model" for name, m in s.model.module.named_modules() if m.training]
    return Flag(
        name="eval_mode",
        raised=bool(training),
        evidence=f"in train mode after eval(): {', '.join(training[:5])}" if training else "all modules in eval mode",
        remedy="Do not switch modes inside forward or override eval()." if training else "",
    )


def _finite(s: Sample) -> Flag:
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


def _probabilities(s: Sample) -> Flag:
    """Rows that are non-negative with one and the same sum, at the images or at noisy ones."""
    scale = max(_common_sum(s.logits), _common_sum(s.model.logits(s.nudged("probabilities", 8 / 255))))
    return flag(
        "probabilities",
        scale > 0,
        f"every output row is non-negative and sums to {scale:.3g}: a softmax output, whose gradients vanish"
        if scale > 0
        else "outputs are not probabilities",
        "Return logits (remove the last softmax), or pass --output probabilities to take their log.",
    )


def _common_sum(logits: Tensor) -> float:
    """The sum that all rows have, or 0 where they differ or hold negative values."""
    sums = logits.sum(1)
    same = bool((logits >= 0).all() and ((sums - sums[0]).abs() < 1e-3 * sums[0]).all())
    return float(sums[0]) if same else 0.0


def _randomness(s: Sample) -> Flag:
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


def _batch_dependence(s: Sample) -> Flag:
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


def _normalisation(s: Sample) -> Flag:
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
