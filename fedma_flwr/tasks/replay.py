"""Training steps on a GPU, captured once and replayed.

A small model's step is dozens of kernels that each take less time than their launch. As a CUDA
graph the whole step is one launch, with the same kernels and thus the same result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[..., None]
"""Trains in place on a batch: what it is called with are tensors of as many rows."""

_WARM_UP = 3  # libraries initialise themselves and momenta begin, which no graph may contain


class Replayed:
    """A step that is captured after its first calls, and replayed from then on.

    Parameters
    ----------
    step : Step
        Works on the GPU alone and reads nothing back.
    batch_size : int
        Of the batches that are replayed; any other size is stepped as it is.
    capture : Callable (default: capture_cuda_graph)
        Called with a function that steps; returns one that repeats what it did.
    """

    def __init__(
        self,
        step: Step,
        batch_size: int,
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self._step = step
        self._size = batch_size
        self._capture = capture or capture_cuda_graph
        self._calls = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, *batch: Tensor) -> None:
        """Train on a batch."""
        if len(batch[0]) != self._size:
            self._step(*batch)
            return
        self._calls += 1
        if self._calls <= _WARM_UP:
            self._step(*batch)
            return
        if self._replay is None:
            self._batch = [tensor.clone() for tensor in batch]
            self._replay = self._capture(lambda: self._step(*self._batch))
        for ours, tensor in zip(self._batch, batch, strict=True):
            ours.copy_(tensor)
        self._replay()


def capture_cuda_graph(run: Callable[[], None]) -> Callable[[], None]:
    """Return what repeats the kernels that `run` launches, on the same memory.

    Parameters
    ----------
    run : Callable
        Is called once; while it is captured, its kernels do not run.

    Returns
    -------
    Callable
        Launches them.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], None] = graph.replay
    return replay
