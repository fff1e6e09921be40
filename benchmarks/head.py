"""What a solved head costs: a client's pass for moments, and the server's sums and solution.

``python -m benchmarks.head`` prints ratios to a forward pass, and the server's CPU seconds and
memory for a wide head and many clients, whose moments are added one after the other.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from fedma_flwr import head_moments
from fedma_flwr.averaging.head_moments import HeadMoments, fault_of, sum_moments, triangle_size
from fedma_flwr.averaging.ridge_regression import solve_head
from fedma_flwr.tasks import get_task

REPEATS = 5
CLASSES = 10


def main(argv: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head", description=__doc__)
    parser.add_argument("--inputs", type=int, default=4096, help="of the server's head")
    parser.add_argument("--clients", type=int, default=1000)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| client | forward pass, s | with moments, s | ratio |\n|---|---|---|---|")
    for name, model in (("LeNet", ""), ("mlp", "mlp")):
        print(_client(name, model))
    print(_server(arguments.inputs, arguments.clients))


def _client(name: str, model_name: str) -> str:
    """CPU seconds of a forward pass over 500 digits, alone and with moments."""
    task = get_task("mnist")
    model = task.build_model({"model": model_name}, 0).eval()
    head = [path for path, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    inputs = torch.randn(512, *task.example_inputs()[0].shape[1:])
    batches = list(
        zip(inputs.split(256), torch.zeros(512, dtype=torch.int64).split(256), strict=True)
    )

    @torch.no_grad()
    def forward() -> None:
        for batch, _ in batches:
            model(batch)

    plain, summed = [], []
    for _ in range(REPEATS):  # in turn, so that both see the same neighbours
        plain.append(_seconds(forward))
        summed.append(_seconds(lambda: head_moments(model, batches, head=head)))
    ratio = statistics.median(b / a for a, b in zip(plain, summed, strict=True))
    return f"| {name} | {min(plain):.3f} | {min(summed):.3f} | {ratio:.2f} |"


def _server(inputs: int, clients: int) -> str:
    """CPU seconds of checking, adding and solving, and the memory that grows with clients."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2 * inputs, inputs, generator=generator)
    targets = torch.randn(2 * inputs, CLASSES, generator=generator).argmax(1)
    rows, columns = torch.triu_indices(inputs, inputs).unbind()
    gram = (features.T @ features)[rows, columns] / len(features)
    hot = nn.functional.one_hot(targets, CLASSES).float()
    cross = hot.T @ torch.cat([features, torch.ones(len(features), 1)], 1) / len(features)
    one = HeadMoments(gram, cross)
    assert gram.shape == (triangle_size(inputs),)
    check = _seconds(lambda: fault_of(one))
    few = _after_adding(one, 2)
    before = _peak()
    add = _seconds(lambda: _after_adding(one, clients))
    grown = _peak() - before
    assert few.gram.dtype == torch.float64
    total = sum_moments([one], [100.0 * clients])
    solve = _seconds(lambda: solve_head(total, bias=True))
    return (
        f"\n{inputs} inputs, {clients} clients: adding {add:.1f} s, solving {solve:.1f} s, "
        f"memory {grown / 2**20:.0f} MiB (a client's moments are {gram.nbytes / 2**20:.0f} MiB); "
        f"checking {check:.2f} s a client"
    )


def _after_adding(moments: HeadMoments, clients: int) -> HeadMoments:
    return sum_moments([moments] * clients, [100.0] * clients)


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
