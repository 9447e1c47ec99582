"""`--dry-run`: what a run would do and may cost, and what of it is there already. Writes nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustsuite.cli import console

if TYPE_CHECKING:
    from robustsuite.evaluation.evaluator import Prepared


def show(prepared: "Prepared", runs: Path, *, as_json: bool) -> None:
    """Print the plan of a prepared request."""
    body = document(prepared, runs)
    if as_json:
        console.emit(body)
        return
    from rich import box
    from rich.table import Table

    model, data = body["model"], body["data"]
    console.say(f"model: {model['name']}, {model['arch'] or model['reference']}, {model['n_params']:,} parameters")
    console.say(f"       parameters {model['arch_params']}, weights sha256 {model['weights_sha256'][:16]}")
    console.say(f"data: {data['name']} ({data['subset']}), n = {data['n']}, fingerprint {data['fingerprint'][:16]}")
    threat, protocol = body["threat"], body["protocol"]
    console.say(f"threat: {threat['norm']} eps {threat['eps']}; protocol: {protocol['name']} {protocol['version']}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for title in ("examples", "forward at most", "backward at most", "seconds at most"):
        table.add_column(title, justify="right")
    table.add_column("parameters")
    for s in body["stages"]:
        params = ", ".join(f"{k}={v}" for k, v in s["params"].items())
        table.add_row(
            s["name"], f"{s['n']:,}", f"{s['forward']:,}", f"{s['backward']:,}", f"{s['seconds']:.1f}", params
        )
    console.stdout().print(table)
    for name, reason in body["skipped"].items():
        console.say(f"{name} is skipped: {reason}")
    total = body["seconds"]
    for name in body["flagged"]:
        console.say(f"{name} runs only if a suspicion is raised")
    console.say(f"At most about {total:.0f} s on {body['device']} (upper bound; early success makes it cheaper).")
    console.say(f"Run key: {body['run_key']}; {_progress(body)}")


def _progress(body: dict[str, Any]) -> str:
    if body["complete"]:
        return f"{body['run_dir']} is already complete."
    if not body["exists"]:
        return f"{body['run_dir']} does not exist yet."
    return f"{body['run_dir']} has {body['blocks_done']} of {body['blocks']} blocks done."


def document(prepared: "Prepared", runs: Path) -> dict[str, Any]:
    """The plan as one JSON document."""
    import torch

    from robustsuite.evaluation.cascade import Parts
    from robustsuite.evaluation.ledger import Blocks, LedgerStore
    from robustsuite.evaluation.plan import estimate

    request = prepared.request
    run_dir = runs / request.run_key
    blocks = Blocks(request.data.n, request.block_size)
    store = LedgerStore(run_dir, blocks)
    names = ["clean", *[s.name for s in Parts.of(prepared.stages, request.protocol).cascade]]
    done = sum(all(store.path(name, b).exists() for name in names) for b in range(blocks.count))
    threads = torch.get_num_threads()
    torch.set_num_threads(request.threads)
    planned = [s for s in prepared.stages if s.plan.when != "flagged"]
    costs = estimate(prepared.model, prepared.data, planned, request.slots, request.protocol.tail_sample)
    torch.set_num_threads(threads)
    params = {s.plan.name: s.plan.params for s in prepared.stages}
    body = request.model_dump(mode="json")
    stages = [
        {
            "name": c.name,
            "n": c.n,
            "forward": c.forward,
            "backward": c.backward,
            "seconds": round(c.seconds, 3),
            "params": params.get(c.name, {}),
        }
        for c in costs
    ]
    return {
        "run_key": request.run_key,
        "run_dir": str(run_dir),
        "exists": run_dir.exists(),
        "complete": (run_dir / "record.json").exists(),
        "blocks": blocks.count,
        "blocks_done": done,
        "model": body["model"],
        "data": body["data"],
        "threat": body["threat"],
        "protocol": {"name": request.protocol.name, "version": request.protocol.version},
        "stages": stages,
        "skipped": prepared.skipped,
        "flagged": [s.name for s in prepared.stages if s.plan.when == "flagged"],
        "seconds": round(sum(c.seconds for c in costs), 3),
        "device": request.device,
        "slots": request.slots,
        "threads": request.threads,
    }
