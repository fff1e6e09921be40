"""Where a client of the shipped app keeps local models: only where its own node says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedma_flwr.protocol import LOCAL_MODELS_KEY, ClientError
from fedma_flwr.tasks.config import RunConfig, text

#: Beside the node's config, for Flower's simulation engine, where nodes have none of their own.
VARIABLE = "FEDMA_LOCAL_MODELS"


def local_models_folder(run_config: RunConfig, node_config: Mapping[str, Any]) -> Path | None:
    """The folder that the run config asks for, within the node's; None if it asks for none.

    Parameters
    ----------
    run_config : mapping
        Comes from the server; its ``local-models`` is relative to the node's folder, or a path
        within it.
    node_config : mapping
        The node's own; its ``local-models`` names the folder, or else the environment variable
        ``FEDMA_LOCAL_MODELS`` does.

    Raises
    ------
    ClientError
        If the node names no folder, or if what is asked for is not within it.
    """
    asked = text(run_config, LOCAL_MODELS_KEY)
    if not asked:
        return None
    own = node_config.get(LOCAL_MODELS_KEY) or os.environ.get(VARIABLE)
    what = f"The run config asks for local models in {asked[:200]!r}"
    if not isinstance(own, str) or not own:
        raise ClientError(
            f"{what}, but this node names no folder for them: start the SuperNode with "
            f"--node-config '{LOCAL_MODELS_KEY}=\"/...\"' (in a simulation: set {VARIABLE}), or "
            f"leave {LOCAL_MODELS_KEY} out of the run config."
        )
    root = Path(own).expanduser().resolve()
    folder = (root / asked).resolve()  # of an absolute path, the path itself
    if not folder.is_relative_to(root):
        raise ClientError(
            f"{what}, which is outside of this node's folder for them: {LOCAL_MODELS_KEY} in the "
            "run config must be a path within it."
        )
    return folder
