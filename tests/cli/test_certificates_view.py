"""What `certify` and `show` tell of each certifier beside its radii, and of certifiers that do not go together."""

from pathlib import Path

import numpy as np
import pytest

from robustsuite.bounds.tightness import ibp_tightness
from robustsuite.cli.loading import subject_of
from robustsuite.data.reference import load_data
from robustsuite.models.reference import ModelSpec
from robustsuite.results.ledger import read_ledger


@pytest.fixture
def certify(run, checkpoint):
    base = ("certify", checkpoint, "--data", "digits", "--subset", "first:40", "--threads", "1")
    return lambda *more: run(*base, *more)


def test_certifiers_of_two_classifiers_are_told_apart(certify, tmp_path):
    """The model has bounds; what has none is the smoothed one, which the other certifier speaks of."""
    for names in ("smoothing,ibp", "ibp,smoothing"):
        result = certify("--threat", "L2:0.1", "--certifier", names, "-A", "smoothing.sigma=0.2")
        assert result.exit_code == 2
        assert "certifier 'ibp' cannot be used beside 'smoothing'" in result.stderr
        assert "--certifier ibp and one with --certifier smoothing" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_the_tightness_of_interval_bounds_is_told_where_it_is_asked_for(certify, run, checkpoint):
    plain = certify("--threat", "Linf:0.05", "--certifier", "ibp", "--json").document
    asked = certify("--threat", "Linf:0.05", "--certifier", "ibp", "-A", "diagnose=true", "--json").document
    assert plain["run_key"] != asked["run_key"]
    assert plain["metrics"] == asked["metrics"]
    assert "tightness" not in plain["certificates"]["ibp"]
    seconds, found = asked["certificates"]["ibp"]["seconds"], asked["certificates"]["ibp"]["tightness"]
    assert 0 < seconds["least"] <= seconds["mean"] <= seconds["most"]
    ledger = read_ledger(Path(asked["run_dir"]))
    data = load_data("digits", split=None, subset="first:40", num_classes=None)
    model = subject_of(ModelSpec(reference=str(checkpoint)), data, "cpu", {}).classifier
    seen = ledger.outcome("ibp") != 0
    want = ibp_tightness(model.module, data.x[seen], 0.05, data.y[seen]).numpy()
    assert np.allclose(ledger.arrays["ibp/tightness"][seen], want, rtol=1e-9)
    assert found["mean"] == pytest.approx(want.mean())
    assert 0 < found["least"] < 1
    shown = run("show", asked["run_dir"]).stdout
    assert "propagation tightness" in shown
    assert " an example (at most " in shown
