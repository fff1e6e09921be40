"""Data that are not there, damaged, or too few: refused before a client is asked for anything."""

import datasets
import flwr_datasets
import numpy as np
import pytest

from fedma_flwr.client_app import app
from fedma_flwr.server_app import run
from fedma_flwr.tasks import TASKS
from fedma_flwr.testing import InProcessGrid
from tests.tasks.configs import DEFAULTS, TINY, config

NAMES = {"mnist": "MNIST", "shakespeare": "LEAF's Shakespeare"}  # the others: CIFAR-10
OTHER = {"word": ["to", "be"]}


def refusal(task, clients=2, **options):
    """The message of the error that a run ends with; fails if a client was asked for anything."""
    asked = []
    settings = {**config(task, **options), **TINY} if task != DEFAULTS["task"] else {}
    settings = settings or {**DEFAULTS, **{k.replace("_", "-"): v for k, v in options.items()}}
    grid = InProcessGrid(app, clients, settings, intercept=lambda m, _: asked.append(m))
    with pytest.raises((ValueError, RuntimeError)) as error:
        run(grid, settings)
    assert asked == []
    return str(error.value)


def save(folder, **splits):
    columns = {name: datasets.Dataset.from_dict(split) for name, split in splits.items()}
    datasets.DatasetDict(columns).save_to_disk(folder)


@pytest.mark.parametrize("task", TASKS)
def test_no_network_is_one_error_that_names_the_keys(task, monkeypatch):
    def no_network(**kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", no_network)
    message = refusal(task, dataset="full")
    assert f"{NAMES.get(task, 'CIFAR-10')} could not be fetched" in message
    assert 'Set dataset="embedded", which needs no network, or data-dir' in message
    assert message.endswith("ConnectionError: no route to host")


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_dataset_is_refused(task):
    message = refusal(task, dataset="imagenet")
    assert message == "dataset must be one of embedded, full, not 'imagenet'"


@pytest.mark.parametrize("task", TASKS)
def test_folders_that_hold_something_else_are_refused(task, tmp_path):
    empty, broken, other, half = (tmp_path / name for name in ("empty", "broken", "other", "half"))
    empty.mkdir()
    broken.mkdir()
    (broken / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save(other, train=OTHER, test=OTHER)
    save(half, test=OTHER)
    for folder in (empty, broken, other, half):
        message = refusal(task, dataset="full", data_dir=str(folder))
        assert message.startswith(f"data-dir '{folder}'")
        if folder == empty:
            assert "expected dataset_dict.json" in message
        else:
            assert f"{NAMES.get(task, 'CIFAR-10')} could not be read from it" in message
            assert 'set dataset="embedded"' in message


@pytest.mark.parametrize("task", TASKS)
def test_paths_that_are_no_folders_are_refused(task, tmp_path):
    relative = refusal(task, dataset="full", data_dir="data")
    assert relative.startswith("data-dir must be an absolute path, not 'data'")
    missing = refusal(task, dataset="full", data_dir=str(tmp_path / "nothing"))
    assert missing.startswith(f"data-dir '{tmp_path / 'nothing'}' is no folder on this machine")
    ignored = refusal(task, dataset="embedded", data_dir=str(tmp_path))
    assert ignored.startswith('data-dir is read with dataset="full" alone')


def test_damaged_files_of_mnist_are_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    missing = refusal("mnist", dataset="full", data_dir=str(tmp_path))
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(np.arange(20, dtype=np.uint8).tobytes())
    damaged = refusal("mnist", dataset="full", data_dir=str(tmp_path))
    assert all("MNIST could not be read from it" in message for message in (missing, damaged))


@pytest.mark.parametrize(
    ("task", "clients", "options", "words"),
    [
        ("mnist", 401, {}, "num-partitions (num-supernodes of a simulation) must be 1 .. 400"),
        ("mnist", 300, {"alpha": 0.01}, "alpha is 0.01 and num-partitions (num-supernodes) 300"),
        ("cifar10", 401, {"dataset": "embedded"}, "must be 1 .. 400, not 401"),
        ("shakespeare", 4, {"num_roles": 3}, "must be 3, not 4: the data belong to 3 clients"),
        ("shakespeare", 2, {"num_roles": 200}, "num-roles must be 0 (all) .. 137, not 200"),
        ("data_bias", 3, {}, "must be 2, not 3: the data belong to 2 clients"),
        ("data_bias", 401, {"partition": "homogeneous"}, "must be 1 .. 400, not 401"),
    ],
)
def test_more_clients_than_the_data_can_feed_are_refused(task, clients, options, words):
    assert words in refusal(task, clients, **options)
