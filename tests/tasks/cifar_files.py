"""Files in CIFAR-10's binary format: a byte of label, 1,024 of red, of green, of blue."""

import numpy as np


def pictures(count, seed):
    """Random pixels, shape (count, 3, 32, 32), and labels 0, 1, .. 9, 0, ..."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), np.arange(count) % 10


def write_binary(folder, count=4):
    """CIFAR-10's binary version, with `count` pictures a batch."""
    root = folder / "cifar-10-batches-bin"
    root.mkdir()
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        images, labels = pictures(count, seed)
        records = np.concatenate([labels[:, None], images.reshape(count, -1)], axis=1)
        records.astype(np.uint8).tofile(root / f"{name}.bin")
    return root
