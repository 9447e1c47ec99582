"""The claims that come with the suite can be put to the test."""

import pytest

from robustsuite.data.reference import load_data
from robustsuite.defenses.base import FitMethod
from robustsuite.errors import InputError, UsageError
from robustsuite.reproduction.claim import Claim, find_claim, known_claims
from robustsuite.results.validation import validated
from robustsuite.threat import ThreatModel
from robustsuite.training.method import make_trainable
from robustsuite.training.settings import Settings

CLAIMS = sorted(known_claims().claims)


@pytest.mark.parametrize("name", CLAIMS)
def test_both_sides_of_a_claim_can_be_made(name: str):
    claim, setting = find_claim(name)
    threat = ThreatModel.parse(setting.threat)
    for side in (claim.method, claim.baseline):
        method = make_trainable(side.base, side.modifiers, side.params)
        parts = [method] if isinstance(method, FitMethod) else [part for _, part in method.parts]
        assert all(threat.norm in part.norms for part in parts)
    assert claim.method != claim.baseline
    Settings(validation=0, **setting.recipe)
    if setting.data is not None:
        assert len(load_data(setting.data, split=setting.test[0], subset=setting.test[1])) >= 200


def test_a_claim_changes_the_recipe_of_its_setting_for_both_sides():
    claim, setting = find_claim("beta_at")
    base = known_claims().settings[claim.setting]
    assert setting.recipe == base.recipe | claim.recipe != base.recipe
    assert setting.threat == base.threat
    assert find_claim("bat")[1].threat == find_claim("bat")[0].threat != base.threat


def test_an_unknown_claim_is_named_with_those_that_are_known():
    with pytest.raises(UsageError, match="no claim is known of 'nothing'") as error:
        find_claim("nothing")
    assert "beta_at" in str(error.value)


def test_a_claim_that_cannot_come_out_wrong_is_refused():
    body = known_claims().claims["beta_at"].model_dump(by_alias=True) | {"expects": []}
    with pytest.raises(InputError, match="expects"):
        validated(Claim, body, "claims.yaml", "a claim")
