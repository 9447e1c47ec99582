"""Sealed records for tests, every part of them valid; arguments change what a test is about."""

from typing import Any

from robustsuite.results.schema import (
    Contradiction,
    DataPart,
    Flag,
    Host,
    ModelPart,
    ProtocolPart,
    Provenance,
    Record,
    Request,
    StagePlan,
    StageResult,
    ThreatPart,
)
from robustsuite.results.statistics import metric
from robustsuite.threat import ThreatModel

IBP = StageResult(name="ibp", kind="certifier", plugin="ibp", status="done", guarantee="deterministic")


def make_record(
    name: str = "net",
    *,
    robust: int | None = 60,
    clean: int = 96,
    certified: int | None = 20,
    n: int = 100,
    covered: int | None = None,
    seed: int = 0,
    data: str = "digits",
    split: str | None = "test",
    subset: str = "all",
    fingerprint: str = "f" * 64,
    threat: str = "Linf:0.15",
    protocol: str = "standard",
    version: int = 1,
    steps: int = 100,
    status: Any = "complete",
    unreliable: bool = False,
    randomized: bool = False,
    flags: tuple[str, ...] = (),
    contradiction: bool = False,
    certifiers: tuple[StageResult, ...] = (IBP,),
    created: str = "2026-01-01T00:00:00Z",
    source: str = "embedded",
    plugins: dict[str, str] | None = None,
    suite: str = "0.1.0",
    **model: Any,
) -> Record:
    """A sealed record; ``robust``, ``clean`` and ``certified`` are counts out of ``covered`` (default n)."""
    parsed, of = ThreatModel.parse(threat), covered or n
    facts: dict[str, Any] = {
        "reference": "net.safetensors",
        "arch": "small-cnn",
        "weights_sha256": "a" * 64,
        "format": "safetensors",
        "n_params": 41898,
        "defense": {"name": "pgd-at"},
    }
    request = Request(
        semantics_version=1,
        model=ModelPart(name=name, randomized=randomized, **facts | model),
        data=DataPart(
            name=data,
            source=source,
            split=split,
            subset=subset,
            n=n,
            num_classes=10,
            input_shape=(1, 8, 8),
            fingerprint=fingerprint,
        ),
        threat=ThreatPart(norm=parsed.norm, eps=str(parsed.eps), eps_float=parsed.radius),
        protocol=ProtocolPart(
            name=protocol,
            version=version,
            stages=(
                StagePlan(name="ibp", kind="certifier", plugin="ibp", when="supported"),
                StagePlan(name="apgd-ce", kind="attack", plugin="apgd-ce", params={"steps": steps}),
            ),
        ),
        seed=seed,
        slots=100,
        block_size=100,
        threads=1,
        device="cpu",
        plugins=plugins or {},
    )
    counts = {"clean_accuracy": clean, "robust_accuracy": robust, "certified_accuracy": certified}
    apgd = StageResult(name="apgd-ce", kind="attack", plugin="apgd-ce", status="done")
    return Record(
        run_key=request.run_key,
        status=status,
        request=request,
        metrics=tuple(metric(m, k, of) for m, k in counts.items() if k is not None),
        stages=(*certifiers, apgd),
        flags=tuple(Flag(name=f, raised=True, evidence="seen") for f in flags),
        unreliable=unreliable,
        contradictions=(Contradiction(example=3, certified_by="ibp", radius=0.2, broken_by="apgd-ce", distance=0.1),)
        * contradiction,
        provenance=Provenance(
            suite_version=suite, git={"commit": None, "dirty": None}, python="3.12.0", packages={}, determinism={}
        ),
        host=Host(
            created_utc=created, hostname_sha256="0" * 64, os="Linux", cpu="cpu", device_name="cpu", stage_seconds={}
        ),
    ).sealed()
