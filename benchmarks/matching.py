"""Speed of matching: our engine against the row loop, in one process and one run.

``python -m benchmarks.matching [--json FILE] [--chart FILE] [--layers NAME ...] [--threads N]``

Seconds are CPU seconds of the process, by default with one thread for both, or those of the wall
clock where there is a GPU, on which the engine then makes its products; the engine's are the median
of three runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from benchmarks.measure import clock, machine, measure, plant
from benchmarks.row_loop import RowLoop
from fedma_flwr.matching import BBPMAP
from fedma_flwr.matching.assignment import Backend


class Layer(NamedTuple):
    """One layer's matching problem and the ratio to reach, if one is set."""

    clients: int
    width: int
    size: int
    gamma: float = 7.0
    target: float | None = None


# Signatures are incoming weights and bias; the LSTM's, four gates' input weights and b_ih.
LAYERS = {
    "LeNet conv1": Layer(10, 20, 26),
    "LeNet conv2": Layer(10, 50, 501),
    "LeNet fc1": Layer(10, 500, 801, target=30),
    "VGG-9 conv1": Layer(16, 32, 28),
    "VGG-9 conv2": Layer(16, 64, 289),
    "VGG-9 conv3": Layer(16, 128, 577),
    "VGG-9 conv4": Layer(16, 128, 1153),
    "VGG-9 conv5": Layer(16, 256, 1153),
    "VGG-9 conv6": Layer(16, 256, 2305, target=35),
    "VGG-9 fc1": Layer(16, 512, 4097, target=50),
    "VGG-9 fc2": Layer(16, 512, 513, target=20),
    "Shakespeare embedding": Layer(66, 8, 80, gamma=1e-3),
    "Shakespeare LSTM": Layer(66, 256, 36, gamma=1e-3, target=4),
}


def compare(layer: Layer, backend: Backend, threads: int) -> dict[str, Any]:
    """Match one layer with both; the engine goes first, so that its peak memory is its own."""
    units = plant(layer.clients, layer.width, layer.size)
    matcher = BBPMAP.reference(gamma=layer.gamma, backend=backend, threads=threads)
    matching, costs = measure(matcher, units, 3)
    start = clock()
    objective, width = RowLoop(layer.gamma).match(units)
    baseline = clock() - start
    return {
        **layer._asdict(),
        **costs,
        "row_loop": baseline,
        "ratio": baseline / costs["seconds"],
        "objective": matching.objective,
        "row_loop_objective": objective,
        "global_width": matching.width,
        "row_loop_width": width,
        "sweeps": matching.sweeps,
    }


COLUMNS = (
    "| layer | clients | size | row loop s | ours s | ratio | target | over floor "
    "| memory / inputs | objective (row loop) | width (row loop) | sweeps |"
)


def row(name: str, r: dict[str, Any]) -> str:
    """Return one line of the table."""
    target = "" if r["target"] is None else f">= {r['target']}"
    return (
        f"| {name} | {r['clients']} | {r['width']} x {r['size']} | {r['row_loop']:.2f} "
        f"| {r['seconds']:.3f} | {r['ratio']:.0f} | {target} | {r['over_floor']:.2f} "
        f"| {r['memory']:.2f} | {r['objective']:.4f} ({r['row_loop_objective']:.4f}) "
        f"| {r['global_width']} ({r['row_loop_width']}) | {r['sweeps']} |"
    )


# Problems (clients, units, signature length) that grow along one axis.
GROWTH = {
    "clients": [(n, 128, 256) for n in (16, 32, 64, 128, 256)],
    "units": [(16, n, 512) for n in (64, 128, 256, 512, 1024)],
    "signature length": [(16, 256, n) for n in (128, 256, 512, 1024, 2048)],
}


def growth() -> dict[str, Any]:
    """Time the engine against each size alone, at a fixed global width: no unit is anyone's own."""
    result = {}
    for index, (axis, problems) in enumerate(GROWTH.items()):
        sizes = [problem[index] for problem in problems]
        seconds = []
        for clients, width, size in problems:
            units = plant(clients, width, size, own=0.0)
            start = clock()
            BBPMAP.reference(gamma=1e-3).match(units)
            seconds.append(clock() - start)
        exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
        result[axis] = {"sizes": sizes, "seconds": seconds, "exponent": exponent}
    return result


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw time against units, signature length and clients, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, (axis, curve) in zip(figure.subplots(1, len(result)), result.items(), strict=True):
        axes.loglog(curve["sizes"], curve["seconds"], "o-")
        axes.set_title(f"exponent {curve['exponent']:.2f}")
        axes.set_xlabel(axis)
        axes.set_ylabel("seconds")
        axes.grid(visible=True, which="both", alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of matching against the row loop.")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--chart", type=Path, help="draw how the time grows (svg or png)")
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--threads", type=int, default=1, help="for the products (default: 1)")
    parser.add_argument("--backend", choices=get_args(Backend), default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure(BBPMAP.reference(), plant(3, 8, 16))  # first calls of the libraries
    results: dict[str, Any] = {"machine": machine(), "layers": {}}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    print(COLUMNS, "|" + "---|" * (COLUMNS.count("|") - 1), sep="\n")
    for name in options.layers:
        results["layers"][name] = compare(LAYERS[name], options.backend, options.threads)
        print(row(name, results["layers"][name]), flush=True)
    results["growth"] = growth()
    for axis, curve in results["growth"].items():
        times = ", ".join(
            f"{size}: {seconds:.2f}"
            for size, seconds in zip(curve["sizes"], curve["seconds"], strict=True)
        )
        print(f"seconds against {axis}: {times}; exponent {curve['exponent']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.chart:
        draw(results["growth"], options.chart)


if __name__ == "__main__":
    main()
