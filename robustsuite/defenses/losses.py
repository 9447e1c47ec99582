"""Per-example losses: float ``[B,K]`` logits in, ``[B]`` out, never reduced over the batch."""

from torch import Tensor


def ce(logits: Tensor, q: Tensor) -> Tensor:
    """Cross-entropy to the label distribution, ``-sum_k q_k log softmax(logits)_k``, ``[B]``.

    ``q`` float ``[B,K]``: one-hot rows, or soft labels.
    """
    return -(q * logits.log_softmax(1)).sum(1)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """``KL(softmax(p_logits) || softmax(q_logits))``, summed over the classes, ``[B]``; differentiable in both.

    The published codes disagree on the reduction (sum over classes, mean over all entries, axis kept), which silently
    changes a method's coefficient: here it is always the sum over the classes, one value an example.
    """
    log_p, log_q = p_logits.log_softmax(1), q_logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
