"""`sequential_spec`: convolutions, batch norms and linear layers in their order."""

import pytest
from torch import nn

from fedma_flwr.structure import SpecError, sequential_spec


def test_convolutions_batch_norm_and_flatten():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    )
    spec = sequential_spec(net)
    assert spec.sizes == {"0.": 4}
    assert spec.describe("0.weight") == "0., 1, 3, 3"
    assert spec.describe("1.running_var") == "0."
    assert spec.describe("1.num_batches_tracked") == ""
    assert spec.describe("4.weight") == "2, 0. x 9"
    assert spec.statistics == ("1.running_mean", "1.running_var")
    spec.check(net.state_dict())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((nn.Linear(2, 3), nn.LSTM(3, 2), nn.Linear(2, 1)), r"'1' \(LSTM\)"),
        ((nn.Linear(2, 3), nn.Linear(4, 1)), "'1' reads 4 inputs, no multiple of the 3 units"),
        ((nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), "'0' is a grouped convolution"),
        ((nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), "'1' is a gr"),
        ((nn.Linear(2, 3), nn.BatchNorm1d(4), nn.Linear(3, 1)), "'1' does not follow a layer"),
    ],
)
def test_what_it_does_not_know_is_refused(layers, message):
    with pytest.raises(SpecError, match=message):
        sequential_spec(nn.Sequential(*layers))
