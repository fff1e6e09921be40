"""Undo whatever a run, or a change of widths, does to a module's attributes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Whatever happens to a model's attributes inside the context is undone after it.

    Parameters
    ----------
    model : nn.Module
        The model. A copy of it for every trial would take longer than the trial's run. Values that
        its code caches are dropped; what tensors hold is not restored.
    """
    before = [(module.__dict__, dict(module.__dict__)) for module in model.modules()]
    # Parameters, buffers, caches, and the flat weights of recurrent layers have their containers.
    inner = [
        (value, value.copy())
        for _, attributes in before
        for value in attributes.values()
        if isinstance(value, (list, dict))
    ]
    try:
        yield
    finally:
        for container, contents in [*before, *inner]:
            if not _same(container, contents):  # a read-only one has not changed
                _restore(container, contents)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """A model's buffers have their values afterwards, also those that a run gives another shape.

    Parameters
    ----------
    model : nn.Module
        The model. Quantisation's observers are empty until their first run.
    """
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in before:
                buffer.resize_(values.shape).copy_(values)


def _same(container: Any, contents: Any) -> bool:
    """Whether a list or dict holds the very same objects in the same order."""
    if len(container) != len(contents):
        return False
    if not contents:
        return True
    if isinstance(container, dict):
        same = all(map(operator.is_, container.values(), contents.values()))
        return same and list(container) == list(contents)
    return all(map(operator.is_, container, contents))


def _restore(container: Any, contents: Any) -> None:
    container.clear()
    if isinstance(container, dict):
        container.update(contents)
    else:
        container.extend(contents)
