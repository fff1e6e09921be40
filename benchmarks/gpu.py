"""On a GPU: matching finds the CPU's assignments, replayed training steps the plain weights.

``python -m benchmarks.gpu`` (needs a GPU that torch sees)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import TensorDataset

from benchmarks.matching import LAYERS, Layer
from benchmarks.measure import plant
from fedma_flwr.matching import BBPMAP, Matching
from fedma_flwr.tasks import get_task, training
from simulations.methods import app_defaults

MATCHED = ("VGG-9 conv2", "LeNet fc1", "VGG-9 conv6", "VGG-9 fc1", "VGG-9 fc2", "Shakespeare LSTM")
LONGEST_LEARNED = 1000  # SPAHM's variances by dimension take minutes beyond
EXAMPLES, EPOCHS = 410, 20
NEVER = sys.maxsize


def matchers(layer: Layer) -> dict[str, Callable[[], BBPMAP]]:
    """Return the matchers to compare on a layer."""
    result = {
        "reference()": lambda: BBPMAP.reference(gamma=layer.gamma),
        "BBPMAP()": BBPMAP,
    }
    if layer.size <= LONGEST_LEARNED:
        result["learned()"] = lambda: BBPMAP.learned(gamma=layer.gamma)
    return result


def timed(matcher: BBPMAP, units: list[np.ndarray]) -> tuple[Matching, float]:
    """Match; the matching and its seconds of wall time."""
    start = time.perf_counter()
    matching = matcher.match(units)
    return matching, time.perf_counter() - start


def compare_matching() -> None:
    """Print the seconds on both, and whether the assignments are the same."""
    print(
        "| layer | matcher | GPU s | CPU s, one thread | same assignments |\n|---|---|---|---|---|"
    )
    for name in MATCHED:
        layer = LAYERS[name]
        units = plant(layer.clients, layer.width, layer.size)
        for label, make in matchers(layer).items():
            timed(make(), units)  # first calls of the libraries
            gpu, seconds = timed(make(), units)
            with patch("torch.cuda.is_available", lambda: False):
                cpu, cpu_seconds = timed(make(), units)
            same = gpu.width == cpu.width and all(
                map(np.array_equal, gpu.assignments, cpu.assignments)
            )
            print(f"| {name} | {label} | {seconds:.3f} | {cpu_seconds:.3f} | {same} |", flush=True)


def train(name: str, many_steps: int) -> tuple[torch.Tensor, float]:
    """Train a task's model on random examples; its weights and the seconds."""
    task = get_task(name)
    config = {**app_defaults(), "task": name}
    model = task.build_model(config, 0)
    generator = torch.Generator().manual_seed(0)
    (example, *_) = task.example_inputs()
    shape = (EXAMPLES, *example.shape[1:])
    if example.is_floating_point():
        inputs = torch.randn(shape, generator=generator)
    else:
        inputs = torch.randint(0, task.num_classes, shape, generator=generator)
    labels = torch.randint(0, task.num_classes, (EXAMPLES,), generator=generator)
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 32, "seed": 0}
    with patch.object(training, "_MANY_STEPS", many_steps):
        start = time.perf_counter()
        training.train(model, TensorDataset(inputs, labels), epochs=EPOCHS, **settings)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return torch.cat([p.detach().flatten() for p in model.parameters()]), seconds


def compare_training() -> None:
    """Print the seconds of plain and of replayed steps, and whether the weights are the same."""
    print("| task | plain s | replayed s | same weights |\n|---|---|---|---|")
    for name in ("mnist", "cifar10", "shakespeare"):
        train(name, NEVER)
        (plain, seconds), (replayed, fewer) = train(name, NEVER), train(name, 0)
        same = torch.equal(plain, replayed)
        print(f"| {name} | {seconds:.2f} | {fewer:.2f} | {same} |", flush=True)


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no GPU on this machine", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    compare_matching()
    print()
    compare_training()
    return 0


if __name__ == "__main__":
    sys.exit(main())
