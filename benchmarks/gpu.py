"""A GPU's questions: AutoAttack beside pyautoattack in each precision, throughput on a large network, peak memory.

    python benchmarks/gpu.py [--data REFERENCE] [--n 1000] [--hard 512] [--parts abc] [--minutes 9] [--json FILE]
    python benchmarks/gpu.py --quick        tiny networks and budgets, on a CPU too: only to see that all of it runs

(a) pyautoattack's own `model_test.pt` (a ResNet-18) on CIFAR-10 as JPEG: Linf 8/255, where it has no robustness at
all, and Linf 0.5/255 on the first ``--hard`` images, where work remains. (b) A WRN-28-10 with random weights: passes
per second of APGD and of Square. (c) Peak memory at one batch size. A cell that no longer fits into ``--minutes`` is
named and left out. pyautoattack runs under torch's own defaults (TF32 convolutions on CUDA) and in plain float32.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_networks import bundled_network, tiny_network, wide_network
from peers import Counted, Row, ours, row, theirs
from torch import Tensor

from robustsuite.data.dataset import Dataset
from robustsuite.evaluation.protocol import custom_protocol, load_protocol, with_params
from robustsuite.models.precision import exact_arithmetic
from robustsuite.models.reference import LoadedModel
from robustsuite.results.schema import ProtocolPart
from robustsuite.threat import ThreatModel

Options = dict[str, Any]
PLAIN: Options = {"precision": "float32"}
_BF16: list[Options] = [{"precision": "bf16", "channels_last": True}, {"precision": "bf16"}]
REDUCED = {"cuda": [*_BF16, {"precision": "tf32"}], "cpu": _BF16}
TINY = {"apgd-ce.steps": 3, "apgd-t.steps": 2, "fab-t.n_iter": 2, "square.n_queries": 5}


@dataclass
class Bench:
    """What the parts share: the device, the time that is left, and the cells so far."""

    device: torch.device
    quick: bool
    ends: float
    save: Callable[[list[Row]], None]
    cells: list[Row] = field(default_factory=list)

    def cell(self, part: str, name: str, work: Callable[[], list[Row]], images: int, only: int = -1) -> None:
        """Run one cell, print it and keep it: of its stages the row ``only``, the total if not said."""
        longest = max((c["wall"] for c in self.cells if c["part"] == part), default=0.0)
        if time.perf_counter() + longest > self.ends:
            print(f"{part:24} {name:38} left out: no time", flush=True)
            return
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        held, start = self.memory(), time.perf_counter()
        cell: Row = {"part": part, "name": name, "images": images}
        try:
            stages = work()
            cell |= stages[only] | {"stages": stages, "peak_mib": (self.memory() - held) / 2**20}
            cell |= {"per_second": sum(cell.get("executed", (cell["forward"], cell["backward"]))) / cell["seconds"]}
            shown = _shown(cell)
        except Exception as error:  # the other cells are worth having all the same
            shown = cell["failed"] = f"{type(error).__name__}: {error}"
        cell["wall"] = time.perf_counter() - start
        cell["tf32 around"] = tf32()  # what pyautoattack runs under; the suite sets its own
        self.cells.append(cell)
        self.save(self.cells)
        print(f"{part:24} {name:38} {shown}", flush=True)

    def memory(self) -> int:
        """The most bytes allocated since the last reset; 0 where there is no GPU."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0


def _shown(cell: Row) -> str:
    forward, backward = cell.get("executed", (cell["forward"], cell["backward"]))
    speed = f"{cell['images'] / cell['seconds']:9.1f} img/s {cell['per_second']:11,.0f} passes/s"
    work = f"{cell['accuracy']:7.1%} {forward:12,} {backward:11,}"
    return f"{work} {cell['seconds']:8.2f} s {speed} {cell['peak_mib']:9.0f} MiB"


