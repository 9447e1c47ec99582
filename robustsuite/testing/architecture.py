"""The contract of an architecture: a factory ``(num_classes, input_shape, **params) -> nn.Module``."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustsuite.errors import InputError, UsageError
from robustsuite.noise import Noise, fork_global
from robustsuite.registry import ARCHITECTURES, Entry
from robustsuite.testing.finding import Finding, Report, Violation, as_entry, expect
from robustsuite.testing.toys import SEED

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 24, 40))
_CLASSES = (2, 3, 10)
_N = 4


def check_architecture(plugin: Any, params: Mapping[str, Any] = {}) -> list[Finding]:
    """Findings on an architecture: a registered `Entry`, or its factory; ``params`` may make it small."""
    entry = as_entry(plugin, ARCHITECTURES)
    report = Report(entry.target)
    bench = _Bench(entry, dict(params))
    if report.check("factory", bench.signature) and report.check("output", bench.output):
        report.check("shapes and classes", bench.shapes)
        report.check("batch independence", bench.batch)
        report.check("gradients", bench.gradients)
        report.check("repeatable initialisation", bench.initialisation)
        report.check("state dict", bench.state)
    return report.findings


class _Bench:
    def __init__(self, entry: Entry, params: dict[str, Any]) -> None:
        self.entry, self.params = entry, params
        self.shape: Shape = SHAPES[2]

    def build(self, classes: int = 10, shape: Shape | None = None) -> nn.Module:
        """A network with keyed weights, in eval mode."""
        with fork_global(SEED, "testing/architecture"):
            module = self.entry.target(num_classes=classes, input_shape=shape or self.shape, **self.params)
        got = type(module).__name__
        expect(
            isinstance(module, nn.Module), f"the factory must return an nn.Module, got {got}.", "Return the network."
        )
        return module.eval()

    def logits(self, module: nn.Module, x: Tensor, classes: int) -> Tensor:
        """Logits, checked for their form."""
        with torch.no_grad():
            out = module(x)
        want = f"float [{len(x)}, {classes}]"
        good = isinstance(out, Tensor) and out.is_floating_point() and tuple(out.shape) == (len(x), classes)
        got = f"{str(out.dtype).removeprefix('torch.')} {list(out.shape)}" if isinstance(out, Tensor) else type(out)
        shape = list(x.shape[1:])
        remedy = "The last layer has num_classes outputs, and forward returns the logits alone."
        expect(good, f"images {shape}: logits must be {want}, got {got}.", remedy)
        expect(bool(torch.isfinite(out).all()), f"images {shape}: NaN or infinite logits.", "Check the initialisation.")
        return out

    def images(self, n: int = _N, shape: Shape | None = None) -> Tensor:
        return Noise(SEED, "testing/images").at(torch.arange(n)).uniform(shape or self.shape)

    def signature(self) -> str:
        target = self.entry.target
        example = "Write it like: @register_architecture('name') def name(num_classes=10, input_shape=(1, 28, 28))."
        expect(isinstance(target, Callable), f"expected a factory, got {target!r:.60}.", example)
        known = inspect.signature(target).parameters
        try:
            inspect.signature(target).bind(num_classes=10, input_shape=self.shape, **self.params)
        except TypeError as error:
            raise Violation(f"it cannot be called with num_classes and input_shape: {error}.", example) from error
        expect(bool((target.__doc__ or "").strip()), "it has no docstring.", "Say in one line what it is.")
        default = known["input_shape"].default if "input_shape" in known else None
        if isinstance(default, tuple) and len(default) == 3:
            self.shape = default
        return f"takes {', '.join(known)}"

    def output(self) -> str:
        module = self.build()
        self.logits(module, self.images(), 10)
        softmax = self.logits(module, self.images(), 10)
        sums = bool((softmax >= 0).all()) and torch.allclose(softmax.sum(1), torch.ones(_N), atol=1e-4)
        expect(not sums, "the outputs are probabilities.", "Return logits: remove the last softmax.")
        count = sum(p.numel() for p in module.parameters())
        return f"logits [N, 10] of images {list(self.shape)}, {count:,} parameters"

    def shapes(self) -> str:
        """Every shape works or is refused in words; never an error from the depths of a layer."""
        other = (3 if self.shape[0] == 1 else 1, *self.shape[1:])
        worked, refused = [], []
        for shape in dict.fromkeys((self.shape, other, *SHAPES)):
            try:
                for classes in _CLASSES:
                    self.logits(self.build(classes, shape), self.images(2, shape), classes)
                worked.append("x".join(map(str, shape)))
            except (InputError, UsageError) as error:
                refused.append(f"{'x'.join(map(str, shape))} ({error})")
            except Violation:
                raise
            except Exception as error:
                raise Violation(
                    f"images {list(shape)} end in {type(error).__name__}: {' '.join(str(error).split())[:120]}",
                    "Make it work, or raise InputError saying which shapes the architecture takes.",
                ) from error
        expect("x".join(map(str, self.shape)) in worked, f"it refuses its own shape {list(self.shape)}.", "Correct it.")
        told = f"{', '.join(worked)} with 2, 3 and 10 classes"
        return f"{told}; refuses {'; '.join(refused)}" if refused else told

    def batch(self) -> str:
        module, x = self.build(), self.images(7)
        whole = self.logits(module, x, 10)
        alone = torch.cat([self.logits(module, row, 10) for row in x.split(1)])
        gap = float((whole - alone).abs().max()) / max(1.0, float(whole.abs().max()))
        remedy = "In eval mode use stored statistics, never the batch's."
        expect(gap < 1e-3, f"in eval mode an image's logits change by {gap:.2g} with its batch.", remedy)
        return f"an image alone and in a batch of 7 differ by {gap:.1g}"

    def gradients(self) -> str:
        module, x = self.build().train(), self.images(_N).requires_grad_(True)
        loss = nn.functional.cross_entropy(module(x), torch.arange(_N) % 10)
        loss.backward()
        grad = x.grad
        reaches = grad is not None and bool(torch.isfinite(grad).all()) and bool(grad.any())
        expect(reaches, "no finite gradient reaches the images.", "Nothing may be detached or rounded on the way.")
        grads = {n: p.grad for n, p in module.named_parameters()}
        bad = [n for n, g in grads.items() if g is not None and not bool(torch.isfinite(g).all())]
        expect(not bad, f"gradients of {', '.join(bad[:3])} are not finite.", "Check the initialisation.")
        idle = [n for n, g in grads.items() if g is None]
        return "reach images and parameters" + (f"; {', '.join(idle[:3])} take no part" if idle else "")

    def initialisation(self) -> str:
        a, b = self.build().state_dict(), self.build().state_dict()
        same = list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
        remedy = "Initialise from torch's global generator (which the suite seeds) or from nothing random."
        expect(same, "two builds under one seed have other weights.", remedy)
        return "the same seed gives the same weights"

    def state(self) -> str:
        module, other = self.build(), self.build()
        for parameter in other.parameters():
            parameter.data.add_(1.0)
        other.load_state_dict(module.state_dict())
        same = torch.equal(self.logits(module, self.images(), 10), self.logits(other, self.images(), 10))
        remedy = "Register every tensor that matters as a parameter or buffer."
        expect(same, "a network loaded from the state dict answers differently.", remedy)
        return f"{len(module.state_dict())} tensors hold everything"
