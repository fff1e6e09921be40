"""The CIFAR-10 task: VGG-9, the data set's file formats, coloured digits and augmentation."""

import pickle

import datasets
import flwr_datasets
import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import calculate_md5

from fedma_flwr.client_app import app
from fedma_flwr.server_app import run
from fedma_flwr.structure import derive_spec
from fedma_flwr.tasks import get_task
from fedma_flwr.tasks.cifar10 import load, read
from fedma_flwr.tasks.images import random_crop, random_crop_and_flip
from fedma_flwr.testing import InProcessGrid
from tests.tasks.cifar_files import pictures, write_binary
from tests.tasks.configs import TINY, config

TASK = get_task("cifar10")
MEAN = torch.tensor([125.3, 123.0, 113.9])
STD = torch.tensor([63.0, 62.1, 66.7])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def write_python(folder, monkeypatch, count=4):
    """CIFAR-10's Python version; torchvision is told the checksums of these files."""
    root = folder / "cifar-10-batches-py"
    root.mkdir()
    sums = []
    for seed, name in enumerate([f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]):
        images, labels = pictures(count, seed)
        batch = {"data": images.reshape(count, -1), "labels": labels.tolist()}
        (root / name).write_bytes(pickle.dumps(batch))
        sums.append([name, calculate_md5(root / name)])
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    meta = {**CIFAR10.meta, "md5": calculate_md5(root / "batches.meta")}
    monkeypatch.setattr(CIFAR10, "meta", meta)


def check_pictures(train, test):
    expected = [pictures(4, seed) for seed in range(6)]
    np.testing.assert_array_equal(train[0], np.concatenate([e[0] for e in expected[:5]]))
    np.testing.assert_array_equal(train[1], np.tile(np.arange(4), 5))
    np.testing.assert_array_equal(test[0], expected[5][0])
    assert test[1].tolist() == [0, 1, 2, 3]


def test_vgg9_has_the_reference_implementations_size():
    model = TASK.build_model({"model": ""}, seed=0)

    assert sum(p.numel() for p in model.parameters()) == 3_491_530
    assert model(*TASK.example_inputs()).shape == (2, 10)


@pytest.mark.parametrize(("name", "groups"), [("vgg9", 8), ("lenet", 3)])
def test_every_hidden_layer_is_matched(name, groups):
    spec = derive_spec(TASK.build_model({"model": name}, seed=0), TASK.example_inputs())

    assert len(spec.groups) == groups


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="model must be \"\" or one of vgg9, lenet, not 'resnet'"):
        TASK.validate(config("cifar10", dataset="embedded", model="resnet"), 2)


def test_binary_files_are_read(tmp_path):
    write_binary(tmp_path)

    check_pictures(*read("full", str(tmp_path)))


def test_torchvisions_files_are_read(tmp_path, monkeypatch):
    write_python(tmp_path, monkeypatch)

    check_pictures(*read("full", str(tmp_path)))


def test_pictures_saved_by_datasets_are_read(tmp_path):
    images, labels = pictures(4, 5)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"img": list(images.transpose(0, 2, 3, 1)), "label": labels}
    split = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path)

    train, test = read("full", str(tmp_path))

    np.testing.assert_array_equal(train[0], images)
    np.testing.assert_array_equal(test[1], labels)


def test_pictures_are_normalised_as_in_the_papers_code(tmp_path):
    write_binary(tmp_path)
    pixels = torch.from_numpy(pictures(4, 5)[0]).float()

    got = load("full", str(tmp_path)).test.tensors[0]

    torch.testing.assert_close(got, (pixels - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1))


