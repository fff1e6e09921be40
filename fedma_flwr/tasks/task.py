"""What every shipped task offers, whatever its model and its data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fedma_flwr.tasks import config, partition, training, validation
from fedma_flwr.tasks.config import RunConfig
from fedma_flwr.tasks.training import Augment

OWNERS = ("natural", "colour")  # partitions that the data decide, not a draw
Options = dict[str, Hashable]


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in memory.

    Parameters
    ----------
    train : TensorDataset
        Inputs and integer labels (int64, one dimension) that the clients share.
    test : TensorDataset
        The same for evaluation; nobody trains on it.
    owners : Tensor, optional
        Client of every training example, int64, where the data say whose it is.
    """

    train: TensorDataset
    test: TensorDataset
    owners: Tensor | None = None


@dataclass(frozen=True, eq=False)
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
    models : mapping
        From the values of the config key `model` to what makes that untrained model, from the
        run config and torch's current random state. The first is the task's own.
    example_inputs : Callable
        Makes the models' positional inputs, a batch of two, to trace them with.
    load : Callable
        Loads the data from the config keys `dataset`, `data-dir` and `validation-share` and from
        what `options` gives; the result is kept for the life of the process, so it must not be
        changed.
    partitions : tuple of str
        Allowed values of the config key `partition`.
    options : Callable
        Reads from the run config what else decides the data: keyword arguments of `load`.
    augmentations : mapping
        From values of `dataset` to how training varies its inputs.
    """

    name: str
    num_classes: int
    datasets: tuple[str, ...]
    models: Mapping[str, Callable[[RunConfig], nn.Module]]
    example_inputs: Callable[[], tuple[Tensor, ...]]
    load: Callable[..., Data]
    partitions: tuple[str, ...] = ("dirichlet", "homogeneous", "shards")
    options: Callable[[RunConfig], Options] = lambda run_config: {}
    augmentations: Mapping[str, Augment] = field(default_factory=dict)

    train = staticmethod(training.train)
    evaluate = staticmethod(training.evaluate)

    def build_model(self, run_config: RunConfig, seed: int) -> nn.Module:
        """Return an untrained model; equal configs and seeds give equal weights.

        Parameters
        ----------
        run_config : Mapping
            Flower's run config; read are `model` and what that model needs.
        seed : int
            Seed of the initial weights. Torch's global random state is left as it was.

        Returns
        -------
        nn.Module
            The model, on the CPU.

        Raises
        ------
        ValueError
            If the task has no such model.
        """
        name = config.text(run_config, "model") or next(iter(self.models))
        if name not in self.models:
            known = ", ".join(self.models)
            raise ValueError(f'model must be "" or one of {known}, not {name!r}')
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.models[name](run_config)

    def augmentation(self, run_config: RunConfig) -> Augment | None:
        """Return how training varies its inputs, for `train`.

        Parameters
        ----------
        run_config : Mapping
            Flower's run config; read are `augment` and `dataset`.

        Returns
        -------
        Callable or None
            None if `augment` is false or the task's inputs are not varied.
        """
        wanted = config.flag(run_config, "augment")
        return self.augmentations.get(config.text(run_config, "dataset")) if wanted else None

    def load_partition(
        self, run_config: RunConfig, partition_id: int, num_partitions: int
    ) -> TensorDataset:
        """Return one client's training examples.

        Parameters
        ----------
        run_config : Mapping
            Flower's run config; read are `dataset`, `data-dir`, `partition`, `alpha`,
            `self-balancing`, `seed` and those of the task's own.
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
        data = self._checked_data(run_config, num_partitions)
        if not 0 <= partition_id < num_partitions:
            raise ValueError(
                f"partition-id must be 0 .. {num_partitions - 1} (num-partitions is "
                f"{num_partitions}), not {partition_id}"
            )
        if config.text(run_config, "partition") in OWNERS:
            mine = _owned(data, partition_id, num_partitions)
        else:
            mine = _split(data, run_config, num_partitions)[partition_id]
        inputs, labels = data.train.tensors
        return TensorDataset(inputs[mine], labels[mine])

    def load_test(self, run_config: RunConfig) -> TensorDataset:
        """Return the test examples, which are the same for every seed and partition.

        With `validation-share` above 0 they are a held-out part of the training data.

        Parameters
        ----------
        run_config : Mapping
            Flower's run config; read are `dataset`, `data-dir`, `validation-share` and those of
            the task's own.

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
        self.build_model(run_config, 0)
        self.augmentation(run_config)
        data = self._checked_data(run_config, num_partitions)
        if config.text(run_config, "partition") == "dirichlet" and partition.is_doubtful(
            len(data.train), num_partitions, config.number(run_config, "alpha")
        ):
            _split(data, run_config, num_partitions)

    def _checked_data(self, run_config: RunConfig, num_partitions: int) -> Data:
        config.check_choice(run_config, "partition", self.partitions)
        config.check_partition(run_config)
        data = self._data(run_config)  # last: it may take a download
        partition.check_size(len(data.train), num_partitions)
        if run_config["partition"] in OWNERS:
            _check_owners(data, num_partitions)
        return data

    def _data(self, run_config: RunConfig) -> Data:
        config.check_choice(run_config, "dataset", self.datasets)
        dataset, data_dir = (config.text(run_config, key) for key in ("dataset", "data-dir"))
        options = {"validation_share": validation.share_of(run_config), **self.options(run_config)}
        return _load(self, dataset, data_dir, tuple(options.items()))


@lru_cache(maxsize=2)
def _load(
    task: Task, dataset: str, data_dir: str, options: tuple[tuple[str, Hashable], ...]
) -> Data:
    return task.load(dataset, data_dir, **dict(options))


def _check_owners(data: Data, num_partitions: int) -> int:
    """Number of clients that own the data; ValueError if there are more clients."""
    if data.owners is None:
        raise ValueError("partition: these data do not say which client an example belongs to")
    owners = int(data.owners.max()) + 1
    if num_partitions > owners:
        raise ValueError(
            f"num-partitions (num-supernodes of a simulation) must be {owners}, not "
            f"{num_partitions}: the data belong to {owners} clients; for another number set "
            'partition="homogeneous"'
        )
    return owners


def _owned(data: Data, partition_id: int, num_partitions: int) -> Tensor:
    if num_partitions != (owners := _check_owners(data, num_partitions)) or data.owners is None:
        # The server cannot tell: its other clients may still be on their way.
        raise ValueError(
            f"num-partitions (num-supernodes of a simulation) must be {owners}, not "
            f"{num_partitions}: the data belong to {owners} clients, and all are tested on"
        )
    return torch.nonzero(data.owners == partition_id).flatten()


def _split(data: Data, run_config: RunConfig, num_partitions: int) -> list[Tensor]:
    return _partitions(
        data,
        config.text(run_config, "partition"),
        num_partitions,
        alpha=config.number(run_config, "alpha"),
        self_balancing=config.flag(run_config, "self-balancing"),
        seed=config.integer(run_config, "seed"),
    )


@lru_cache(maxsize=4)
def _partitions(
    data: Data, kind: str, num_partitions: int, *, alpha: float, self_balancing: bool, seed: int
) -> list[Tensor]:
    # Kept, because the first Dirichlet split of a process takes seconds (imports).
    labels = data.train.tensors[1].numpy()
    parts = partition.split(
        labels, kind, num_partitions, alpha=alpha, self_balancing=self_balancing, seed=seed
    )
    return [torch.from_numpy(indices) for indices in parts]
