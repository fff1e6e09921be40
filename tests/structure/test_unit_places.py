"""Units are put at their places block by block, or one by one: the result is the same."""

import pytest
import torch

from fedma_flwr.structure.axes import AxisExpression
from fedma_flwr.structure.unit_selection import place_units

ROWS = ["a", "a + a", "a x 3", "2 x a", "a x b", "5"]
COLUMNS = ["b", "b + 2", "4 x b", "a"]


def one_by_one(tensor, axes, units, widths, paddings):
    for dim, axis in enumerate(axes):
        if axis.groups & units.keys():
            shape = (*tensor.shape[:dim], axis.size(widths), *tensor.shape[dim + 1 :])
            places = axis.positions(units, widths)
            tensor = tensor.new_full(shape, paddings[dim]).index_copy(dim, places, tensor)
    return tensor


@pytest.mark.parametrize("paddings", [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", ROWS)
def test_blocks_and_single_units_agree(rows, columns, paddings):
    generator = torch.Generator().manual_seed(0)
    axes = AxisExpression.parse(rows), AxisExpression.parse(columns)
    for size in (1, 2, 7, 40):
        old = {"a": size, "b": 3}
        tensor = torch.randn(*(axis.size(old) for axis in axes), generator=generator)
        widths = {"a": 2 * size, "b": 5}
        places = [
            torch.arange(size),
            torch.arange(size) + size,
            torch.arange(size) * 2,
            torch.randperm(2 * size, generator=generator)[:size],
        ]
        for own in places:
            units = {"a": own, "b": torch.tensor([4, 0, 2])}
            for chosen in (units, {"a": own}):
                full = widths if "b" in chosen else {**widths, "b": 3}
                found = place_units(tensor, axes, chosen, full, paddings)
                assert torch.equal(found, one_by_one(tensor, axes, chosen, full, paddings))
