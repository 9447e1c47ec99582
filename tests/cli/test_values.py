"""Texts to values."""

import pytest

from robustsuite.cli.values import channels, names, number, pairs, shard_of, value_of
from robustsuite.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("0.25", 0.25),
        ("2/255", 2 / 255),
        ("true", True),
        ("False", False),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("ce", "ce"),
        ("nan", "nan"),
        ("NaN", "NaN"),
        ('"3"', "3"),
        ("a=b", "a=b"),
    ],
)
def test_values(text, value):
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_pairs():
    assert pairs("-A", ["pgd.steps=3", " x = a=b"]) == {"pgd.steps": 3, "x": "a=b"}
    for bad in (["steps"], ["=3"], ["a=1", "a=2"]):
        with pytest.raises(UsageError, match="-A"):
            pairs("-A", bad)


def test_numbers_and_channels():
    assert number("--mean", "125.3/255") == pytest.approx(125.3 / 255, abs=0)
    assert channels("--mean", "0.5, 1/4") == (0.5, 0.25)
    assert channels("--mean", None) is None
    for bad in ("a", "1/0", "1/2/3", "", "nan"):
        with pytest.raises(UsageError, match="--mean"):
            number("--mean", bad)


def test_names_and_shards():
    assert names(["a,b", " c ", ""]) == ["a", "b", "c"]
    assert shard_of("0/3") == (0, 3)
    assert shard_of(None) is None
    for bad in ("3/3", "x", "1/", "0/0"):
        with pytest.raises(UsageError):
            shard_of(bad)
