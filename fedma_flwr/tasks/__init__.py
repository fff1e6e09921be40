"""The shipped tasks: a model, its data, how clients share it, training and evaluation."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from fedma_flwr.tasks.config import RunConfig
from fedma_flwr.tasks.task import Data, Task
from fedma_flwr.tasks.training import Augment, default_device

__all__ = ["TASKS", "Augment", "Data", "RunConfig", "Task", "default_device", "get_task"]

TASKS = ("mnist", "cifar10", "shakespeare", "data_bias")


def get_task(name: str) -> Task:
    """Return a shipped task.

    The task's module is imported here and not before, so that a project which uses the
    strategy alone never loads a data set.

    Parameters
    ----------
    name : str
        The config key `task`; one of `TASKS`.

    Returns
    -------
    Task
        The task.

    Raises
    ------
    ValueError
        If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task: unknown task {name!r}; known tasks: {', '.join(TASKS)}")
    return cast(Task, import_module(f"fedma_flwr.tasks.{name}").TASK)
