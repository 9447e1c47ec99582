"""What the user types for a model, made into a `Classifier` and the record's words about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustsuite.errors import InputError, RobustsuiteError
from robustsuite.models import factory, robustbench
from robustsuite.models.checkpoint import SUFFIXES, StateFile, read_state, weights_sha256
from robustsuite.models.classifier import Classifier, Facts, Passes
from robustsuite.models.loading import load_into
from robustsuite.models.normalize import LogProbabilities, with_normalization
from robustsuite.models.sidecar import Sidecar, check_weights, find_sidecar, placed, sidecar_path, trained_with
from robustsuite.registry import ARCHITECTURES
from robustsuite.results.schema import ModelPart


@dataclass(frozen=True)
class ModelSpec:
    """What was typed.

    ``reference`` is a weights file, a folder that holds one, ``py:module:factory`` or ``robustbench:NAME@DATA/THREAT``.
    """

    reference: str
    arch: str | None = None
    arch_params: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    strip_prefix: str | None = None
    by_order: bool = False
    trust_pickle: bool = False
    output: Literal["logits", "probabilities"] = "logits"
    randomized: bool = False
    num_classes: int | None = None
    model_dir: str | None = None
    """Where robustbench's checkpoints lie; None: what the environment says, else ./models."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be evaluated, and what a record says of it."""

    classifier: Classifier
    part: ModelPart
    plugins: dict[str, str] = field(default_factory=dict)
    """sha256 of the user's own code behind a ``py:`` architecture, for the request."""


@dataclass(frozen=True)
class _Plan:
    """How to build the network, after the sidecar and the flags have been put together."""

    arch: str
    params: dict[str, Any]
    num_classes: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    output: Literal["logits", "probabilities"]


