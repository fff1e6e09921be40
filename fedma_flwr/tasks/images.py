"""Pictures: normalising them, and varying them in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

PADDING = 4


def normalised(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    mean: Sequence[float],
    std: Sequence[float],
) -> TensorDataset:
    """Turn pixels into what a model takes.

    Parameters
    ----------
    images : array of uint8, shape (examples, channels, height, width)
        Pixels, 0..255.
    labels : array of int64, shape (examples,)
        Classes.
    mean, std : sequence of float, length channels
        Of the pixels divided by 255.

    Returns
    -------
    TensorDataset
        float32 images of the same shape, and labels.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)
    centre, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return TensorDataset(pixels.sub_(centre).div_(scale), torch.from_numpy(labels))


def random_crop(images: Tensor, generator: Generator) -> Tensor:
    """Pad by reflection, four pixels a side, and cut the old size out at a random place.

    Parameters
    ----------
    images : Tensor, shape (batch, channels, size, size)
        On any device.
    generator : Generator
        Draws each picture's place, on the CPU.

    Returns
    -------
    Tensor
        The same shape.
    """
    batch, channels, size, _ = images.shape
    padded = functional.pad(images, [PADDING] * 4, mode="reflect")
    offsets = torch.randint(2 * PADDING + 1, (2, batch), generator=generator)
    places = offsets[:, :, None] + torch.arange(size)  # (2, B, size)
    rows, columns = places.to(images.device)
    picture = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return padded[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]


def random_crop_and_flip(images: Tensor, generator: Generator) -> Tensor:
    """As `random_crop`, and every second picture mirrored left to right, as in the paper's code.

    Parameters
    ----------
    images : Tensor, shape (batch, channels, size, size)
        On any device.
    generator : Generator
        Draws each picture's place and side, on the CPU.

    Returns
    -------
    Tensor
        The same shape.
    """
    cropped = random_crop(images, generator)
    mirrored = torch.randint(2, (len(images), 1, 1, 1), generator=generator).bool()
    return torch.where(mirrored.to(images.device), cropped.flip(-1), cropped)