def tf32() -> dict[str, bool | str]:
    """What torch is allowed to multiply in TF32 where nobody says otherwise."""
    try:
        matmul = torch.get_float32_matmul_precision() != "highest"
        return {"convolutions": torch.backends.cudnn.allow_tf32, "matmul": matmul}
    except RuntimeError as error:  # torch does not summarise what was set backend by backend
        return {"unknown": str(error).split(".")[0]}


def warm(loaded: LoadedModel, data: Dataset, device: torch.device) -> None:
    """Load libraries and kernels before the first clock starts."""
    x = data.x[:256].to(device)
    for options in (*REDUCED[device.type], PLAIN):
        loaded.classifier.attacking(**options).gradient(x, lambda logits: logits.sum(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10/cifar10-jpeg.tar.xz", help="images, as for `eval`")
    parser.add_argument("--synthetic", action="store_true", help="random images, with the network's own labels")
    parser.add_argument("--checkpoint", type=Path, help="model_test.pt, if not the one in the installed pyautoattack")
    parser.add_argument("--n", default=1000, type=int)
    parser.add_argument("--hard", default=512, type=int)
    parser.add_argument("--parts", default="abc")
    parser.add_argument("--minutes", default=9.0, type=float)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": _name(device), "tf32": tf32()}
    print(json.dumps(machine))

    def save(cells: list[Row]) -> None:
        if args.json:
            args.json.write_text(json.dumps({"machine": machine, "cells": cells}, indent=2) + "\n")

    bench = Bench(device, args.quick, time.perf_counter() + 60 * args.minutes, save)
    found = args.data if Path(args.data).exists() and not args.synthetic else None
    if found is None:
        print("synthetic images with the network's own answers as labels: their accuracies mean nothing")
    real = partial(bundled_network, device, args.checkpoint, found, args.n)
    network, data = tiny_network(device) if args.quick else real()
    wide, wide_data = wide_network(device, args.quick)
    warm(network, data, device)
    warm(wide, wide_data, device)
    for part, work in {
        "b": lambda: throughput(bench, wide, wide_data),
        "a": lambda: whole(bench, network, data, args.hard),
        "c": lambda: memory(bench, network, data),
    }.items():
        if part in args.parts:
            work()
    for line in ratios(bench.cells):
        print(line)
    save(bench.cells)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def whole(bench: Bench, loaded: LoadedModel, data: Dataset, hard: int) -> None:
    """(a) AutoAttack `standard`, both sides."""
    protocol = load_protocol("autoattack")
    if bench.quick:
        _whole(bench, "64/255", loaded, data, with_params(protocol, TINY), slots=8)
        return
    _whole(bench, "8/255", loaded, data, protocol, slots=512)
    few = data.take(torch.arange(min(hard, len(data))), f"first:{hard}")
    _whole(bench, "0.5/255", loaded, few, protocol, slots=512)


def _whole(bench: Bench, eps: str, loaded: LoadedModel, data: Dataset, protocol: ProtocolPart, *, slots: int) -> None:
    """One threat; the cells that matter most come first."""
    threat, reduced = ThreatModel.parse(f"Linf:{eps}"), REDUCED[bench.device.type]

    def mine(options: Options, slots: int) -> None:
        work = partial(ours, loaded, data, threat, protocol, slots=slots, **options)
        bench.cell(f"a AutoAttack {eps}", f"{label(options)}, {slots} slots", work, len(data))

    def other(name: str, arithmetic: Callable[[], AbstractContextManager[None]]) -> None:
        with arithmetic():
            bench.cell(f"a AutoAttack {eps}", name, partial(theirs, loaded, data, threat), len(data))

    mine(reduced[0], slots)
    other("pyautoattack, torch's defaults", nullcontext)
    for options in [*reduced[1:], PLAIN]:
        mine(options, slots)
    other("pyautoattack, float32", exact_arithmetic)
    for options in [*reduced, PLAIN]:
        mine(options, 2 * slots)


def throughput(bench: Bench, loaded: LoadedModel, data: Dataset) -> None:
    """(b) APGD and Square on a large network at an eps that fools it seldom, so that every slot goes on."""
    threat = ThreatModel.parse("Linf:1/25500")
    budgets = {"apgd-ce": 2, "square": 4} if bench.quick else {"apgd-ce": 20, "square": 200}
    _compare(bench, "b WRN", loaded, data, threat, budgets, batch=min(len(data), 256))


def memory(bench: Bench, loaded: LoadedModel, data: Dataset) -> None:
    """(c) A few steps of both sides at one batch size."""
    batch = min(len(data), 8 if bench.quick else 250)
    images = data.take(torch.arange(batch), f"first:{batch}")
    _compare(bench, "c memory", loaded, images, ThreatModel.parse("Linf:1/25500"), {"apgd-ce": 5, "square": 20}, batch)


def _compare(
    bench: Bench,
    part: str,
    loaded: LoadedModel,
    data: Dataset,
    threat: ThreatModel,
    budgets: dict[str, int],
    batch: int,
) -> None:
    for attack, budget in budgets.items():
        setting = "steps" if attack == "apgd-ce" else "n_queries"
        protocol = with_params(custom_protocol([attack], []), {f"{attack}.{setting}": budget})
        where = f"{part} {attack} {budget}"
        for options in [*REDUCED[bench.device.type], PLAIN]:
            work = partial(ours, loaded, data, threat, protocol, slots=batch, **options)
            bench.cell(where, f"{label(options)}, {batch} slots", work, len(data), only=1)
        one = partial(_single, loaded, data, threat, attack, budget, batch)
        bench.cell(where, "pyautoattack, torch's defaults", one, len(data))
        with exact_arithmetic():
            bench.cell(where, "pyautoattack, float32", one, len(data))


def _single(loaded: LoadedModel, data: Dataset, threat: ThreatModel, attack: str, budget: int, batch: int) -> list[Row]:
    """One of pyautoattack's attacks, on the images that its network gets right, in batches."""
    from pyautoattack.autopgd_base import APGDAttack
    from pyautoattack.square import SquareAttack

    device, counted = loaded.classifier.device, Counted(loaded.classifier.module)
    shared = {"norm": threat.norm, "eps": threat.radius, "device": device, "seed": 0}
    if attack == "apgd-ce":
        made: Any = APGDAttack(counted, n_iter=budget, loss="ce", **shared)
    else:
        made = SquareAttack(counted, n_queries=budget, resc_schedule=False, **shared)
    start, right = time.perf_counter(), 0
    for x, y in _batches(data, batch, device):
        found = made.perturb(x, y)
        with torch.no_grad():
            right += int((loaded.classifier.module(found).argmax(1) == y).sum())
    seconds = time.perf_counter() - start
    return [row(attack, right / len(data), counted.forwards, counted.backwards, seconds)]


def _batches(data: Dataset, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(data), batch):
        yield data.x[start : start + batch].to(device), data.y[start : start + batch].to(device)


def label(options: dict[str, Any]) -> str:
    """How a way of running is called in the tables."""
    return f"robustsuite {options['precision']}{' channels last' if options.get('channels_last') else ''}"


def ratios(cells: list[Row]) -> Iterator[str]:
    """Seconds of pyautoattack under torch's defaults over those of every other cell of its part."""
    default = {c["part"]: c for c in cells if c["name"].startswith("pyautoattack, torch") and "seconds" in c}
    for cell in cells:
        if cell["part"] in default and "seconds" in cell:
            other = default[cell["part"]]
            cell["ratio"] = other["seconds"] / cell["seconds"]
            memory = f", memory {cell['peak_mib'] / other['peak_mib']:.2f} of its" if other["peak_mib"] else ""
            yield f"{cell['part']:24} {cell['name']:38} {cell['ratio']:6.2f} times as fast{memory}"


if __name__ == "__main__":
    main()
