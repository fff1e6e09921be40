"""`linear_head`: which heads are one linear layer, and why others are none."""

import re

import pytest

from fedma_flwr.structure import LinearHead, PermutationSpec, linear_head

HIDDEN = {"a.weight": "h, 2"}


def head_of(outputs=None, **axes):
    own = {name.replace("_", "."): text for name, text in axes.items()}
    return linear_head(PermutationSpec({"h": 3}, {**HIDDEN, **own}, outputs, head=tuple(own)))


@pytest.mark.parametrize(
    ("axes", "bias"),
    [
        ({"b_weight": "2, h", "b_bias": "2"}, "b.bias"),
        ({"b_weight": "4, h"}, None),
        ({"b_weight": "1, h", "b_bias": "1"}, "b.bias"),
        ({"b_weight": "4, h x 9", "b_bias": "4"}, "b.bias"),
        ({"b_weight": "4, h, 1, 1", "b_bias": "4"}, "b.bias"),
    ],
)
def test_one_linear_layer(axes, bias):
    assert head_of(**axes) == LinearHead("b", "b.weight", bias)


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"b_weight": "4, h", "c_weight": "4, h"}, "not one layer.*b.weight, c.weight"),
        ({"b_weight": "4, h", "b_other": "4, h"}, "other tensors"),
        ({"b_weight": "4, h", "b_bias": "4", "b_scale": "4"}, "other tensors"),
        ({"b_weight": "4, h", "b_scale": ""}, "other tensors.*b.weight, b.scale"),
        ({"b_weight": "4, h", "b_bias": "4", "b_count": ""}, "other tensors"),
        ({"b_bias": "4", "c_bias": "h"}, "not one layer"),
        ({"b_bias": "4"}, "other tensors"),
        ({"b_weight": "4, h, 3, 1"}, "neither"),
        ({"b_weight": "4, h, 1, 3"}, "neither"),
        ({"b_weight": "4, 2, h"}, "neither"),
    ],
)
def test_what_is_no_linear_layer(axes, reason):
    assert re.search(reason, head_of(**axes))


def test_a_layer_whose_outputs_lie_elsewhere_is_none():
    assert "neither" in head_of(outputs={"b.weight": 1}, b_weight="h, 4")
