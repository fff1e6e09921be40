"""The models of the zoo: small, with random weights, of whatever libraries are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.zoo_others import OTHERS

Built = tuple[nn.Module, Any]

# Numbers that make a transformer small; a configuration takes those that it knows.
_SMALL: dict[str, Any] = {
    **{"vocab_size": 67, "hidden_size": 24, "d_model": 24, "n_embd": 24, "dim": 24},
    **{"emb_dim": 24, "embedding_size": 24, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2},
    **{"num_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_attention_heads": 4},
    **{"n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40},
    **{"ffn_dim": 40, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "d_ff": 40, "d_kv": 6},
    **{"hidden_dim": 40, "n_inner": 40, "max_position_embeddings": 64, "n_positions": 64},
    **{"image_size": 32, "patch_size": 8, "head_dim": 6, "num_local_experts": 2},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    **{"rotary_dim": 4, "type_vocab_size": 2, "state_size": 4},
}
_TEXT = [
    "Bert",
    "Roberta",
    "DistilBert",
    "Albert",
    "Electra",
    "MPNet",
    "ConvBert",
    "Deberta",
    "DebertaV2",
    "RoFormer",
    "MobileBert",
    "GPT2",
    "GPTNeo",
    "GPTNeoX",
    "GPTJ",
    "OPT",
    "Bloom",
    "Llama",
    "Mistral",
    "Mixtral",
    "Qwen2",
    "Qwen3",
    "Gemma",
    "Gemma2",
    "Phi",
    "Phi3",
    "Falcon",
    "StableLm",
    "Cohere",
    "Olmo",
    "Mamba",
    "Rwkv",
    "XLNet",
    "FNet",
    "Nystromformer",
    "SqueezeBert",
    "ModernBert",
]
_IMAGES = [
    "ViT",
    "DeiT",
    "Swin",
    "ConvNext",
    "ConvNextV2",
    "ResNet",
    "RegNet",
    "Beit",
    "Dinov2",
    "MobileViT",
    "PoolFormer",
]
_PAIRS = [
    "T5",
    "Bart",
    "MBart",
    "Marian",
    "Pegasus",
    "BlenderbotSmall",
]
_LAYERED: dict[str, dict[str, Any]] = {
    "Swin": {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2],
             "window_size": 2, "patch_size": 4},
    "ConvNext": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "patch_size": 4},
    "ConvNextV2": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "patch_size": 4},
    "Phi": {"hidden_size": 32},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1]},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1], "groups_width": 8},
    "PoolFormer": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    "MobileViT": {"image_size": 64, "patch_size": 2, "hidden_sizes": [24, 24, 24],
                  "neck_hidden_sizes": [4, 4, 8, 12, 16, 16, 32]},
}  # fmt: skip


def names_of(library: str) -> list[str]:
    """The models of a library."""
    return _NAMES[library]()


def build(library: str, name: str) -> Built:
    """A model and example inputs for it.

    Raises
    ------
    Exception
        Whatever the library raises if this release of it has no such model.
    """
    return _BUILDERS[library](name)


def _transformer(name: str) -> Built:
    library = importlib.import_module("transformers")
    known = vars(getattr(library, f"{name}Config")())
    wanted = {**_SMALL, **_LAYERED.get(name, {})}
    # An alias of a stage's own numbers would put one number in place of several.
    aliases = frozenset[str]() if name in _LAYERED else _SMALL_ALIASES
    options = {key: value for key, value in wanted.items() if key in known or key in aliases}
    config = getattr(library, f"{name}Config")(**options)
    if name in _IMAGES:
        size = int(wanted["image_size"])
        return getattr(library, f"{name}Model")(config), (torch.randn(2, 3, size, size),)
    words = torch.randint(3, 67, (2, 8))
    if name in _PAIRS:
        inputs = {"input_ids": words, "decoder_input_ids": words[:, :5]}
        return getattr(library, f"{name}Model")(config), inputs
    mask = torch.ones_like(words)
    mask[1, 5:] = 0
    inputs = (
        {"input_ids": words}
        if name in _WITHOUT_MASK
        else {"input_ids": words, "attention_mask": mask}
    )
    return getattr(library, f"{name}Model")(config), inputs


_SMALL_ALIASES = frozenset({"hidden_size", "num_hidden_layers", "num_attention_heads"})
_WITHOUT_MASK = frozenset({"FNet", "Rwkv"})


def _adapted(name: str) -> Built:
    peft = importlib.import_module("peft")
    base, inputs = _transformer("Bert" if name != "gpt2 lora" else "GPT2")
    targets = ["c_attn"] if name == "gpt2 lora" else ["query", "value"]
    kinds = {
        "lora": peft.LoraConfig(r=3, target_modules=targets),
        "gpt2 lora": peft.LoraConfig(r=3, target_modules=targets, fan_in_fan_out=True),
        "dora": peft.LoraConfig(r=3, target_modules=targets, use_dora=True),
        "ia3": peft.IA3Config(target_modules=targets, feedforward_modules=[]),
        "loha": peft.LoHaConfig(r=3, target_modules=targets),
        "lora saved pooler": peft.LoraConfig(
            r=3, target_modules=targets, modules_to_save=["pooler"]
        ),
    }
    return peft.get_peft_model(base, kinds[name]), inputs


_VISION = [
    "alexnet",
    "squeezenet1_1",
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
    "densenet121",
    "googlenet",
    "swin_t",
    "convnext_tiny",
]


def _vision(name: str) -> Built:
    models = importlib.import_module("torchvision.models")
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    return models.get_model(name, weights=None, **options), (torch.randn(2, 3, 64, 64),)


_TIMM = [
    "resnet10t",
    "mobilenetv3_small_050",
    "efficientnet_lite0",
    "repvgg_a0",
    "ghostnet_050",
    "lcnet_050",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "mixer_s32_224",
    "convnext_atto",
    "poolformer_s12",
    "efficientformer_l1",
    "levit_128s",
    "mobileone_s0",
    "tinynet_e",
    "xcit_nano_12_p16_224",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "fastvit_t8",
    "cait_xxs24_224",
]


def _timm(name: str) -> Built:
    library = importlib.import_module("timm")
    fixed = any(part in name for part in ("224", "levit", "efficientformer"))
    size = 224 if fixed else 64
    return library.create_model(name, pretrained=False), (torch.randn(2, 3, size, size),)


def _listed(library: str) -> tuple[Callable[[], list[str]], Callable[[str], Built]]:
    own = OTHERS[library]
    return lambda: list(own), lambda name: own[name](importlib.import_module(library))


_NAMES: dict[str, Callable[[], list[str]]] = {
    "transformers": lambda: [*_TEXT, *_IMAGES, *_PAIRS],
    "peft": lambda: ["lora", "gpt2 lora", "dora", "ia3", "loha", "lora saved pooler"],
    "torchvision": lambda: _VISION,
    "timm": lambda: _TIMM,
}
_BUILDERS: dict[str, Callable[[str], Built]] = {
    "transformers": _transformer,
    "peft": _adapted,
    "torchvision": _vision,
    "timm": _timm,
}
for _library in OTHERS:
    _NAMES[_library], _BUILDERS[_library] = _listed(_library)
#: The libraries of the zoo, by the names that they are imported by.
LIBRARIES: Sequence[str] = tuple(_NAMES)
