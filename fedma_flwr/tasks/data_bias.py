"""Colour as a bias: one client sees five classes mostly in grey, the other the rest in colour.

Wang et al., ICLR 2020 (arXiv 2002.06440), section 5.3: whoever takes greyness for a sign of the
class is wrong on the test pictures, of which half of each class is grey. The pictures and models
are those of the task cifar10.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedma_flwr.tasks import config
from fedma_flwr.tasks.cifar10 import AUGMENTATIONS, MEAN, MODELS, STD, read
from fedma_flwr.tasks.images import normalised
from fedma_flwr.tasks.task import Data, Options, Task
from fedma_flwr.tasks.validation import hold_out

NUM_CLASSES = 10
TEST_SHARE = 0.5  # of each class's test pictures are grey
TEST_SEED = 0  # fixed: every run is tested on the same pictures


def load(
    dataset: str, data_dir: str, *, grey_share: float, seed: int, validation_share: float = 0.0
) -> Data:
    """Load the pictures and take the colour from some.

    Parameters
    ----------
    dataset, data_dir : str
        As in the task cifar10.
    grey_share : float
        Share of grey pictures, 0..1, in client 0's five classes, and of coloured ones in client
        1's; 0.5 is no bias.
    seed : int
        Draws the five classes and which training pictures are grey.
    validation_share : float (default: 0.0)
        See `hold_out`: of the training data, to evaluate on in place of the test data;
        half of each class of it is grey, as of the test data.

    Returns
    -------
    Data
        Images, float32, shape (examples, 3, 32, 32), and labels, int64; the owner of a class's
        training pictures is 0 or 1.

    Raises
    ------
    ValueError, RuntimeError
        As in the task cifar10.
    """
    train, test = hold_out(*read(dataset, data_dir), validation_share)
    (images, labels), (test_images, test_labels) = train, test
    rng = np.random.default_rng(seed)
    owner = np.ones(NUM_CLASSES, dtype=np.int64)
    owner[rng.permutation(NUM_CLASSES)[: NUM_CLASSES // 2]] = 0
    shares = np.where(owner == 0, grey_share, 1 - grey_share)
    images = discoloured(images, labels, shares, rng)
    halves = np.full(NUM_CLASSES, TEST_SHARE)
    test_images = discoloured(test_images, test_labels, halves, np.random.default_rng(TEST_SEED))
    return Data(
        train=normalised(images, labels, MEAN, STD),
        test=normalised(test_images, test_labels, MEAN, STD),
        owners=torch.from_numpy(owner[labels]),
    )


def discoloured(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    shares: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Turn a share of each class's pictures grey.

    Parameters
    ----------
    images : array of uint8, shape (examples, 3, height, width)
        Pixels, 0..255.
    labels : array of int64, shape (examples,)
        Classes.
    shares : array, shape (classes,)
        Of each class, 0..1, rounded to whole pictures.
    rng : Generator
        Draws the pictures.

    Returns
    -------
    array of uint8
        A copy; grey pictures have three equal channels, their luminance (ITU-R BT.601).
    """
    from torchvision.transforms.functional import rgb_to_grayscale

    result = images.copy()
    for label, share in enumerate(shares):
        members = np.flatnonzero(labels == label)
        chosen = rng.permutation(members)[: round(share * len(members))]
        pictures = torch.from_numpy(images[chosen])
        result[chosen] = rgb_to_grayscale(pictures, num_output_channels=3).numpy()
    return result


def _options(run_config: config.RunConfig) -> Options:
    config.check_share(run_config, "grey-share")
    config.check_partition(run_config)
    return {
        "grey_share": config.number(run_config, "grey-share"),
        "seed": config.integer(run_config, "seed"),
    }


TASK = Task(
    name="data_bias",
    num_classes=NUM_CLASSES,
    datasets=("embedded", "full"),
    models=MODELS,
    example_inputs=lambda: (torch.zeros(2, 3, 32, 32),),
    load=load,
    partitions=("colour", "homogeneous"),
    options=_options,
    augmentations=AUGMENTATIONS,
)
