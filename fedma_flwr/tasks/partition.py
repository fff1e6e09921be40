"""How clients share the training examples."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

MIN_PARTITION_SIZE = 10


def check_size(num_examples: int, num_partitions: int) -> None:
    """Refuse a number of clients that the data cannot feed.

    Parameters
    ----------
    num_examples : int
        Number of training examples.
    num_partitions : int
        Number of clients that share them.

    Raises
    ------
    ValueError
        If there is no client, or less than `MIN_PARTITION_SIZE` examples for each.
    """
    most = num_examples // MIN_PARTITION_SIZE
    if not 1 <= num_partitions <= most:
        raise ValueError(
            f"num-partitions (num-supernodes of a simulation) must be 1 .. {most}, not "
            f"{num_partitions}: every client needs {MIN_PARTITION_SIZE} of the {num_examples} "
            "training examples"
        )


def is_doubtful(num_examples: int, num_partitions: int, alpha: float) -> bool:
    """Whether a Dirichlet draw may well leave a client with too few examples.

    Only trying tells for sure, and takes seconds: it is worth it before a run where shares are
    small on average, or some of them are bound to be.

    Parameters
    ----------
    num_examples, num_partitions : int
        Training examples, and clients that share them.
    alpha : float
        Concentration of the Dirichlet distribution.
    """
    return alpha < 0.1 or num_examples < 20 * MIN_PARTITION_SIZE * num_partitions


def split(
    labels: NDArray[np.int64],
    kind: str,
    num_partitions: int,
    *,
    alpha: float,
    self_balancing: bool,
    seed: int,
) -> list[NDArray[np.int64]]:
    """Split the examples among clients.

    Parameters
    ----------
    labels : array of int, shape (examples,)
        Class of every example.
    kind : str
        The config key `partition`: "dirichlet" draws each class's shares from Dirichlet(`alpha`),
        "homogeneous" deals the shuffled examples out evenly, "shards" sorts them by class first:
        ten clients of ten equally frequent classes have one class each (the shards of McMahan et
        al., 2017, one a client).
    num_partitions : int
        Number of clients.
    alpha : float
        Concentration of the Dirichlet distribution; small values give each client few classes.
    self_balancing : bool
        Whether a client that holds its even share already gets nothing of further classes: the
        "hetero-dir" partition of the FedMA and PFNM authors' code. Without it some clients hold
        many times what others do.
    seed : int
        Equal seeds give equal partitions.

    Returns
    -------
    list of array of int
        Each client's example indices: disjoint, together all, at least
        `MIN_PARTITION_SIZE` each.

    Raises
    ------
    ValueError
        If no draw gave every client enough examples.
    """
    check_size(len(labels), num_partitions)
    if kind == "homogeneous":
        order = np.random.default_rng(seed).permutation(len(labels))
        return np.array_split(order, num_partitions)
    if kind == "shards":
        order = np.random.default_rng(seed).permutation(len(labels))
        by_class = order[np.argsort(labels[order], kind="stable")]
        return np.array_split(by_class, num_partitions)
    return _dirichlet(labels, num_partitions, alpha, self_balancing, seed)


def _dirichlet(
    labels: NDArray[np.int64], num_partitions: int, alpha: float, self_balancing: bool, seed: int
) -> list[NDArray[np.int64]]:
    # Imported here because it takes seconds; given labels and indices alone because the
    # partitioner would convert images.
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=num_partitions,
        partition_by="label",
        alpha=alpha,
        min_partition_size=MIN_PARTITION_SIZE,
        self_balancing=self_balancing,
        seed=seed,
    )
    partitioner.dataset = Dataset.from_dict({"label": labels, "index": np.arange(len(labels))})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns at every draw that it repeats
            parts = [partitioner.load_partition(i) for i in range(num_partitions)]
    except ValueError as error:
        raise ValueError(
            f"alpha is {alpha} and num-partitions (num-supernodes) {num_partitions}: no draw "
            f"gave every client {MIN_PARTITION_SIZE} of the {len(labels)} training examples; "
            "raise alpha, take fewer clients or another seed"
        ) from error
    return [np.asarray(part["index"], dtype=np.int64) for part in parts]
