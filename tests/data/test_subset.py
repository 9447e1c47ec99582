"""Subset specs: what they select, and what a wrong one is told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robustsuite.data.subset import select
from robustsuite.errors import InputError, UsageError

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
IDS = torch.arange(10) + 100


def chosen(spec: str) -> list[int]:
    return select(spec, LABELS, IDS).tolist()


@pytest.mark.parametrize(
    ("spec", "positions"),
    [
        ("all", list(range(10))),
        ("first:3", [0, 1, 2]),
        ("first:10", list(range(10))),
        ("range:2:5", [2, 3, 4]),
        ("stride:4", [0, 4, 8]),
        ("stride:20", [0]),
        ("class-balanced:3", [0, 4, 6]),
        ("class-balanced:5", [0, 1, 4, 5, 6]),
        ("class-balanced:8", [0, 1, 2, 4, 5, 6, 7, 8]),
    ],
)
def test_positions(spec: str, positions: list[int]) -> None:
    assert chosen(spec) == positions


@pytest.mark.parametrize("suffix", [".txt", ".json", ".npy"])
def test_ids_keep_the_order_of_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ids{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([107, 100]))
    else:
        path.write_text("107\n\n100\n" if suffix == ".txt" else json.dumps([107, 100]))
    assert chosen(f"ids:{path}") == [7, 0]


def test_random_is_keyed_by_the_seed_and_the_ids() -> None:
    first = chosen("random:4@7")
    assert first == chosen("random:4@7") == sorted(first)
    assert any(chosen(f"random:4@{seed}") != first for seed in range(3))
    order = torch.tensor([9, 3, 5, 1, 0, 2, 4, 6, 8, 7])
    again = select("random:4@7", LABELS[order], IDS[order])
    assert sorted(IDS[order][again].tolist()) == [100 + i for i in first]


def test_random_is_uniform_and_nested() -> None:
    labels, ids = torch.zeros(50, dtype=torch.int64), torch.arange(50)
    counts = torch.zeros(50)
    for seed in range(400):
        counts[select(f"random:10@{seed}", labels, ids)] += 1
    # Each count is binomial(400, 0.2): mean 80, deviation 8; 50 of them stay within 4.5 deviations.
    assert counts.sum() == 4000
    assert (counts - 80).abs().max() < 36
    small, large = (set(select(f"random:{n}@3", labels, ids).tolist()) for n in (5, 20))
    assert small < large


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("first:11", InputError, "asks for 11 examples, but there are only 10"),
        ("random:11@0", InputError, "only 10"),
        ("class-balanced:11", InputError, "only 10"),
        ("range:5:11", InputError, "within the 10"),
        ("range:5:5", InputError, "within the 10"),
        ("first:0", UsageError, "at least one"),
        ("first:-3", UsageError, "at least one"),
        ("stride:0", UsageError, "at least 1"),
        ("first:ten", UsageError, "'ten' is not a whole number"),
        ("random:3", UsageError, "random:3@0"),
        ("frist:3", UsageError, "Did you mean 'first'.*stride:K"),
        ("first", UsageError, "The forms are all, first:N"),
        ("", UsageError, "The forms are"),
        ("ids:nowhere.txt", InputError, "does not exist"),
    ],
)
def test_errors(spec: str, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        chosen(spec)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "100\n100\n", "id 100 appears twice"),
        ("a.txt", "100\n110\n", "no example 110; the ids run from 100 to 109"),
        ("a.txt", "100\nseven\n", "not a list of ids"),
        ("a.txt", "", "not a list of integers"),
        ("a.json", '{"a": 1}', "not a list of integers"),
        ("a.json", "[1.5]", "not a list of integers"),
        ("a.json", "[1", "not a list of ids"),
        ("a.npy", "nonsense", "not a list of ids"),
    ],
)
def test_bad_id_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        chosen(f"ids:{tmp_path / name}")
