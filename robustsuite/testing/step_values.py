"""What the slots of a step method return: shapes, types, finite numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustsuite.defenses.step import Term
from robustsuite.testing.finding import expect

NOT_FINITE = "Look for logarithms and square roots of zero; log_softmax is safe where softmax().log() is not."


def valid_labels(q: Any, batch: int, classes: int) -> None:
    """Raise `Violation` unless they are distributions over the classes, one an example."""
    good = isinstance(q, Tensor) and tuple(q.shape) == (batch, classes) and q.is_floating_point()
    got = f"{q.dtype} {list(q.shape)}" if isinstance(q, Tensor) else type(q).__name__
    remedy = "Return one probability distribution over the classes an example."
    expect(good, f"labels must be floats [{batch}, {classes}], got {got}.", remedy)
    sums = bool((q >= 0).all()) and torch.allclose(q.sum(1), torch.ones(batch), atol=1e-4)
    expect(sums, "rows of labels must be >= 0 and sum to 1.", remedy)


def valid_views(views: Any, batch: int) -> None:
    """Raise `Violation` unless they are finite images by name, one an example."""
    mapping = isinstance(views, Mapping)
    expect(mapping, f"views must be a dict of tensors, got {type(views).__name__}.", 'Return {"adv": x_adv}.')
    for name, view in views.items():
        good = isinstance(view, Tensor) and view.ndim >= 1 and view.shape[0] == batch and view.is_floating_point()
        got = f"{view.dtype} {list(view.shape)}" if isinstance(view, Tensor) else type(view).__name__
        expect(good, f"the view '{name}' must be floats [{batch}, C, H, W], got {got}.", "One image an example.")
        expect(bool(torch.isfinite(view).all()), f"the view '{name}' holds NaN or infinity.", NOT_FINITE)


def valid_terms(terms: Any, batch: int) -> None:
    """Raise `Violation` unless they are `Term`s with one finite value an example."""
    good = isinstance(terms, Mapping) and len(terms) > 0 and all(isinstance(t, Term) for t in terms.values())
    expect(good, f"terms must be a dict of Term, got {terms!r:.80}.", 'Return {"ce": Term(ce(logits, step.q))}.')
    for name, term in terms.items():
        shape = tuple(term.values.shape) if isinstance(term.values, Tensor) else type(term.values).__name__
        scalar = shape == ()
        expect(
            shape == (batch,),
            f"the term '{name}' must hold one value an example, [{batch}], got {'a scalar' if scalar else shape}.",
            "Do not reduce over the batch (reduction='none'); the loop takes the mean.",
        )
        bad = int((~torch.isfinite(term.values)).sum())
        expect(bad == 0, f"the term '{name}' is NaN or infinite on {bad} of {batch} examples.", NOT_FINITE)
