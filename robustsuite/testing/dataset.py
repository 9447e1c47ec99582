"""The contract of a data set."""

import inspect
from typing import Any

import torch

from robustsuite.data.dataset import Dataset
from robustsuite.errors import InputError
from robustsuite.registry import DATASETS, Entry
from robustsuite.testing.finding import Finding, Report, Violation, as_entry, describe, expect
from robustsuite.testing.watch import Watch

_NO_SPLIT = "no-such-split"


def check_dataset(plugin: Any) -> list[Finding]:
    """Findings on a data set: a registered `Entry`, or its function ``split -> Dataset``."""
    entry = as_entry(plugin, DATASETS)
    report = Report(entry.target)
    if report.check("function", _function, entry) and report.check("test split", _load, entry):
        report.check("repeatable", _repeatable, entry)
        report.check("hands off", _hands_off, entry)
        report.check("classes", _classes, entry)
        report.check("unknown split", _unknown, entry)
        report.check("train split", _train, entry)
    return report.findings


def _function(entry: Entry) -> str:
    callable_ = callable(entry.target) and not isinstance(entry.target, type)
    example = "Write it like: @register_dataset('name') def name(split): return Dataset(...)."
    expect(callable_, f"expected a function, got {entry.target!r:.60}.", example)
    try:
        inspect.signature(entry.target).bind("test")
        takes = True
    except TypeError:
        takes = False
    expect(takes, f"it must take the split alone, it takes {inspect.signature(entry.target)}.", example)
    expect(bool((entry.target.__doc__ or "").strip()), "it has no docstring.", "Say what it holds and its splits.")
    return "takes a split"


def _load(entry: Entry) -> str:
    data = entry.target("test")
    remedy = "Return Dataset(name, x, y, ids, num_classes)."
    expect(isinstance(data, Dataset), f"expected a Dataset, got {type(data).__name__}.", remedy)
    expect(data.num_classes >= 2, f"num_classes must be at least 2, got {data.num_classes}.", remedy)
    ids = data.ids.dtype == torch.int64
    expect(ids, f"ids must be int64, got {data.ids.dtype}.", "An id is an integer, the example's place.")
    return f"{len(data)} images {list(data.input_shape)}, {data.num_classes} classes"


def _repeatable(entry: Entry) -> str:
    first, again = entry.target("test").fingerprint, entry.target("test").fingerprint
    remedy = "The same split must give the same images, labels and ids in the same order, always."
    expect(first == again, "loading it twice gives two fingerprints.", remedy)
    return f"fingerprint {first[:12]} twice"


def _hands_off(entry: Entry) -> str:
    with Watch() as watch:
        entry.target("test")
    return watch.expect_nothing()


def _classes(entry: Entry) -> str:
    data: Dataset = entry.target("test")
    seen = data.y.unique().numel()
    expect(seen >= 2, f"all labels are {int(data.y[0])}.", "A single class cannot be told from anything.")
    names = len(data.classes)
    expect(names in (0, data.num_classes), f"{names} class names for {data.num_classes} classes.", "Name each once.")
    return f"{seen} of {data.num_classes} classes occur"


def _unknown(entry: Entry) -> str:
    remedy = "Raise robustsuite.errors.InputError naming the splits that there are."
    try:
        entry.target(_NO_SPLIT)
    except InputError as error:
        return f"refused: {error}"
    except Exception as error:
        raise Violation(f"an unknown split ends in {describe(error, entry.target)}.", remedy) from error
    raise Violation(f"the split '{_NO_SPLIT}' is accepted.", remedy)


def _train(entry: Entry) -> str:
    """Training and test examples are different ones."""
    try:
        data: Dataset = entry.target("train")
    except InputError as error:
        return f"there is none ({error})"
    test: Dataset = entry.target("test")
    same = data.input_shape == test.input_shape and data.num_classes == test.num_classes
    expect(same, "train and test have other shapes or numbers of classes.", "Make both alike.")
    shared = int(torch.isin(test.ids, data.ids).sum())
    remedy = "An id is an example's place in the whole data set: no example may be in both."
    expect(shared == 0, f"{shared} of {len(test)} test ids are training ids too.", remedy)
    known = {row.numpy().tobytes() for row in data.x}
    copies = sum(row.numpy().tobytes() in known for row in test.x)
    expect(copies < 0.1 * len(test), f"{copies} of {len(test)} test images are training images too.", remedy)
    return f"{len(data)} images, no id shared, {copies} test images occur in it"
