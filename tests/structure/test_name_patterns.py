"""Patterns that stand for given tensors, and for nothing else."""

from fnmatch import fnmatchcase

import pytest
import torch
import torchvision
from torch import nn

from fedma_flwr.structure.name_patterns import matching_names, patterns_for


def small():
    return nn.ModuleDict(
        {
            "conv1": nn.Conv2d(1, 4, 3),
            "bn1": nn.BatchNorm2d(4),
            "subnet": nn.Linear(4, 4),
            "bn2": nn.BatchNorm2d(4),
            "head": nn.Linear(4, 2),
        }
    )


def norms_of(model):
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name in module.state_dict()
    ]


def with_meta(maker):
    with torch.device("meta"):
        return maker()


@pytest.mark.parametrize(
    ("model", "wanted", "expected"),
    [
        (small(), norms_of(small()), ("bn*",)),  # '*bn*' would take 'subnet' too
        (small(), ["head.weight", "head.bias"], ("head.*",)),
        (small(), ["head.bias"], ("head.bias",)),
        (small(), ["bn1.running_mean", "bn2.running_mean"], ("*.running_mean",)),
        (
            with_meta(torchvision.models.resnet18),
            norms_of(with_meta(torchvision.models.resnet18)),
            ("*bn*", "*.downsample.1.*"),
        ),
    ],
)
def test_few_patterns_stand_for_what_is_wanted_alone(model, wanted, expected):
    names = list(model.state_dict())
    found = patterns_for(wanted, names)
    assert {n for n in names if any(fnmatchcase(n, p) for p in found)} == set(wanted)
    assert matching_names("personal", found, names) == set(wanted)
    assert found == expected


@pytest.mark.parametrize("step", [2, 3, 5])
def test_any_choice_of_tensors_is_stood_for_exactly(step):
    names = list(with_meta(torchvision.models.mobilenet_v2).state_dict())
    found = patterns_for(names[::step], names)
    assert {n for n in names if any(fnmatchcase(n, p) for p in found)} == set(names[::step])
