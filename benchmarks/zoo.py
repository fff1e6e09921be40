"""Derive the specs of models of many libraries, and check them without `prove_spec`.

Run ``python -m benchmarks.zoo [--libraries NAME ...] [--only PART ...] [--json FILE]``. Models are
small, with random weights; nothing is downloaded, and a library that is not installed is skipped.
Each model has a process of its own, with ``--seconds`` and ``--gigabytes`` as limits. A FILE of an
earlier run is continued.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo_checks import check
from benchmarks.zoo_models import LIBRARIES, build, names_of
from fedma_flwr.structure import UnsupportedModelError, derive_spec

#: What may be said of a model; the last three must not happen.
OUTCOMES = ("right", "refused", "not built", "limit", "internal error", "wrong")


def run_here(library: str, name: str) -> dict[str, Any]:
    """Build, derive and check one model in this process."""
    torch.manual_seed(0)
    try:
        model, inputs = build(library, name)
    except Exception as error:  # other releases of a library may not have it
        return {"outcome": "not built", "why": f"{type(error).__name__}: {error}"[:200]}
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    start = time.process_time()
    try:
        with counted_passes(model) as passes:
            spec = derive_spec(model, inputs)
    except UnsupportedModelError as error:
        return {**found, "outcome": "refused", "why": str(error)[:300]}
    except Exception as error:
        return {**found, "outcome": "internal error", "why": f"{type(error).__name__}: {error}"}
    found["seconds"] = round(time.process_time() - start, 1)
    found["passes"] = len(passes)
    found["matched"] = round(spec.matched_share(), 3)
    found["groups"] = len(spec.groups)
    found["growable"] = sum(group.growable for group in spec.groups.values())
    wrong = check(model, inputs, spec)
    return {**found, "outcome": "wrong" if wrong else "right", "why": wrong}


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[list[bool]]:
    """A list that has one entry more for each pass of the model, or of a copy of it."""
    passes: list[bool] = []
    vars(model)["_is_counted"] = True  # copies have it, too

    def count(module: nn.Module, _: object) -> None:
        if "_is_counted" in vars(module):
            passes.append(module.training)

    hook = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield passes
    finally:
        hook.remove()
        del vars(model)["_is_counted"]


def _send(library: str, name: str, gigabytes: int, out: Connection) -> None:
    limit = gigabytes << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    out.send(run_here(library, name))


def run_apart(library: str, name: str, seconds: int, gigabytes: int) -> dict[str, Any]:
    """The same in a process of its own, within limits."""
    # A fork has the libraries imported: that takes longer than most models do.
    context = multiprocessing.get_context("fork")
    there, here = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(library, name, gigabytes, here))
    process.start()
    here.close()
    try:
        if there.poll(seconds):
            result: dict[str, Any] = there.recv()
            return result
        return {"outcome": "limit", "why": f"more than {seconds} s"}
    except EOFError:
        return {"outcome": "limit", "why": "its process ended: out of memory, or a crash"}
    finally:
        process.kill()
        process.join()


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row a model, and a line of counts."""
    lines = [
        "| model | parameters | outcome | matched | groups (that grow) | passes | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in results.items():
        said = f"{row['outcome']}: {row['why']}" if row.get("why") else row["outcome"]
        groups = f"{row['groups']} ({row['growable']})" if "groups" in row else ""
        share = f"{row['matched']:.0%}" if "matched" in row else ""
        cells = (name, str(row.get("parameters", "")), said.replace("|", "/"), share, groups)
        cells = (*cells, str(row.get("passes", "")), str(row.get("seconds", "")))
        lines.append("| " + " | ".join(cells) + " |")
    counts = Counter(row["outcome"] for row in results.values())
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    return "\n".join([*lines, "", f"{len(results)} models: {told}.", *_middles(results)])


def _middles(results: dict[str, dict[str, Any]]) -> list[str]:
    """Median and 95th percentile of passes and of CPU seconds, of what was derived."""
    lines = []
    for name in ("passes", "seconds"):
        values = sorted(row[name] for row in results.values() if name in row)
        if values:
            middle, most = (values[int(share * (len(values) - 1))] for share in (0.5, 0.95))
            lines.append(f"{name.capitalize()}: median {middle}, 95th percentile {most}.")
    return lines


def main() -> None:
    """Run what is asked for, one model after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of models' names")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--gigabytes", type=int, default=12)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    if args.json and args.json.exists():
        results = json.loads(args.json.read_text())
    for library in args.libraries:
        if importlib.util.find_spec(library) is None:
            print(f"{library} is not installed: skipped.")
            continue
        importlib.import_module(library)
        for name in names_of(library):
            key = f"{library} {name}"
            if key in results or not any(part in name for part in args.only):
                continue
            results[key] = run_apart(library, name, args.seconds, args.gigabytes)
            print(key, results[key], flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
