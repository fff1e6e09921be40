"""`class_counts`: how many examples of each class a client has, from labels of any kind."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_REMEDIES = {
    "one-hot": "of one-hot labels take labels.argmax(1), of one label a position labels.flatten()",
    "fraction": "soft labels and targets of a regression have no counts: leave class-counts out",
    "name": "number the classes first, as in names.index(label) or pandas' series.cat.codes",
}


def class_counts(labels: Tensor | Sequence[int], num_classes: int) -> list[int]:
    """Count the examples of each class, for the metric ``class-counts`` of a reply.

    Of a model with several heads, the counts of one are the metric ``class-counts.NAME``, with
    the path of its layer in the model, as in ``class-counts.classifier``.

    Parameters
    ----------
    labels : Tensor or sequence of int
        (n,) or (n, 1) class of each training example; numpy arrays and pandas Series too,
        whatever their index. Whole numbers may be of a floating dtype; False and True are two.
    num_classes : int
        Number of the model's outputs.

    Returns
    -------
    list of int
        `num_classes` counts. With them FedMA averages the head class by class.

    Raises
    ------
    ValueError
        If labels are no class numbers (one-hot rows, fractions, names), or if one is outside
        ``0 .. num_classes - 1``.

    Examples
    --------
    >>> class_counts([0, 2, 2], 3)
    [1, 0, 2]
    """
    classes = _checked_classes(num_classes)
    numbers = _class_numbers(_as_array(labels), classes)
    if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= classes):
        raise ValueError(
            f"labels run from {int(numbers.min())} to {int(numbers.max())}, but num_classes is "
            f"{classes}: they must lie in 0..{classes - 1}."
        )
    return [int(count) for count in np.bincount(numbers, minlength=classes)]


def _checked_classes(num_classes: Any) -> int:
    try:
        classes = operator.index(num_classes)
    except TypeError:
        classes = 0
    if classes < 1 or isinstance(num_classes, bool):
        raise ValueError(f"num_classes was {num_classes!r}; it must be a whole number from 1 up.")
    return classes


def _as_array(labels: Any) -> NDArray[Any]:
    """Labels as an array of one axis."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.float() if labels.dtype.itemsize == 2 else labels  # numpy has no bfloat16
    try:
        array = np.asarray(labels)
    except (TypeError, ValueError) as error:  # rows of several lengths
        raise _refused(f"{type(labels).__name__} that is no array ({error})", "one-hot") from error
    if array.dtype == object and not array.ndim:
        raise ValueError(f"labels were a {type(labels).__name__}; give a list, array or tensor.")
    if array.ndim == 2 and array.shape[1] == 1:  # a column of labels
        array = array[:, 0]
    if array.ndim != 1:
        raise _refused(f"an array of shape {array.shape}", "one-hot")
    return array


def _class_numbers(array: NDArray[Any], classes: int) -> NDArray[np.int64]:
    if array.dtype == object:  # pandas' nullable columns, lists of numbers of several kinds
        try:
            array = np.asarray([operator.index(label) for label in array], dtype=np.int64)
        except TypeError as error:
            raise _refused(_some(array), "name") from error
    if array.dtype.kind == "b" and classes != 2:
        raise _refused(f"True and False for {classes} classes", "one-hot")
    if array.dtype.kind == "f":
        if not bool((np.isfinite(array) & (array == np.trunc(array))).all()):
            raise _refused(_some(array), "fraction")
    elif array.dtype.kind not in "iub":
        raise _refused(_some(array), "name")
    try:
        return array.astype(np.int64)
    except OverflowError as error:  # beyond any class
        raise _refused(_some(array), "fraction") from error


def _some(array: NDArray[Any]) -> str:
    return f"{array[:3].tolist()}{' ...' * (len(array) > 3)} (dtype {array.dtype})"


def _refused(what: str, kind: str) -> ValueError:
    return ValueError(
        f"labels were {what}; class_counts wants the class number of each example, from 0 up, "
        f"on one axis: {_REMEDIES[kind]}."
    )
