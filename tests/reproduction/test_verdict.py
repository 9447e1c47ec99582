"""Verdicts: Student's interval by hand, and what counts as the claimed side."""

import pytest

from robustsuite.errors import UsageError
from robustsuite.reproduction.claim import Expectation
from robustsuite.reproduction.verdict import compare, overall


def expectation(direction: str, margin: float = 0.0) -> Expectation:
    return Expectation.model_validate({"quantity": "robust", "is": direction, "margin": margin})


def side(*values: float) -> list[dict[str, float]]:
    return [{"robust": value} for value in values]


def test_the_interval_is_students():
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(.975, 2) = 4.30265.
    found = compare(expectation("higher"), side(2, 4, 6), side(1, 2, 3))
    assert found.difference == pytest.approx(2)
    assert found.interval == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert found.verdict == "not reproduced at this scale"  # -0.48 to 4.48


@pytest.mark.parametrize(
    ("direction", "margin", "differences", "word"),
    [
        ("higher", 0, (0.2, 0.21, 0.22), "reproduced"),
        ("higher", 0, (-0.2, -0.21, -0.22), "contradicted"),
        ("higher", 0, (0.2, -0.2, 0.1), "not reproduced at this scale"),
        ("higher", 0, (0, 0, 0), "not reproduced at this scale"),
        ("lower", 0, (-0.2, -0.21, -0.22), "reproduced"),
        ("lower", 0, (0.2, 0.21, 0.22), "contradicted"),
        ("not_lower", 0, (0, 0, 0), "reproduced"),
        ("not_lower", 0.05, (-0.02, -0.021, -0.022), "reproduced"),
        ("not_lower", 0.01, (-0.02, -0.021, -0.022), "contradicted"),
        ("not_higher", 0.05, (0.02, 0.021, 0.022), "reproduced"),
        ("not_higher", 0.01, (0.02, 0.021, 0.022), "contradicted"),
        ("not_higher", 0.01, (0.1, -0.1, 0.0), "not reproduced at this scale"),
    ],
)
def test_what_lies_on_the_claimed_side(direction: str, margin: float, differences: tuple[float, ...], word: str):
    base = (0.5, 0.6, 0.7)
    mine = side(*(b + d for b, d in zip(base, differences, strict=True)))
    found = compare(expectation(direction, margin), mine, side(*base))
    assert found.verdict == word
    assert str(found).endswith(word)


def test_one_contradiction_contradicts_and_all_must_hold():
    up = compare(expectation("higher"), side(0.7, 0.71, 0.72), side(0.5, 0.5, 0.5))
    unsure = compare(expectation("higher"), side(0.7, 0.2, 0.6), side(0.5, 0.5, 0.5))
    down = compare(expectation("higher"), side(0.3, 0.31, 0.32), side(0.5, 0.5, 0.5))
    assert overall([up, up]) == "reproduced"
    assert overall([up, unsure]) == "not reproduced at this scale"
    assert overall([up, unsure, down]) == "contradicted"


@pytest.mark.parametrize("sides", [(side(1, 2), side(1, 2)), (side(1, 2, 3), side(1, 2))])
def test_fewer_than_three_seeds_give_no_verdict(sides: tuple[list[dict[str, float]], list[dict[str, float]]]):
    with pytest.raises(UsageError, match="3 seeds or more"):
        compare(expectation("higher"), *sides)
