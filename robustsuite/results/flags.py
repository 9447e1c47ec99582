"""What the flags of a record mean for its numbers."""

from robustsuite.results.schema import Record

UNRELIABLE = frozenset(
    {
        "zero_gradients",
        "nan_gradients",
        "gradient_mismatch",
        "quantised_input",
        "test_time_optimisation",
        "stateful",
        "score_beats_white_box",
        "zero_gradients_under_attack",
        "single_step_beats_multi_step",
        "more_steps_help_nothing",
        "unbounded_attack_fails",
        "noise_beats_white_box",
        "probe_beats_run",
    }
)
"""Flags that, when raised, mean that gradient attacks cannot be trusted on this model."""


def is_unreliable(record: Record) -> bool:
    """Whether a record says so, or has a flag that does: taking the word back alone changes nothing."""
    return record.unreliable or any(f.raised and f.name in UNRELIABLE for f in record.flags)