def load_model(
    spec: ModelSpec, *, input_shape: tuple[int, ...], num_classes: int, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load the model for images of ``input_shape`` (C, H, W) and data of ``num_classes`` classes.

    A sidecar's ``wrap`` is put into the part, not applied. Raises `InputError` with the remedy on anything that was
    named wrongly or does not fit, `ContractError` when the network's answer is not ``[N,K]`` logits.
    """
    weights, arch = _resolve(spec)
    file = read_state(weights, trust_pickle=spec.trust_pickle) if weights else None
    sidecar = find_sidecar(weights) if weights else None
    if weights and file and sidecar:
        check_weights(sidecar, file.state, weights)
    plan = _plan(spec, arch, sidecar, file, input_shape, num_classes)
    if robustbench.is_zoo(plan.arch):
        net = robustbench.load(plan.arch, model_dir=spec.model_dir, trust_pickle=spec.trust_pickle)
    else:
        net = factory.build(plan.arch, plan.params, num_classes=plan.num_classes, input_shape=input_shape)
    if file:
        _load(net, file, spec, plan, input_shape)
    part = _part(spec, plan, net, weights, file, sidecar)
    classifier = Classifier(
        _preprocessed(net, plan, input_shape),
        num_classes=plan.num_classes,
        input_shape=input_shape,
        device=device,
        facts=Facts(randomized=part.randomized),
    )
    _probe(classifier, spec.reference)
    return LoadedModel(classifier, part, factory.source_sha256(plan.arch))


def spec_from_part(part: ModelPart) -> ModelSpec:
    """What to type to load a recorded model again."""
    normalization = part.normalization or {"mean": None, "std": None}
    typed = {
        "reference": part.reference,
        "arch": part.arch,
        "arch_params": part.arch_params,
        "trust_pickle": part.trust_pickle,
        "output": part.output,
        "randomized": part.randomized,
        **normalization,
        **part.load_options,
    }
    for constants in ("mean", "std"):
        typed[constants] = tuple(typed[constants]) if typed[constants] else None
    return ModelSpec(**typed)


def _resolve(spec: ModelSpec) -> tuple[Path | None, str | None]:
    """The weights file, if any, and the architecture that was named, if any."""
    reference, arch = spec.reference, spec.arch
    if robustbench.is_zoo(reference):
        typed = ("arch", "arch_params", "weights", "mean", "std", "strip_prefix", "by_order")
        robustbench.refuse([name for name in typed if getattr(spec, name) and getattr(spec, name) != reference])
        return None, reference
    if reference.startswith("py:") or (spec.weights and reference in ARCHITECTURES):
        if arch and arch != reference:
            raise InputError(f"'{reference}' and --arch {arch} both name an architecture; leave one out.")
        return (Path(spec.weights) if spec.weights else None), reference
    if spec.weights:
        raise InputError(f"'{reference}' and --weights {spec.weights} both name weights; leave one out.")
    path = Path(reference)
    if path.is_dir():
        return _only_checkpoint(path), arch
    if path.suffix == ".yaml" and path.is_file():
        return _weights_of(path), arch
    if not path.exists() and reference in ARCHITECTURES:
        raise InputError(
            f"'{reference}' is an architecture without weights; name a checkpoint, with --arch {reference}."
        )
    if not path.exists():
        raise InputError(
            f"no model '{reference}': neither a file nor a folder. A model is a checkpoint (with --arch NAME or a "
            "sidecar beside it), a folder that holds one with its sidecar, py:module:factory, or "
            "robustbench:NAME@DATASET/THREAT."
        )
    return path, arch


def _only_checkpoint(folder: Path) -> Path:
    found = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and sidecar_path(p).is_file())
    if len(found) == 1:
        return found[0]
    listed = f" ({', '.join(p.name for p in found[:6])})" if found else ""
    raise InputError(
        f"{folder} holds {len(found)} checkpoints with a sidecar{listed}; exactly one is expected, name it."
    )


def _weights_of(sidecar: Path) -> Path:
    found = [p for suffix in SUFFIXES if (p := sidecar.with_suffix(suffix)).is_file()]
    if len(found) != 1:
        raise InputError(f"{sidecar} is a sidecar with {len(found)} weights files beside it; name the weights file.")
    return found[0]


def _plan(
    spec: ModelSpec,
    arch: str | None,
    sidecar: Sidecar | None,
    file: StateFile | None,
    input_shape: tuple[int, ...],
    data_classes: int,
) -> _Plan:
    if (spec.mean is None) != (spec.std is None):
        raise InputError("--mean and --std belong together; give both or neither.")
    if sidecar is None:
        params = dict(spec.arch_params)
        classes = spec.num_classes or params.get("num_classes") or robustbench.num_classes(arch) or data_classes
        if arch is None:
            raise InputError(_no_architecture(spec, file, classes, input_shape))
        return _Plan(arch, params, classes, spec.mean, spec.std, spec.output)
    declared = sidecar.normalization
    _agree("arch", arch, sidecar.arch)
    _agree("mean", spec.mean, declared.mean if declared else None)
    _agree("std", spec.std, declared.std if declared else None)
    _agree("num_classes", spec.num_classes, sidecar.num_classes)
    for name, value in spec.arch_params.items():
        _agree(f"arch_params.{name}", value, sidecar.arch_params.get(name))
    if sidecar.input_shape != tuple(input_shape):
        raise InputError(
            f"{spec.reference} was made for images of shape {list(sidecar.input_shape)} (its sidecar says), the data "
            f"has {list(input_shape)}."
        )
    if sidecar.num_classes < data_classes:
        raise InputError(f"{spec.reference} knows {sidecar.num_classes} classes, but the data has {data_classes}.")
    output = "probabilities" if "probabilities" in (spec.output, sidecar.output) else "logits"
    mean, std = (declared.mean, declared.std) if declared else (None, None)
    return _Plan(sidecar.arch, dict(sidecar.arch_params), sidecar.num_classes, mean, std, output)


def _agree(name: str, typed: Any, declared: Any) -> None:
    if typed is not None and typed != declared:
        raise InputError(
            f"the sidecar says {name} = {declared}, but {typed} was given; leave the option out or correct it."
        )


def _no_architecture(spec: ModelSpec, file: StateFile | None, classes: int, shape: tuple[int, ...]) -> str:
    state = file.state if file else {}
    keys = ", ".join(f"{k} {list(v.shape)}" for k, v in list(state.items())[:4])
    near = factory.fitting(state, num_classes=classes, input_shape=shape)
    hint = f" Its tensors fit {' and '.join(near)}: add --arch {near[0]}." if near else ""
    names = ", ".join(entry.name for entry in ARCHITECTURES)
    return (
        f"{spec.reference} has no sidecar, so its architecture must be named: --arch NAME ({names}) or "
        f"--arch py:module:factory. It holds {len(state)} tensors: {keys}, ...{hint}"
    )


def _load(net: nn.Module, file: StateFile, spec: ModelSpec, plan: _Plan, input_shape: tuple[int, ...]) -> None:
    where = f"{spec.weights or spec.reference} as '{plan.arch}'"
    try:
        load_into(net, file.state, where, strip_prefix=spec.strip_prefix, by_order=spec.by_order)
    except InputError as error:
        near = factory.fitting(file.state, num_classes=plan.num_classes, input_shape=input_shape)
        others = [name for name in near if name != plan.arch]
        if not others:
            raise
        raise InputError(f"{error} Its tensors fit {' and '.join(others)}: try --arch {others[0]}.") from None


def _preprocessed(net: nn.Module, plan: _Plan, input_shape: tuple[int, ...]) -> nn.Module:
    if plan.output == "probabilities":
        net = LogProbabilities(net)
    if plan.mean is None or plan.std is None:
        return net
    return with_normalization(net, plan.mean, plan.std, channels=input_shape[0])


def _part(
    spec: ModelSpec, plan: _Plan, net: nn.Module, weights: Path | None, file: StateFile | None, sidecar: Sidecar | None
) -> ModelPart:
    defense = sidecar.defense if sidecar else None
    named = trained_with(defense or {})
    return ModelPart(
        name=str(named or (weights.stem if weights else plan.arch.rpartition(":")[2].partition("@")[0])),
        reference=str(weights) if spec.weights and weights else spec.reference,
        arch=plan.arch,
        arch_params=plan.params,
        weights_sha256=weights_sha256(net.state_dict()),
        format=file.format if file else plan.arch.partition(":")[0],
        n_params=sum(p.numel() for p in net.parameters()),
        normalization={"mean": list(plan.mean), "std": list(plan.std)} if plan.mean and plan.std else None,
        output=plan.output,
        wrap=placed(sidecar.wrap, weights.parent) if sidecar and weights else None,
        defense=defense,
        randomized=spec.randomized or bool(sidecar and sidecar.randomized),
        trust_pickle=file.unpickled if file else spec.trust_pickle and robustbench.is_zoo(plan.arch),
        load_options=_load_options(spec),
    )


def _load_options(spec: ModelSpec) -> dict[str, Any]:
    """What was typed and has no field of its own in the record, defaults left out."""
    names = ("strip_prefix", "by_order", "num_classes", "model_dir")
    options = {name: getattr(spec, name) for name in names}
    return {name: value for name, value in options.items() if value}


def _probe(classifier: Classifier, reference: str) -> None:
    """One grey image through the network, so that a misfit is told now and not in the middle of a run."""
    x = torch.full((1, *classifier.input_shape), 0.5, device=classifier.device)
    try:
        logits = classifier.logits(x)
    except RobustsuiteError:
        raise
    except Exception as error:  # torch raises RuntimeError, a user's network anything
        raise InputError(
            f"{reference} cannot take images of shape {list(classifier.input_shape)}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. "
            "Check the data, the architecture and its parameters."
        ) from error
    classifier.passes = Passes()
    if isinstance(_innermost(classifier.module), LogProbabilities):
        _check_probabilities(logits, reference)


def _innermost(module: nn.Module) -> nn.Module:
    return module[-1] if isinstance(module, nn.Sequential) and len(module) else module


def _check_probabilities(log_probabilities: Tensor, reference: str) -> None:
    """Logits taken for probabilities would hide every gradient, and so look robust."""
    total = float(log_probabilities.exp().sum())
    if abs(total - 1) > 1e-3:
        raise InputError(
            f"{reference} is declared to return probabilities, but they sum to {total:g}; "
            "if it returns logits, leave --output out."
        )
