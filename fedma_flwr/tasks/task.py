"""What every shipped task offers, whatever its model and its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fedma_flwr.tasks import config, partition, training
from fedma_flwr.tasks.config import RunConfig


@dataclass(frozen=True)
class Data:
    """A data set in memory.

    Parameters
    ----------
    train : TensorDataset
        Inputs and integer labels (int64, one dimension) that the clients share.
    test : TensorDataset
        The same for evaluation; nobody trains on it.
    """

    train: TensorDataset
    test: TensorDataset


@dataclass(frozen=True)
class Task:
    """A model, its data and how it is trained.

    Parameters
    ----------
    name : str
        The value of the config key `task`.
    num_classes : int
        Number of model outputs; labels are 0 .. `num_classes` - 1.
    datasets : tuple of str
        Allowed values of the config key `dataset`.
    make_model : Callable
        Makes an untrained model with torch's current random state.
    example_inputs : Callable
        Makes the model's positional inputs, a batch of two, to trace the model with.
    load : Callable
        Loads the data from the config keys `dataset` and `data-dir`; the result is kept for
        the life of the process, so it must not be changed.
    """

    name: str
    num_classes: int
    datasets: tuple[str, ...]
    make_model: Callable[[], nn.Module]
    example_inputs: Callable[[], tuple[Tensor, ...]]
    load: Callable[[str, str], Data]

    train = staticmethod(training.train)
    evaluate = staticmethod(training.evaluate)

    def build_model(self, seed: int) -> nn.Module:
        """Return an untrained model; equal seeds give equal weights.

        Parameters
        ----------
        seed : int
            Seed of the initial weights. Torch's global random state is left as it was.

        Returns
        -------
        nn.Module
            The model, on the CPU.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.make_model()

    def load_partition(
        self, run_config: RunConfig, partition_id: int, num_partitions: int
    ) -> TensorDataset:
        """Return one client's training examples.

        Parameters
        ----------
        run_config : Mapping
            Flower's run config; read are `dataset`, `data-dir`, `partition`, `alpha`,
            `self-balancing`, `seed`.
        partition_id : int
            The client, 0 .. `num_partitions` - 1.
        num_partitions : int
            Number of clients that share the training data.

        Returns
        -------
        TensorDataset
            Inputs and labels. Partitions of equal configs are equal, and those of one config
            are disjoint and together hold every training example.

        Raises
        ------
        ValueError
            If a config value is not allowed or the data cannot be split so.
        """
        self._check_partition(run_config, num_partitions)
        if not 0 <= partition_id < num_partitions:
            raise ValueError(
                f"partition-id must be 0 .. {num_partitions - 1} (num-partitions is "
                f"{num_partitions}), not {partition_id}"
            )
        parts = _partitions(
            self,
            config.text(run_config, "dataset"),
            config.text(run_config, "data-dir"),
            kind=config.text(run_config, "partition"),
            num_partitions=num_partitions,
            alpha=config.number(run_config, "alpha"),
            self_balancing=config.flag(run_config, "self-balancing"),
            seed=config.integer(run_config, "seed"),
        )
        inputs, labels = self._data(run_config).train.tensors
        return TensorDataset(inputs[parts[partition_id]], labels[parts[partition_id]])

    def load_test(self, run_config: RunConfig) -> TensorDataset:
        """Return the test examples, which are the same for every seed and partition.

        Parameters
        ----------
        run_config : Mapping
            Flower's run config; read are `dataset` and `data-dir`.

        Returns
        -------
        TensorDataset
            Inputs and labels.

        Raises
        ------
        ValueError
            If a config value is not allowed.
        """
        return self._data(run_config).test

    def validate(self, run_config: RunConfig, num_partitions: int) -> None:
        """Refuse bad config values before anything is loaded or sent.

        Parameters
        ----------
        run_config : Mapping
            Flower's run config.
        num_partitions : int
            Number of clients that share the training data.

        Raises
        ------
        ValueError
            Names the config key, what it was and what is allowed.
        """
        config.check_training(run_config)
        self._check_partition(run_config, num_partitions)

    def _check_partition(self, run_config: RunConfig, num_partitions: int) -> None:
        config.check_partition(run_config)
        partition.check_size(len(self._data(run_config).train), num_partitions)

    def _data(self, run_config: RunConfig) -> Data:
        config.check_choice(run_config, "dataset", self.datasets)
        return _load(self, config.text(run_config, "dataset"), config.text(run_config, "data-dir"))


@lru_cache(maxsize=2)
def _load(task: Task, dataset: str, data_dir: str) -> Data:
    return task.load(dataset, data_dir)


@lru_cache(maxsize=4)
def _partitions(
    task: Task,
    dataset: str,
    data_dir: str,
    *,
    kind: str,
    num_partitions: int,
    alpha: float,
    self_balancing: bool,
    seed: int,
) -> list[Tensor]:
    # Kept, because the first Dirichlet split of a process takes seconds (imports).
    labels = _load(task, dataset, data_dir).train.tensors[1].numpy()
    parts = partition.split(
        labels, kind, num_partitions, alpha=alpha, self_balancing=self_balancing, seed=seed
    )
    return [torch.from_numpy(indices) for indices in parts]
