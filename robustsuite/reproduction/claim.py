"""Claims of papers about defenses: what is compared with what, on what, and what is expected."""

from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from robustsuite.errors import UsageError
from robustsuite.results.schema import Part
from robustsuite.results.validation import validated

Quantity = Literal["clean", "robust", "last_robust", "best_minus_last", "worst_class_robust", "collapsed"]
"""Accuracies of the selected epoch (`last_robust`: of the last one) on the test images, attacked under the setting's
tier; `worst_class_robust` of the class with the lowest; `best_minus_last` is `robust - last_robust`. `collapsed` is 1
where training fell into catastrophic overfitting (`Trained.collapsed_at`), else 0."""
Direction = Literal["higher", "lower", "not_lower", "not_higher"]


class Side(Part):
    """A training: a base defense, its modifiers, and what differs from their published hyper-parameters."""

    base: str
    modifiers: tuple[str, ...] = ()
    params: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Base and modifiers."""
        return "+".join((self.base, *self.modifiers))


class Expectation(Part):
    """That a quantity of the method is `higher` (...) than the baseline's; `margin`: what `not_lower` lets pass."""

    quantity: Quantity
    expected: Direction = Field(alias="is")
    margin: float = Field(default=0.0, ge=0)


class Setting(Part):
    """Data, threat model and budget that both sides share; `recipe`: of the training loop."""

    title: str
    data: str | None = None
    """A reference, or None where the images must be handed over."""
    threat: str
    train: tuple[str, str]
    """Split and subset that is trained on."""
    test: tuple[str, str]
    tier: str = "standard"
    arch: str = "small_cnn"
    arch_params: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)


class Claim(Part):
    """What a paper says of its method, in a form that can come out wrong."""

    claim: str
    source: str
    setting: str
    method: Side
    baseline: Side
    expects: tuple[Expectation, ...] = Field(min_length=1)
    recipe: dict[str, Any] = Field(default_factory=dict)
    """What the claim changes of the setting's recipe, for both sides."""
    threat: str | None = None
    """Another threat model than the setting's."""

    @field_validator("method", "baseline", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """``trades+awp`` for a base with modifiers and published hyper-parameters."""
        if not isinstance(value, str):
            return value
        base, *modifiers = value.split("+")
        return {"base": base, "modifiers": modifiers}


class Claims(Part):
    """All claims by name, and the settings that they share."""

    settings: dict[str, Setting]
    claims: dict[str, Claim]


@cache
def known_claims() -> Claims:
    """The claims that come with the suite (``claims.yaml``)."""
    source = files("robustsuite.reproduction").joinpath("claims.yaml")
    return validated(Claims, yaml.safe_load(source.read_text(encoding="utf-8")), "claims.yaml", "a list of claims")


def find_claim(name: str) -> tuple[Claim, Setting]:
    """A claim and its setting, with the claim's own recipe and threat model; raises `UsageError` for another name."""
    known = known_claims()
    if name not in known.claims:
        raise UsageError(f"no claim is known of '{name}'. There are claims of: {', '.join(sorted(known.claims))}.")
    claim = known.claims[name]
    setting = known.settings[claim.setting]
    changed = {"recipe": setting.recipe | claim.recipe, "threat": claim.threat or setting.threat}
    return claim, setting.model_copy(update=changed)
