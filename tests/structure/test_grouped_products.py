"""Experts whose products are made in one call, which knows no float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedma_flwr.structure import derive_spec

pytestmark = pytest.mark.skipif(
    not hasattr(functional, "grouped_mm"), reason="this torch has no grouped_mm"
)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 16)
        self.up = nn.Parameter(torch.randn(2, 16, 24))
        self.down = nn.Parameter(torch.randn(2, 24, 8))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([3, len(x)], dtype=torch.int32)
        h = functional.grouped_mm(self.inner(x), self.up, offs=ends).relu()
        return functional.grouped_mm(h, self.down, offs=ends)


def test_units_inside_experts_are_matched() -> None:
    spec = derive_spec(Experts(), (torch.randn(8, 8),))
    assert sorted(spec.sizes.values()) == [16, 24]
    assert spec.describe("up").startswith("2, ")
