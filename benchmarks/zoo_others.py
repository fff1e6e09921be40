"""Models of libraries that have a few each in the zoo; a library is handed in as its module."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Built = tuple[nn.Module, Any]
_Entry = Callable[[Any], Built]


def _image(*size: int) -> tuple[torch.Tensor]:
    return (torch.randn(2, *size),)


def _segmentation(name: str) -> _Entry:
    def make(library: Any) -> Built:
        model = getattr(library, name)("resnet18", encoder_weights=None, in_channels=1, classes=2)
        return model, _image(1, 64, 64)

    return make


def _monai(name: str, **options: Any) -> _Entry:
    def make(_: Any) -> Built:
        nets = importlib.import_module("monai.networks.nets")
        return getattr(nets, name)(spatial_dims=2, **options), _image(1, 32, 32)

    return make


def _diffusion(_: Any) -> Built:
    library = importlib.import_module("diffusers")
    model = library.UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    return model, (torch.randn(2, 1, 16, 16), torch.tensor([3, 40]))


def _autoencoder(_: Any) -> Built:
    library = importlib.import_module("diffusers")
    model = library.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    return model, _image(1, 16, 16)


def _graph(name: str) -> _Entry:
    def make(_: Any) -> Built:
        nets = importlib.import_module("torch_geometric.nn.models")
        model = getattr(nets, name)(in_channels=5, hidden_channels=8, num_layers=2, out_channels=3)
        edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
        return model, (torch.randn(6, 5), edges)

    return make


def _tabular(_: Any) -> Built:
    library = importlib.import_module("tab_transformer_pytorch")
    model = library.FTTransformer(categories=(4, 3), num_continuous=3, dim=8, depth=1, heads=2)
    return model, (torch.randint(0, 3, (4, 2)), torch.randn(4, 3))


OTHERS: dict[str, dict[str, _Entry]] = {
    "segmentation_models_pytorch": {
        name: _segmentation(name) for name in ("Unet", "FPN", "Linknet", "PSPNet", "MAnet")
    },
    "monai": {
        "UNet": _monai("UNet", in_channels=1, out_channels=2, channels=(4, 8), strides=(2,)),
        "BasicUNet": _monai("BasicUNet", features=(4, 4, 8, 8, 8, 4)),
        "SegResNet": _monai("SegResNet", init_filters=8),
        "AttentionUnet": _monai(
            "AttentionUnet", in_channels=1, out_channels=2, channels=(4, 8), strides=(2,)
        ),
        "SENet": _monai("SENet154", in_channels=1, num_classes=2),
    },
    "diffusers": {"UNet2DModel": _diffusion, "AutoencoderKL": _autoencoder},
    "torch_geometric": {name: _graph(name) for name in ("GCN", "GAT", "GIN", "GraphSAGE")},
    "tab_transformer_pytorch": {"FTTransformer": _tabular},
}  # fmt: skip
