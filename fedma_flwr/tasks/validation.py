"""A validation split: choices are made on held-out training data, never on the test split."""

from __future__ import annotations

import numpy as np

from fedma_flwr.tasks import config
from fedma_flwr.tasks.sources import Labelled

KEY = "validation-share"
SPLIT_SEED = 0  # fixed: every run is validated on the same examples


def share_of(run_config: config.RunConfig) -> float:
    """Return the config key `validation-share`.

    Parameters
    ----------
    run_config : Mapping
        Flower's run config.

    Returns
    -------
    float
        Share of the training data that is held out and evaluated on in place of the test data;
        0 holds out nothing.

    Raises
    ------
    ValueError
        Unless it is a number from 0 to below 1.
    """
    config.check_bound(
        run_config, KEY, config.number, lambda share: 0 <= share < 1, "at least 0 and less than 1"
    )
    return config.number(run_config, KEY)


def hold_out(train: Labelled, test: Labelled, share: float) -> tuple[Labelled, Labelled]:
    """Choose what is trained on and what is evaluated on.

    Parameters
    ----------
    train, test : pairs of array
        Pixels, shape (examples, ...), and labels, shape (examples,).
    share : float
        Of each class's training examples, rounded to whole ones, to evaluate on; with 0 that is
        the test data.

    Returns
    -------
    tuple of pairs of array
        Training data, and validation data (`share` > 0) or test data.

    Raises
    ------
    ValueError
        If nothing would be held out, or nothing left to train on.
    """
    if share == 0:
        return train, test
    images, labels = train
    rng = np.random.default_rng(SPLIT_SEED)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held[members[: round(share * len(members))]] = True
    if held.all() or not held.any():
        raise ValueError(
            f"{KEY} is {share}: of {len(labels)} training examples {held.sum()} would be held out"
        )
    return (images[~held], labels[~held]), (images[held], labels[held])