class Trap:
    """A pickle that, when it is loaded, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_with_other_checksums_are_never_opened(tmp_path):
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        (root / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))

    with pytest.raises(ValueError, match=r"data-dir .* does not have the checksums"):
        read("full", str(tmp_path))

    assert not (tmp_path / "sprung").exists()


def test_missing_binary_file_is_named(tmp_path):
    (write_binary(tmp_path) / "data_batch_3.bin").unlink()

    with pytest.raises(ValueError, match=r"data-dir: .*data_batch_3.bin is missing"):
        read("full", str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (bytes(3073 + 5), "has 3078 bytes, which is no whole number of records"),
        (bytes([10]) + bytes(3072), "has label 10; CIFAR-10's are 0 .. 9"),
    ],
)
def test_damaged_binary_files_are_refused(tmp_path, content, message):
    (write_binary(tmp_path) / "test_batch.bin").write_bytes(content)

    with pytest.raises(ValueError, match=message):
        read("full", str(tmp_path))


def test_folder_without_cifar10_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data-dir .* holds no CIFAR-10: expected"):
        read("full", str(tmp_path))


def test_full_without_network_says_what_needs_none(monkeypatch):
    def no_network(**kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", no_network)

    with pytest.raises(RuntimeError, match=r'CIFAR-10.*dataset="embedded".*data-dir.*no route'):
        read("full", "")


def test_coloured_digits_are_the_digits_in_colour():
    (images, labels), (test_images, _) = read("embedded", "")
    again = read("embedded", "")[0][0]

    assert images.shape == (4000, 3, 32, 32)
    assert test_images.shape == (1000, 3, 32, 32)
    assert np.bincount(labels).tolist() == [400] * 10
    np.testing.assert_array_equal(images, again)
    background, ink = images[:, :, 0, 0].astype(int), images.max(axis=(2, 3)).astype(int)
    assert background.max() < 128 <= ink.min()
    # The colour tells nothing of the class: the mean colours of classes are about the same.
    means = np.stack([ink[labels == label].mean(axis=0) for label in range(10)])
    assert means.std(axis=0).max() < 5


def test_crops_are_windows_of_the_reflected_picture(generator):
    images = torch.arange(6 * 3 * 32 * 32.0).view(6, 3, 32, 32)

    cropped = random_crop(images, generator)

    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    places = []
    for picture, source in zip(cropped.numpy(), padded, strict=True):
        views = np.lib.stride_tricks.sliding_window_view(source, (32, 32), axis=(1, 2))
        hits = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if np.array_equal(views[:, top, left], picture)
        ]
        assert len(hits) == 1
        places += hits
    assert len(set(places)) > 1  # every picture has a place of its own


def test_half_of_the_pictures_are_mirrored(generator):
    ramp = torch.arange(32.0).expand(200, 3, 32, 32)  # rises to the right

    varied = random_crop_and_flip(ramp, generator)

    falling = (varied[:, 0, 0, 15] > varied[:, 0, 0, 16]).sum().item()
    assert 70 <= falling <= 130


def test_digits_are_cropped_but_never_mirrored():
    assert TASK.augmentation(config("cifar10", dataset="embedded")) is random_crop
    assert TASK.augmentation(config("cifar10", dataset="full")) is random_crop_and_flip
    assert TASK.augmentation(config("cifar10", augment=False)) is None


def test_a_round_of_vgg9_on_cifar10s_files(tmp_path):
    write_binary(tmp_path, count=8)
    settings = config("cifar10", partition="homogeneous", data_dir=str(tmp_path), **TINY)

    (entry,) = run(InProcessGrid(app, 2, settings), settings).result["rounds"]

    assert (entry["exchanges"], entry["client_epochs"]) == (2, 1)
    assert len(entry["widths"]) == 8
    assert 0 <= entry["accuracy"] <= 1


def test_augmentation_changes_what_is_learnt(tmp_path):
    write_binary(tmp_path, count=8)

    def loss(augment):
        settings = config("cifar10", partition="homogeneous", model="lenet", augment=augment)
        settings = {**settings, **TINY, "data-dir": str(tmp_path), "strategy": "fedavg"}
        return run(InProcessGrid(app, 2, settings), settings).result["rounds"][0]["loss"]

    assert loss(True) != loss(False)
