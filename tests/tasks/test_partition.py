"""How clients share the data, and which config values are refused."""

import numpy as np
import pytest
import torch

from fedma_flwr.tasks import get_task
from fedma_flwr.tasks.partition import split

MNIST = get_task("mnist")
LABELS = np.repeat(np.arange(10), 40)
CONFIG = {
    "dataset": "embedded",
    "data-dir": "",
    "model": "",
    "augment": True,
    "partition": "dirichlet",
    "alpha": 0.1,
    "self-balancing": True,
    "validation-share": 0.0,
    "seed": 0,
    "local-epochs": 20,
    "retrain-epochs": 5,
    "head-epochs-factor": 3,
    "lr": 0.01,
    "retrain-lr": 0.01,
    "head-lr-factor": 0.1,
    "momentum": 0.9,
    "weight-decay": 0.0,
    "retrain-weight-decay": 0.0,
    "head-weight-decay": 1e-4,
    "batch-size": 32,
}


@pytest.mark.parametrize("kind", ["dirichlet", "homogeneous", "shards"])
def test_partitions_are_disjoint_and_complete(kind):
    parts = split(LABELS, kind, num_partitions=5, alpha=0.5, self_balancing=True, seed=3)

    assert len(parts) == 5
    assert sorted(np.concatenate(parts)) == list(range(400))
    assert min(map(len, parts)) >= 10


@pytest.mark.parametrize("kind", ["dirichlet", "homogeneous", "shards"])
def test_partitions_depend_on_the_seed_alone(kind):
    first, again, other = (
        split(LABELS, kind, num_partitions=4, alpha=0.5, self_balancing=True, seed=seed)
        for seed in (1, 1, 2)
    )

    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_homogeneous_partitions_are_even_and_mixed():
    parts = split(LABELS, "homogeneous", num_partitions=3, alpha=1.0, self_balancing=True, seed=0)

    assert [len(part) for part in parts] == [134, 133, 133]
    assert all(len(set(LABELS[part])) == 10 for part in parts)


def test_shards_hold_one_class_each_where_the_numbers_fit():
    labels = np.tile(np.arange(10), 40)
    parts = split(labels, "shards", num_partitions=10, alpha=1.0, self_balancing=True, seed=0)

    assert [set(labels[part]) for part in parts] == [{number} for number in range(10)]


def test_small_alpha_gives_clients_few_classes():
    def share_of_largest_class(alpha):
        parts = split(
            LABELS, "dirichlet", num_partitions=4, alpha=alpha, self_balancing=False, seed=0
        )
        return np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts])

    assert share_of_largest_class(0.1) > 2 * share_of_largest_class(100.0)


def test_clients_together_hold_the_training_digits():
    parts = [MNIST.load_partition(CONFIG, client, 10) for client in range(10)]

    counts = sum(torch.bincount(part.tensors[1], minlength=10) for part in parts)
    assert counts.tolist() == [400] * 10
    assert len({x.numpy().tobytes() for part in parts for x in part.tensors[0]}) == 4000


def test_loading_a_partition_again_gives_the_same():
    first, again = (MNIST.load_partition(CONFIG, 2, 10) for _ in range(2))

    assert all(torch.equal(a, b) for a, b in zip(first.tensors, again.tensors, strict=True))


def test_draws_that_starve_a_client_are_refused():
    labels = np.repeat(np.arange(2), 20)

    with pytest.raises(ValueError, match=r"alpha is 0.01 and num-partitions .* 4: no draw gave"):
        split(labels, "dirichlet", num_partitions=4, alpha=0.01, self_balancing=False, seed=0)


@pytest.mark.parametrize("num_partitions", [0, -1, 401])
def test_numbers_of_clients_that_the_data_cannot_feed_are_refused(num_partitions):
    with pytest.raises(
        ValueError, match=rf"num-supernodes.* must be 1 .. 400, not {num_partitions}"
    ):
        MNIST.validate(CONFIG, num_partitions)


@pytest.mark.parametrize("partition_id", [-1, 10])
def test_partition_out_of_range_is_refused(partition_id):
    with pytest.raises(ValueError, match=rf"partition-id must be 0 .. 9 .*not {partition_id}"):
        MNIST.load_partition(CONFIG, partition_id, 10)


def test_good_config_is_accepted():
    MNIST.validate(CONFIG, 10)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("alpha", 0, "greater than 0"),
        ("alpha", -0.5, "greater than 0"),
        ("alpha", float("nan"), "a finite number"),
        ("alpha", "0.1", "a finite number"),
        ("dataset", "emnist", "one of embedded, full"),
        ("data-dir", 3, "a string"),
        ("partition", "pathological", "one of dirichlet, homogeneous, shards"),
        ("augment", "yes", "true or false"),
        ("model", 9, "a string"),
        ("seed", -1, "at least 0"),
        ("local-epochs", 0, "at least 1"),
        ("local-epochs", 1.5, "an integer"),
        ("retrain-epochs", True, "an integer"),
        ("head-epochs-factor", 0, "greater than 0"),
        ("lr", 0.0, "greater than 0"),
        ("retrain-lr", float("inf"), "a finite number"),
        ("head-lr-factor", -1.0, "greater than 0"),
        ("momentum", 1.0, "at least 0 and less than 1"),
        ("weight-decay", -1e-4, "at least 0"),
        ("head-weight-decay", -1e-4, "at least 0"),
        ("batch-size", 0, "at least 1"),
    ],
)
def test_bad_config_values_are_refused_by_name(key, value, allowed):
    with pytest.raises(ValueError, match=rf"^{key} must be {allowed}, not "):
        MNIST.validate({**CONFIG, key: value}, 10)


def test_missing_config_key_is_named():
    config = {key: value for key, value in CONFIG.items() if key != "momentum"}

    with pytest.raises(ValueError, match="momentum is missing from the run config"):
        MNIST.validate(config, 10)
