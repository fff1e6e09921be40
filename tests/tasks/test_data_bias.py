"""The data-bias task: who has which classes, and what is grey."""

import numpy as np
import pytest
import torch

from fedma_flwr.client_app import app
from fedma_flwr.server_app import run
from fedma_flwr.tasks import get_task
from fedma_flwr.tasks.cifar10 import MEAN, STD
from fedma_flwr.tasks.data_bias import discoloured, load
from fedma_flwr.testing import InProcessGrid
from tests.tasks.cifar_files import write_binary
from tests.tasks.configs import TINY, config

TASK = get_task("data_bias")


def grey(images):
    """Which of the normalised images have three equal channels."""
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    return (pixels - pixels[:, :1]).abs().amax(dim=(1, 2, 3)) < 1e-5


def grey_by_class(dataset):
    images, labels = dataset.tensors
    return [int(grey(images[labels == label]).sum()) for label in range(10)]


def test_grey_is_the_luminance():
    images = np.zeros((2, 3, 1, 1), dtype=np.uint8)
    images[:, :, 0, 0] = [200, 100, 50]

    got = discoloured(images, np.array([0, 1]), np.array([1.0, 0.0]), np.random.default_rng(0))

    # 0.2989 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    assert got[:, :, 0, 0].tolist() == [[124, 124, 124], [200, 100, 50]]
    assert images[0, :, 0, 0].tolist() == [200, 100, 50]


def test_five_classes_are_nearly_all_grey_and_five_nearly_all_coloured():
    data = load("embedded", "", grey_share=0.95, seed=0)
    labels = data.train.tensors[1]
    owned = [set(labels[data.owners == client].tolist()) for client in (0, 1)]

    assert len(owned[0]) == len(owned[1]) == 5
    assert not owned[0] & owned[1]
    expected = [380 if label in owned[0] else 20 for label in range(10)]  # of 400
    assert grey_by_class(data.train) == expected


def test_half_of_each_classs_test_pictures_are_grey_whatever_the_seed():
    first, second = (load("embedded", "", grey_share=0.95, seed=seed) for seed in (0, 1))

    assert grey_by_class(first.test) == [50] * 10
    assert torch.equal(first.test.tensors[0], second.test.tensors[0])


def test_the_seed_draws_the_classes():
    owners = {
        tuple(load("embedded", "", grey_share=0.95, seed=seed).owners[:400].tolist())
        for seed in range(6)
    }

    assert len(owners) > 1
    again = (load("embedded", "", grey_share=0.95, seed=3).owners for _ in range(2))
    assert torch.equal(*again)


def test_each_client_has_its_own_classes():
    parts = [TASK.load_partition(config("data_bias"), client, 2) for client in (0, 1)]

    assert [len(part) for part in parts] == [2000, 2000]
    assert [int(grey(part.tensors[0]).sum()) for part in parts] == [1900, 100]


@pytest.mark.parametrize("clients", [1, 3])
def test_other_numbers_of_clients_are_refused(clients):
    with pytest.raises(ValueError, match=f"num-supernodes.* must be 2, not {clients}"):
        TASK.load_partition(config("data_bias"), 0, clients)


def test_more_clients_are_refused_before_anything_is_sent():
    with pytest.raises(ValueError, match=r"num-supernodes.* must be 2, not 3"):
        TASK.validate(config("data_bias"), 3)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match=r"grey-share must be 0 .. 1, not"):
        TASK.validate(config("data_bias", grey_share=share), 2)


def test_a_partition_of_another_task_is_refused():
    with pytest.raises(ValueError, match="partition must be one of colour, homogeneous, not 'dir"):
        TASK.validate(config("data_bias", partition="dirichlet"), 2)


def test_a_round_on_cifar10s_files(tmp_path):
    write_binary(tmp_path, count=10)
    settings = {**config("data_bias", dataset="full", data_dir=str(tmp_path)), **TINY}

    (entry,) = run(InProcessGrid(app, 2, settings), settings).result["rounds"]

    assert (entry["exchanges"], entry["client_epochs"]) == (2, 1)
    assert 0 <= entry["accuracy"] <= 1
