"""Where data sets come from: fetched by flwr-datasets, or a folder saved by `datasets`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """The data that the config keys name are not there or not usable; the message names a key."""


Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
T = TypeVar("T")


def check_embedded(dataset: str, data_dir: str) -> None:
    """Refuse a folder for the embedded data, which would be ignored silently.

    Parameters
    ----------
    dataset, data_dir : str
        The config keys.

    Raises
    ------
    ValueError
        If `data_dir` is not empty.
    """
    if data_dir:
        raise ValueError(
            f'data-dir is read with dataset="full" alone, but dataset is {dataset!r} and '
            f"data-dir {data_dir!r}"
        )


def fetch(what: str, dataset_id: str, read: Callable[[Callable[[str], Any]], T]) -> T:
    """Fetch a data set by flwr-datasets.

    Parameters
    ----------
    what : str
        The data's name for the error message.
    dataset_id : str
        Name at the hub that flwr-datasets asks.
    read : Callable
        Called with a function that gives a split by its name; its result is returned.

    Raises
    ------
    RuntimeError
        If anything fails; the message says which config keys need no network.
    """
    from flwr_datasets import FederatedDataset

    try:
        return read(FederatedDataset(dataset=dataset_id, partitioners={}).load_split)
    except Exception as error:  # whatever it is, the way out is the same
        raise RuntimeError(
            f'dataset="full": {what} could not be fetched. Set dataset="embedded", which needs '
            f"no network, or data-dir to a folder that holds {what}. The cause was "
            f"{type(error).__name__}: {error}"
        ) from error


def read_folder(what: str, data_dir: str, read: Callable[[Path], T]) -> T:
    """Read a data set from a folder.

    Parameters
    ----------
    what : str
        The data's name for the error message.
    data_dir : str
        The config key.
    read : Callable
        Called with the folder; its result is returned.

    Raises
    ------
    DataError
        If the path is relative or no folder, or if `read` fails, whatever with: readers say
        "Column 'image' doesn't exist" of a folder that holds something else.
    """
    folder = Path(data_dir)
    if not folder.is_absolute():
        raise DataError(
            f"data-dir must be an absolute path, not {data_dir!r}: the apps run in folders of "
            "Flower's choosing"
        )
    if not folder.is_dir():
        raise DataError(
            f"data-dir {data_dir!r} is no folder on this machine: {what} must be in it, or set "
            'dataset="embedded" and data-dir="", which need none'
        )
    try:
        return read(folder)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"data-dir {data_dir!r}: {what} could not be read from it ({type(error).__name__}: "
            f"{str(error) or 'the files are damaged'}). Take a folder with all of it, or set "
            'dataset="embedded" and data-dir="", which need none'
        ) from error


def saved(folder: Path) -> Callable[[str], Any] | None:
    """Return what gives the splits of a folder that `datasets`' save_to_disk wrote.

    Parameters
    ----------
    folder : Path
        The config key `data-dir`.

    Returns
    -------
    Callable or None
        A function from a split's name to the split; None if the folder is none of these.
    """
    if not (folder / "dataset_dict.json").is_file():
        return None
    from datasets import load_from_disk

    splits = load_from_disk(str(folder))
    return lambda name: splits[name]


def decode(split: Any, image: str, label: str) -> Labelled:
    """Turn a split of `datasets` into arrays.

    Parameters
    ----------
    split : datasets.Dataset
        Pictures of one size, and classes.
    image, label : str
        Names of the two columns.

    Returns
    -------
    tuple of array
        Pixels 0..255, shape (examples, height, width) or (examples, height, width, channels),
        and classes, int64.
    """
    pictures = np.stack([np.asarray(picture, dtype=np.uint8) for picture in split[image]])
    return pictures, np.asarray(split[label], dtype=np.int64)
