"""Matching on a machine that has other things to do: beside two busy processes of its own.

``python -m benchmarks.busy [--json FILE] [--busy N]`` matches LeNet's first linear layer with the
engine's own choice of threads, and with as many as there are cores; first alone, then beside N busy
processes. Seconds are medians of three runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.matching import LAYERS
from benchmarks.measure import machine, plant
from fedma_flwr.matching import BBPMAP

RUNS, LAYER = 3, LAYERS["LeNet fc1"]


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes that do nothing, as fast as they can."""
    spin = "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def seconds(threads: int | None) -> dict[str, float]:
    """CPU and wall-clock seconds of one matching."""
    units = plant(LAYER.clients, LAYER.width, LAYER.size)
    cpu, wall = [], []
    for _ in range(RUNS):
        started, used = time.perf_counter(), time.process_time()
        BBPMAP.reference(gamma=LAYER.gamma, threads=threads).match(units)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return {"cpu": float(np.median(cpu)), "wall": float(np.median(wall))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Matching beside busy processes.")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--busy", type=int, default=2, help="busy processes (default: 2)")
    options = parser.parse_args()
    cores = max(os.cpu_count() or 1, 2)
    torch.set_num_threads(cores)
    results: dict[str, Any] = {"machine": machine(), "rows": []}
    print(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    print("| busy processes | threads | CPU s | wall s |", "|---|---|---|---|", sep="\n")
    for number in (0, options.busy):
        with busy_processes(number):
            for threads in (None, cores):
                figures = seconds(threads)
                results["rows"].append({"busy": number, "threads": threads, **figures})
                name = threads or "the engine's choice"
                print(f"| {number} | {name} | {figures['cpu']:.2f} | {figures['wall']:.2f} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
