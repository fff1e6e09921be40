"""Derive and prove the specs of all of torchvision's classification models.

Run ``python -m benchmarks.structure [--json FILE] [--only NAME ...]``. The models are built with
random weights. Models with more parameters than ``--largest`` are derived on the meta device and
not proven; the table says so. A FILE of an earlier run that was cut short is continued.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedma_flwr.structure import PermutationSpec, UnsupportedModelError, prove_spec
from fedma_flwr.structure.deriving.propose import propose_spec

# Small images keep the proofs short. Models that need others:
_SIZES = {"inception_v3": 299, "maxvit_t": 224}
_IMAGE_SIZE = 64
_ViT_PATCH_14 = 56


def build(name: str) -> tuple[Callable[[], nn.Module], int]:
    """A builder for a torchvision model, and the size of the images it is tried with."""
    from torchvision import models

    if name.startswith("vit_"):
        size = _ViT_PATCH_14 if name.endswith("14") else _IMAGE_SIZE
        return lambda: models.get_model(name, weights=None, image_size=size), size
    options: dict[str, Any] = (
        {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    )
    return lambda: models.get_model(name, weights=None, **options), _SIZES.get(name, _IMAGE_SIZE)


def matched_share(spec: PermutationSpec) -> float:
    """Share of parameters that have at least one matched axis."""
    sizes = {name: torch.Size(shape).numel() for name, shape in spec.shapes().items()}
    parameters = {name: n for name, n in sizes.items() if not _is_statistic(spec, name)}
    matched = sum(n for name, n in parameters.items() if spec.tensor_groups(name))
    return matched / sum(parameters.values())


def _is_statistic(spec: PermutationSpec, name: str) -> bool:
    return name in spec.statistics or not spec.axes[name]


def measure(name: str, largest: int) -> dict[str, Any]:
    """Derive and prove the spec of one model."""
    make, size = build(name)
    model = make()
    count = sum(parameter.numel() for parameter in model.parameters())
    proven = count <= largest
    model = model if proven else model.to("meta")
    inputs = (torch.zeros(2, 3, size, size),)
    row: dict[str, Any] = {"model": name, "parameters": count, "image": size}
    start = time.perf_counter()
    try:
        spec = propose_spec(model, inputs if proven else (inputs[0].to("meta"),))
        row["derive_seconds"] = round(time.perf_counter() - start, 2)
        if proven:
            start = time.perf_counter()
            proof = prove_spec(spec, model, inputs, drop_unused=True)
            row["prove_seconds"] = round(time.perf_counter() - start, 2)
            spec = proof.spec
            row |= {"growable": len(proof.growable), "invariance": proof.invariance}
        row |= {"groups": len(spec.groups), "matched": round(matched_share(spec), 4)}
        row["result"] = "proven" if proven else "derived, too large to be proven here"
    except UnsupportedModelError as error:
        row["result"] = f"refused: {error}"
    except Exception as error:  # the table must show what no one foresaw
        row["result"] = f"WRONG: {type(error).__name__}: {error}"
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    keys = ["groups", "growable", "matched", "invariance", "derive_seconds", "prove_seconds"]
    names = ["model", "parameters", *keys[:3], "error", "derive s", "prove s", "result"]
    rows = [row | {"invariance": f"{row.get('invariance', math.nan):.0e}"} for row in rows]
    lines = [" | ".join(names), " | ".join(["---"] * len(names))]
    for row in rows:
        cells = [row["model"], f"{row['parameters'] / 1e6:.1f} M", *(row.get(k, "") for k in keys)]
        cells.append(row["result"])
        lines.append(" | ".join(str(cell) for cell in cells))
    return "\n".join(f"| {line} |" for line in lines)


def _earlier(path: str | None) -> list[dict[str, Any]]:
    """Rows of an earlier run that was cut short."""
    if path is None or not Path(path).exists():
        return []
    rows: list[dict[str, Any]] = json.loads(Path(path).read_text())
    return rows


def main() -> None:
    from torchvision import models

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="file to write the rows to")
    parser.add_argument("--only", nargs="+", help="models to run instead of all")
    parser.add_argument("--largest", type=int, default=350_000_000, help="parameters to prove")
    arguments = parser.parse_args()
    names = arguments.only or models.list_models(module=models)
    rows = _earlier(arguments.json)
    for name in names:
        if name in [row["model"] for row in rows]:
            continue
        rows.append(measure(name, arguments.largest))
        print(json.dumps(rows[-1]), flush=True)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(rows, indent=1))
    print(table(rows))
    proven = sum(row["result"] == "proven" for row in rows)
    print(f"\n{proven} of {len(rows)} models derived and proven")


if __name__ == "__main__":
    main()
