"""Accuracy and bytes by the precision of weights on the wire.

``python -m benchmarks.wire [--json FILE] [--seeds 0 1 2]`` runs the small problem of
`benchmarks.digits`, ten clients, three rounds, once for each `wire_dtype`. A FILE of an earlier
run that was cut short is continued.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.digits import ROUNDS, run
from benchmarks.measure import machine
from fedma_flwr.wire import WIRE_DTYPES

Row = dict[str, Any]


def measure(seeds: Sequence[int], file: Path | None) -> list[Row]:
    """Run what is not in the file yet; rows are printed, and written as they come."""
    rows: list[Row] = json.loads(file.read_text())["rows"] if file and file.exists() else []
    done = {(row["seed"], row["wire_dtype"]) for row in rows}
    for seed in seeds:
        for wire_dtype in WIRE_DTYPES:
            if (seed, wire_dtype) in done:
                continue
            outcome = run(seed=seed, wire_dtype=wire_dtype)
            totals = outcome.strategy.history.totals()
            rows.append(
                {
                    "seed": seed,
                    "wire_dtype": wire_dtype,
                    "accuracies": outcome.accuracies,
                    "bytes_down": totals["bytes_down"],
                    "bytes_up": totals["bytes_up"],
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            if file:
                file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Means over the seeds, as a Markdown table."""
    head = ["`wire_dtype`", "seeds", *(f"after round {n + 1}" for n in range(ROUNDS))]
    lines = [[*head, "MB down", "MB up"], ["---"] * (ROUNDS + 4)]
    for wire_dtype in WIRE_DTYPES:
        of = [row for row in rows if row["wire_dtype"] == wire_dtype]
        if of:
            accuracies = np.mean([row["accuracies"] for row in of], axis=0)
            sizes = [np.mean([row[key] for row in of]) / 1e6 for key in ("bytes_down", "bytes_up")]
            numbers = [f"{a:.3f}" for a in accuracies] + [f"{size:.2f}" for size in sizes]
            lines.append([f"`{wire_dtype}`", str(len(of)), *numbers])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measure(options.seeds, options.json)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(table(rows))


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    main()
