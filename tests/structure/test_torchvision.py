"""Small members of torchvision's families of classification models."""

import pytest
import torch
from torchvision import models

from fedma_flwr.structure import derive_spec

IMAGE = torch.zeros(2, 3, 32, 32)
# builder, share of parameters that must have a matched axis
FAMILIES = {
    "resnet": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], 10), 0.95),
    "resnext": (
        lambda: models.ResNet(
            models.resnet.Bottleneck, [1, 1, 1, 1], 10, groups=4, width_per_group=4
        ),
        0.95,
    ),
    "densenet": (lambda: models.DenseNet(4, (2, 2), 8, 2, num_classes=10), 0.95),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=10), 0.95),
    "shufflenet": (
        lambda: models.ShuffleNetV2([2, 1, 1], [8, 8, 16, 32, 32], num_classes=10), 0.9,
    ),
    "mobilenet": (
        lambda: models.MobileNetV3(
            [models.mobilenetv3.InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0)] * 2,
            32, num_classes=10,
        ),
        0.95,
    ),
    "regnet": (
        lambda: models.RegNet(
            models.regnet.BlockParams([1, 1], [8, 16], [4, 4], [1.0, 1.0], [2, 2], 0.25), 10
        ),
        0.95,
    ),
    "efficientnet": (
        lambda: models.EfficientNet(
            [
                models.efficientnet.FusedMBConvConfig(2, 3, 1, 8, 8, 1),
                models.efficientnet.MBConvConfig(4, 3, 2, 8, 16, 2),
            ],
            0.2, num_classes=10,
        ),
        0.95,
    ),
    "maxvit": (
        lambda: models.MaxVit((32, 32), 8, 4, [8], [1], 4, 0.0, num_classes=10), 0.85,
    ),
    "vit": (lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10), 0.95),
    "swin": (
        lambda: models.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=10), 0.9,
    ),
    "convnext": (
        lambda: models.ConvNeXt(
            [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)],
            num_classes=10,
        ),
        0.95,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family):
    build, least = FAMILIES[family]
    spec = derive_spec(build(), (IMAGE,))
    shapes = {n: torch.Size(s).numel() for n, s in spec.shapes().items()}
    matched = sum(size for name, size in shapes.items() if spec.tensor_groups(name))
    assert matched / sum(shapes.values()) >= least
    assert any(group.growable for group in spec.groups.values())
