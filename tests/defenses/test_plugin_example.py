"""The plugins that the README shows: short, registered from a file, and they train."""

from pathlib import Path

import pytest
import torch

from robustsuite.defenses import Step
from robustsuite.registry import DEFENSES, load_plugin_file
from robustsuite.testing import check_plugin

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_trades.py"


def test_it_has_at_most_twenty_lines():
    assert len(EXAMPLE.read_text().splitlines()) <= 20


def test_it_registers_and_matches_the_built_in(toy: Step):
    module = load_plugin_file(EXAMPLE)
    assert module is not None
    method = DEFENSES.get("my_trades").target()
    terms, built_in = method.terms(toy), DEFENSES.get("trades").target().terms(toy)
    assert {k: float(t.values.mean()) * t.weight for k, t in terms.items()} == pytest.approx(
        {k: float(t.values.mean()) * t.weight for k, t in built_in.items()}
    )
    assert set(method.views(toy)) == {"adv"}
    assert torch.equal(method.labels(toy), toy.q)


def test_a_fit_method_is_ten_lines_and_keeps_its_contract():
    path = EXAMPLE.with_name("my_fit.py")
    body = path.read_text().partition("    def fit(")[2]
    assert len(body.splitlines()) <= 10
    entry, findings = check_plugin(str(path))
    assert entry.name == "my_fit"
    assert all(f.ok for f in findings), "\n".join(map(str, findings))
