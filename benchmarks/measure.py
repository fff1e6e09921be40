"""Planted units, and what one run of the engine costs."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import scipy
import torch

from fedma_flwr.matching import BBPMAP, Matching, assignment
from fedma_flwr.matching.first_bounds import FirstBounds
from fedma_flwr.matching.products import Products
from fedma_flwr.matching.single_precision import SingleSums, aligned

Shape = tuple[int, int, torch.dtype]  # of a product (n, D) x (D, m): n, m, precision


def plant(
    clients: int, width: int, size: int, *, own: float = 0.1, noise: float = 0.2, seed: int = 0
) -> list[np.ndarray]:
    """Return clients' units, float32 rows of norm 1: shared ones, and a part of each one's own."""
    rng = np.random.default_rng(seed)
    private = round(own * width)
    shared = rng.standard_normal((width - private, size), dtype=np.float32)
    units = []
    for _ in range(clients):
        rows = np.vstack([shared, rng.standard_normal((private, size), dtype=np.float32)])
        rows += np.float32(noise) * rng.standard_normal(rows.shape, dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        units.append(rows[rng.permutation(width)])
    return units


def measure(
    matcher: BBPMAP, units: list[np.ndarray], repeats: int = 1
) -> tuple[Matching, dict[str, float]]:
    """Match; return the matching, its CPU seconds, its floor and its peak memory.

    Seconds are those of :func:`clock`. Of several repeats it is the one with the median seconds;
    the memory is that of the first, before anything can be used again.

    The floor is what products and assignments alone take: the solver's time inside the run, and
    products of the run's shapes and precisions, done again on operands that are at hand.
    """
    runs = [_measure_once(matcher, units) for _ in range(repeats)]
    matching, costs = sorted(runs, key=lambda run: run[1]["seconds"])[len(runs) // 2]
    return matching, {**costs, "memory": runs[0][1]["memory"]}


def _measure_once(matcher: BBPMAP, units: list[np.ndarray]) -> tuple[Matching, dict[str, float]]:
    solver = Stopwatch(assignment.solve)
    with (
        patch.object(assignment, "solve", solver),
        recorded_products() as shapes,
        peak_memory() as peak,
    ):
        start = clock()
        matching = matcher.match(units)
        seconds = clock() - start
    inputs = sum(rows.nbytes for rows in units)
    products = time_products(shapes, units[0].shape[1])
    return matching, {
        "seconds": seconds,
        "products": products,
        "assignments": solver.seconds,
        "over_floor": seconds / (products + solver.seconds),
        "memory": (inputs + peak["bytes"]) / inputs,
        "gpu_memory": peak["gpu_bytes"] / inputs,
    }


@contextmanager
def recorded_products() -> Iterator[list[Shape]]:
    """Note the products that the engine computes, in the order in which it does.

    Long because each of the three ways in which it does is wrapped here.
    """
    shapes: list[Shape] = []
    multiply, multiply_roughly = Products._multiply, Products._multiply_roughly
    multiply_all = FirstBounds._multiply_measured_rows

    def recorded(
        self: Products, slots: np.ndarray, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        count = len(self.square) if rows is None else len(rows)
        shapes.append((count, len(slots), torch.float64))
        return multiply(self, slots, rows)

    def recorded_roughly(
        self: Products, slots: np.ndarray, room: SingleSums
    ) -> tuple[np.ndarray, np.ndarray]:
        shapes.append((len(self.square), aligned(len(slots)), torch.float32))
        return multiply_roughly(self, slots, room)

    def recorded_all(self: FirstBounds) -> None:
        width = aligned(self._global_units.width)
        counts = [int(rows.sum()) for rows in self.measured]
        own = [(count, len(rows)) for count, rows in zip(counts, self.measured, strict=True)]
        sizes = [(width, width), (sum(counts), width), *own]
        shapes.extend((*size, torch.float32) for size in sizes)
        multiply_all(self)

    with (
        patch.object(Products, "_multiply", recorded),
        patch.object(Products, "_multiply_roughly", recorded_roughly),
        patch.object(FirstBounds, "_multiply_measured_rows", recorded_all),
    ):
        yield shapes


def clock() -> float:
    """Return CPU seconds of the process, or, where a GPU takes part, seconds of the wall clock.

    Other work on the machine changes CPU seconds little; on one thread they are wall time on an
    idle machine.
    """
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


class Stopwatch:
    """A function that adds up the time spent in it."""

    def __init__(self, function: Callable) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: object) -> object:
        """Call the function."""
        start = clock()
        try:
            return self.function(*args)
        finally:
            self.seconds += clock() - start


def time_products(shapes: list[Shape], size: int) -> float:
    """Return the seconds of products (n, D) x (D, slots) of the given shapes, a median of five."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = max(max(n, m) for n, m, _ in shapes)
    operands = torch.randn(2, count, size, dtype=torch.float64, device=device)
    ready = {dtype: operands.to(dtype) for dtype in {dtype for _, _, dtype in shapes}}
    for rows, sums in ready.values():
        (rows @ sums.T).sum().item()
    seconds = []
    for _ in range(5):
        start = clock()
        for n, m, dtype in shapes:
            last = ready[dtype][0, :n] @ ready[dtype][1, :m].T
        last.sum().item()  # a GPU has then done all of them
        seconds.append(clock() - start)
    return float(np.median(seconds))


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Note by how much memory grew at most: ``bytes`` resident, ``gpu_bytes`` of torch's tensors.

    NaN where the system does not tell.
    """
    result = {"bytes": float("nan"), "gpu_bytes": 0.0}
    before, gpu_before = _resident("VmRSS"), 0
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    if torch.cuda.is_available():
        torch.cuda.init()  # statistics need it
        torch.cuda.reset_peak_memory_stats()
        gpu_before = torch.cuda.memory_allocated()
    try:
        yield result
    finally:
        result["bytes"] = max(_resident("VmHWM") - before, 0)
        if torch.cuda.is_available():
            result["gpu_bytes"] = float(torch.cuda.max_memory_allocated() - gpu_before)


def _resident(key: str) -> float:
    """Return a figure of the process' resident memory in bytes, NaN where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    values = [line.split()[1] for line in lines if line.startswith(key)]
    return int(values[0]) * 1024.0 if values else float("nan")


def machine() -> dict[str, object]:
    """Describe what the numbers were measured on."""
    cpu, memory = platform.machine(), "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(": ")[1] for x in lines if x.startswith("model name")), cpu)
        kib = int(Path("/proc/meminfo").read_text().split()[1])
        memory = f"{kib / 2**20:.0f} GiB"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": memory,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "torch": torch.__version__,
    }
