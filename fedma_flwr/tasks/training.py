"""Training and evaluating a classifier: plain SGD, the same result for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fedma_flwr.tasks.replay import Replayed, Step

EVALUATION_BATCH = 500
_MANY_STEPS = 20  # fewer do not pay for the capture of a CUDA graph
Augment = Callable[[Tensor, torch.Generator], Tensor]


def default_device() -> torch.device:
    """Return the GPU if this process may use one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    model: nn.Module,
    dataset: TensorDataset,
    *,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
    augment: Augment | None = None,
    device: torch.device | None = None,
) -> float:
    """Train in place the parameters that require a gradient.

    Long because a training loop has many options.

    Parameters
    ----------
    model : nn.Module
        Maps inputs to logits, shape (batch, classes). It is left on `device`.
    dataset : TensorDataset
        Inputs, shape (examples, ...), and integer labels, shape (examples,).
    epochs : int
        Passes over the data, at least 1.
    lr, momentum, weight_decay : float
        Of stochastic gradient descent.
    batch_size : int
        Examples a step, at least 1; the last batch of an epoch may be smaller.
    seed : int
        Seed of the shuffling, of `augment` and of the model's own randomness (dropout). The same
        seed, data and weights give bit-identical results on one machine.
    penalty : Callable (default: None)
        Called without arguments at every step; the scalar it returns is added to the loss. On a
        GPU steps are replayed (`Replayed`): neither it nor the model may read anything back.
    augment : Callable (default: None)
        Called with every batch of inputs and a generator on the CPU; returns a random variation
        of the batch, the same shape.
    device : torch.device (default: None)
        Where to train; None is `default_device()`.

    Returns
    -------
    float
        Mean cross-entropy over the last epoch, without the penalty.

    Raises
    ------
    ValueError
        If there is nothing to train or to train on, or `epochs` or `batch_size` is below 1.
    """
    device = device or default_device()
    model.to(device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    _check(parameters, dataset, epochs, batch_size)
    inputs, labels = (tensor.to(device) for tensor in dataset.tensors)
    if inputs.dim() == 4:  # images: convolutions train 1.6 times as fast so on a CPU
        inputs = inputs.to(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    vary = None if augment is None else lambda batch: augment(batch, generator)
    many = epochs * (len(labels) // batch_size) >= _MANY_STEPS
    replayed = batch_size if device.type == "cuda" and many else None
    with _reproducible(seed):
        optimizer = torch.optim.SGD(
            parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True
        )
        total = torch.zeros((), device=device)
        step = _indexed(_step(model, optimizer, penalty, total), inputs, labels, vary, replayed)
        for _ in range(epochs):
            order = torch.randperm(len(labels), generator=generator).to(device)
            total.zero_()
            for batch in order.split(batch_size):
                step(batch)
    model.to(memory_format=torch.contiguous_format)
    return total.item() / len(labels)


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: TensorDataset, device: torch.device | None = None
) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy (0..1) of a model.

    Parameters
    ----------
    model : nn.Module
        Maps inputs to logits, shape (batch, classes). It is left on `device`, in evaluation mode.
    dataset : TensorDataset
        Inputs, shape (examples, ...), and integer labels, shape (examples,).
    device : torch.device (default: None)
        Where to compute; None is `default_device()`.

    Returns
    -------
    tuple of float
        Loss and accuracy.

    Raises
    ------
    ValueError
        If the dataset is empty.
    """
    if len(dataset) == 0:
        raise ValueError("dataset has no examples to evaluate on")
    device = device or default_device()
    model.to(device).eval()
    loss, correct = 0.0, 0
    inputs, labels = dataset.tensors
    for x, y in zip(inputs.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
        logits, target = model(x.to(device)), y.to(device)
        loss += functional.cross_entropy(logits, target, reduction="sum").item()
        correct += int((logits.argmax(dim=1) == target).sum())
    return loss / len(labels), correct / len(labels)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    penalty: Callable[[], Tensor] | None,
    total: Tensor,
) -> Step:
    """Return a step of training, which adds the loss of all its examples to `total`."""

    def step(inputs: Tensor, labels: Tensor) -> None:
        loss = functional.cross_entropy(model(inputs), labels)
        total.add_(loss.detach() * len(labels))
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()

    return step


def _indexed(
    step: Step,
    inputs: Tensor,
    labels: Tensor,
    vary: Callable[[Tensor], Tensor] | None,
    replayed: int | None,
) -> Step:
    """Return a step that is called with the places of a batch's examples.

    Indexing the tensors: a DataLoader costs more than the training of a small model. Batches of
    `replayed` examples are replayed, but never what varies them, which draws random numbers.
    """

    def plain(batch: Tensor) -> None:
        step(inputs[batch], labels[batch])

    if vary is None:
        return plain if replayed is None else Replayed(plain, replayed)
    trained = step if replayed is None else Replayed(step, replayed)
    return lambda batch: trained(vary(inputs[batch]), labels[batch])


def _check(parameters: list[nn.Parameter], dataset: TensorDataset, epochs: int, size: int) -> None:
    if not parameters:
        raise ValueError("model has no parameter that requires a gradient: nothing to train")
    if len(dataset) == 0:
        raise ValueError("dataset has no examples to train on")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}")


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed dropout, leave the caller's random state alone, and pick deterministic kernels."""
    with (
        torch.random.fork_rng(),
        torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False),
    ):
        torch.manual_seed(seed)
        yield
