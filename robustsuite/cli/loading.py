"""From options (or a record) to a classifier and its data."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from robustsuite.cli import console, values
from robustsuite.cli.options import DataOptions, ModelOptions
from robustsuite.errors import InputError, UsageError

if TYPE_CHECKING:
    from robustsuite.data.dataset import Dataset
    from robustsuite.models.classifier import Classifier
    from robustsuite.models.reference import ModelSpec
    from robustsuite.results.schema import ModelPart


@dataclasses.dataclass(frozen=True)
class Subject:
    """The classifier as it decides, its entry in the record, the examples, and hashes of the user's code."""

    classifier: "Classifier"
    part: "ModelPart"
    data: "Dataset"
    plugins: dict[str, str]


def load_plugins(files: Sequence[str]) -> dict[str, str]:
    """Import plugin files and hash them; what fails at import is a warning, for nothing may depend on it."""
    from robustsuite.registry import FAILURES, load_entry_points, load_plugin_file

    for file in files:
        load_plugin_file(file)
    load_entry_points()
    for failure in FAILURES:
        console.warn(f"the plugin {failure} could not be loaded; going on without it.")
    if not files:
        return {}
    from robustsuite.evaluation.plan import plugin_hashes

    return plugin_hashes(list(files))


def load_subject(model: ModelOptions, data: DataOptions, device: str, plugins: dict[str, str]) -> Subject:
    """Load what was typed."""
    from robustsuite.data.reference import load_data
    from robustsuite.models.reference import ModelSpec

    examples = load_data(data.data, split=data.split, subset=data.subset, num_classes=data.num_classes)
    count = examples.input_shape[0]
    spec = ModelSpec(
        reference=model.model,
        arch=model.arch,
        arch_params=values.pairs("-M", model.model_param),
        weights=model.weights,
        mean=_per_channel(values.channels("--mean", model.mean), count),
        std=_per_channel(values.channels("--std", model.std), count),
        strip_prefix=model.strip_prefix,
        by_order=model.match_by_order,
        trust_pickle=model.trust_pickle,
        output=_output(model.output),
        randomized=model.randomized,
        num_classes=data.num_classes,
        model_dir=model.model_dir,
    )
    subject = subject_of(spec, examples, device, plugins)
    if model.eot:
        subject = dataclasses.replace(subject, part=subject.part.model_copy(update={"eot": model.eot}))
    part = subject.part
    if model.wrap:
        if part.wrap:
            raise UsageError(f"the sidecar already puts '{part.wrap['name']}' around the network; leave --wrap out.")
        part = part.model_copy(update={"wrap": {"name": model.wrap, **values.pairs("-W", model.wrap_param)}})
    elif model.wrap_param:
        raise UsageError("-W gives parameters to --wrap NAME, which is missing.")
    if part.wrap is None:
        return subject
    plugin = _outer(part.wrap)
    part = part.model_copy(update={"wrap": _in_full(part.wrap, plugin)})
    return dataclasses.replace(subject, classifier=_inside(plugin, subject.classifier), part=part)


def subject_of(spec: "ModelSpec", data: "Dataset", device: str, plugins: dict[str, str]) -> Subject:
    """Load the plain model for this data and note how it was named; the part's ``wrap`` is not applied yet."""
    from robustsuite.models.reference import load_model

    loaded = load_model(spec, input_shape=data.input_shape, num_classes=data.num_classes, device=device)
    classifier = loaded.classifier
    if classifier.num_classes > data.num_classes and not data.classes:
        # Labels of a file without names only bound the number of classes from below: the model knows better.
        data = dataclasses.replace(data, num_classes=classifier.num_classes)
    options = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    defaults = {f.name: f.default for f in dataclasses.fields(spec)}
    typed = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items() if v and v != defaults[k]}
    part = loaded.part.model_copy(update={"load_options": typed})
    return Subject(classifier, part, data, plugins | loaded.plugins)


def spec_of(part: "ModelPart", reference: str | None) -> "ModelSpec":
    """What to type to load a recorded model again; ``reference`` is where its file lies now."""
    from robustsuite.models.reference import ModelSpec, spec_from_part

    if not part.load_options:
        spec = spec_from_part(part)
        return dataclasses.replace(spec, reference=reference) if reference else spec
    typed: dict[str, Any] = {k: tuple(v) if k in ("mean", "std") else v for k, v in part.load_options.items()}
    if reference:
        typed["weights" if "weights" in typed else "reference"] = reference
    try:
        return ModelSpec(**typed)
    except TypeError as error:
        raise InputError(f"the record's load_options are not those of this version: {error}.") from error


def wrapped(classifier: "Classifier", wrap: dict[str, Any] | None) -> "Classifier":
    """The classifier inside the inference-time defense that ``wrap`` names, or what a certifier makes of it."""
    if wrap is None:
        return classifier
    return _inside(_outer(wrap), classifier)


def _inside(plugin: Any, classifier: "Classifier") -> "Classifier":
    from robustsuite.defenses.base import WrapMethod

    return plugin.wrap(classifier) if isinstance(plugin, WrapMethod) else plugin.subject(classifier)


def _in_full(wrap: dict[str, Any], plugin: Any) -> dict[str, Any]:
    """``wrap`` with every parameter as it was resolved: what a default or a file stands for is part of a run's key."""
    params = {f.name: getattr(plugin, f.name) for f in dataclasses.fields(plugin) if f.init}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in params.items()}
    return {k: v for k, v in wrap.items() if k in ("kind", "name")} | plain


def _outer(wrap: dict[str, Any]) -> Any:
    """The wrap or certifier that ``wrap`` names."""
    from robustsuite.certification.base import Certifier
    from robustsuite.defenses.base import WrapMethod
    from robustsuite.evaluation.protocol import make
    from robustsuite.registry import CERTIFIERS, DEFENSES

    params = {k: v for k, v in wrap.items() if k not in ("kind", "name")}
    registry = CERTIFIERS if wrap.get("kind") == "certifier" else DEFENSES
    plugin = make(registry.get(str(wrap.get("name"))), params)
    if not isinstance(plugin, WrapMethod | Certifier):
        raise UsageError(f"the model's wrap '{wrap.get('name')}' is no inference-time defense; look at its sidecar.")
    return plugin


def _output(text: str) -> Literal["logits", "probabilities"]:
    if text == "logits" or text == "probabilities":
        return text
    raise UsageError(f"--output wants logits or probabilities, got '{text}'.")


def _per_channel(numbers: tuple[float, ...] | None, count: int) -> tuple[float, ...] | None:
    return numbers * count if numbers is not None and len(numbers) == 1 else numbers
