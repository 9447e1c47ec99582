"""Step methods by name, and mistakes in words."""

import pytest

from robustsuite.defenses.standard import Standard
from robustsuite.defenses.trades import TRADES
from robustsuite.errors import ContractError, UnknownNameError, UsageError
from robustsuite.training.method import defense_name, hyper_parameters, make_method


def test_by_name_with_parameters():
    method = make_method("trades", {"beta": 1.0})
    assert method == TRADES(beta=1.0)
    assert defense_name(method) == "trades"
    assert hyper_parameters(method) == {"beta": 1.0, "steps": 10, "alpha": 0.25}


def test_mistakes_are_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'trades'"):
        make_method("trade")
    with pytest.raises(UsageError, match=r"no parameter 'bta'. Did you mean 'beta'.*steps"):
        make_method("trades", {"bta": 1})
    with pytest.raises(UsageError, match="kappa"):
        make_method("ibp", {"kappa_end": 2})
    with pytest.raises(UsageError, match=r"'smoothing' does not fill slots.*pgd_at.*trades"):
        make_method("smoothing")
    with pytest.raises(UsageError, match="refuses"):
        make_method("ibp", {"warmup": "early"})


def test_what_is_no_dataclass_is_refused():
    with pytest.raises(ContractError, match="a dataclass that inherits StepMethod"):
        hyper_parameters(object())  # type: ignore[arg-type]
    assert hyper_parameters(Standard()) == {}
