"""Checkpoints: what a run needs to go on after a round, one safetensors file a round.

Tensors (the global model, assignments, popularities) are the file's tensors; all else is JSON in
its header. Nothing is pickled, so that a file of unknown origin can do no harm. There is no
generator state: cohorts and client orders are drawn from the seed and the round's number alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import torch
from flwr.app import MetricRecord
from flwr.supercore import log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.history import ExchangeRecord
from fedma_flwr.server.model_records import decoded, encoded
from fedma_flwr.server.setting_texts import without_reasons
from fedma_flwr.server.whole_files import written_whole

FORMAT = 1
KEPT = 2  # the last one may turn out to be damaged
# Keys of the file's metadata; what earlier versions wrote has the second digest, without the kinds.
_CONTENT, _DIGEST, _EARLIER_DIGEST = "fedma-flwr", "sha256-of-all", "sha256"
#: A safetensors header may not be arbitrarily long. A history that is goes into a tensor instead.
_LONGEST_TEXT = 10_000_000
_NAME = re.compile(r"round-(\d{6,})\.safetensors")


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after one of its rounds, before that round's evaluation.

    Parameters
    ----------
    round : int
        The last complete round, from 1; a round that was given up counts.
    model : GlobalModel
        The global model that the next round starts from.
    exchanges : list of ExchangeRecord
        The run's history so far.
    given_up : dict of int to str
        Why rounds were given up.
    train_metrics, evaluate_metrics, server_metrics : dict of int to MetricRecord
        What Flower's ``Result`` has by round; the evaluations end with the round before.
    """

    round: int
    model: GlobalModel
    exchanges: list[ExchangeRecord] = field(default_factory=list)
    given_up: dict[int, str] = field(default_factory=dict)
    train_metrics: dict[int, MetricRecord] = field(default_factory=dict)
    evaluate_metrics: dict[int, MetricRecord] = field(default_factory=dict)
    server_metrics: dict[int, MetricRecord] = field(default_factory=dict)


_METRICS = ("train_metrics", "evaluate_metrics", "server_metrics")


class CheckpointFolder:
    """The checkpoints of one run.

    Parameters
    ----------
    path : Path
        Made with the first checkpoint; holds the last two, ``round-<number>.safetensors``.
    fingerprint : mapping of str to str
        What must be the same for a checkpoint to make sense: strategy, model, spec, settings.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, str]) -> None:
        self.path = path
        self.fingerprint = dict(fingerprint)

    def files(self) -> list[Path]:
        """The checkpoints there are, the newest first."""
        found = {
            int(match[1]): file
            for file in (self.path.iterdir() if self.path.is_dir() else ())
            if (match := _NAME.fullmatch(file.name))
        }
        return [found[number] for number in sorted(found, reverse=True)]

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint so that a crash at any moment leaves the ones before it intact.

        Raises
        ------
        CheckpointError
            If it cannot be written: the disk is full, or the folder has vanished.
        """
        tensors, content = _encode(checkpoint)
        text = json.dumps({"format": FORMAT, "fingerprint": self.fingerprint, **content})
        if len(text) > _LONGEST_TEXT:
            tensors[_CONTENT] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
            text = ""
        final = self.path / f"round-{checkpoint.round:06d}.safetensors"
        try:
            with written_whole(final) as partial:
                save_file(tensors, partial, {_CONTENT: text, _DIGEST: _full_digest(text, tensors)})
            for old in self.files()[KEPT:]:
                old.unlink()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"no checkpoint was written to {self.path} ({error}).") from error

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be used; None if there is none at all.

        Raises
        ------
        CheckpointError
            If there are checkpoints, but none that this run can go on from.
        """
        problems = []
        for file in self.files():
            try:
                checkpoint = self._read(file)
            except CheckpointError as error:
                log(WARNING, "Checkpoint %s is refused: %s", file, error)
                problems.append(f"{file.name}: {error}")
                continue
            log(INFO, "Going on from checkpoint %s, after round %s.", file, checkpoint.round)
            return checkpoint
        if problems:
            raise CheckpointError(
                f"No checkpoint in {self.path} can be used. {' '.join(problems)} Give the run "
                "another checkpoint_dir to begin anew."
            )
        return None

    def _read(self, file: Path) -> Checkpoint:
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"it cannot be read, it may be truncated ({error}).") from error
        text = metadata.get(_CONTENT)
        if text is None:
            raise CheckpointError("it is a safetensors file, but no checkpoint of fedma-flwr.")
        if not _is_intact(metadata, text, tensors):
            raise CheckpointError("it is damaged: its contents do not have the digest it states.")
        if _CONTENT in tensors:
            text = tensors.pop(_CONTENT).numpy().tobytes().decode()
        content = json.loads(text)
        self._check(content)
        try:
            return _decode(content, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"it lacks what a checkpoint has ({type(error).__name__}: {error})."
            ) from error

    def _check(self, content: Mapping[str, Any]) -> None:
        """Refuse what another version, strategy, model or setting has written."""
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"it has format {content['format']}, this version of fedma-flwr reads {FORMAT}."
            )
        theirs, ours = content["fingerprint"], self.fingerprint
        for name in sorted(theirs.keys() | ours.keys()):
            if _comparable(name, theirs.get(name)) != _comparable(name, ours.get(name)):
                raise CheckpointError(
                    f"it is of another run: its {name} is {_short(theirs.get(name))}, this run's "
                    f"is {_short(ours.get(name))}."
                )


def _comparable(name: str, value: str | None) -> str | None:
    return without_reasons(value) if name == "spec" and value else value


def describe(tensors: Mapping[str, Tensor]) -> str:
    """Names, dtypes and shapes of a model, for a fingerprint."""
    return "; ".join(f"{n} {t.dtype} {tuple(t.shape)}" for n, t in tensors.items())


def _encode(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, content = encoded(checkpoint.model)
    return tensors, {
        "round": checkpoint.round,
        **content,
        "exchanges": [record.to_json() for record in checkpoint.exchanges],
        "given_up": checkpoint.given_up,
        **{kind: _plain(getattr(checkpoint, kind)) for kind in _METRICS},
    }


def _decode(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    metrics = {
        kind: {int(number): MetricRecord(entry) for number, entry in content[kind].items()}
        for kind in _METRICS
    }
    return Checkpoint(
        round=content["round"],
        model=decoded(content, tensors),
        exchanges=[ExchangeRecord.from_json(entry) for entry in content["exchanges"]],
        given_up={int(number): reason for number, reason in content["given_up"].items()},
        **metrics,
    )


def _plain(metrics: Mapping[int, MetricRecord]) -> dict[int, dict[str, Any]]:
    return {number: dict(record) for number, record in metrics.items()}


def _is_intact(metadata: Mapping[str, str], text: str, tensors: Mapping[str, Tensor]) -> bool:
    if _DIGEST in metadata:
        return metadata[_DIGEST] == _full_digest(text, tensors)
    return metadata.get(_EARLIER_DIGEST) == _digest(text, tensors)


def _full_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the text, and of every tensor's bytes, dtype and shape: bytes alone do not say those."""
    kinds = describe(dict(sorted(tensors.items())))
    return _digest(f"{len(text)} {text} {kinds}", tensors)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short(value: str | None) -> str:
    return repr(value if value is None or len(value) <= 100 else f"{value[:100]}...")
