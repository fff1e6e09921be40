"""Proofs run in float64 throughout, whatever precision a model's code asks for."""

import pytest
import torch
from torch import nn

from fedma_flwr.structure import derive_spec, prove_spec
from fedma_flwr.structure.proving.double_precision import InDouble
from tests.structure.networks import mlp


def float32_norm(net, x):
    wide = x.float()
    return (wide * wide.square().mean(1, keepdim=True).rsqrt()).type_as(x)


def autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.c(x).relu()


CASES = {
    "norm_in_float32": (mlp(float32_norm), torch.float32),
    "cast_to_float32": (
        mlp(lambda n, x: n.c(x.to(torch.float32)).to(x.dtype), c=nn.Linear(8, 8)), torch.float32,
    ),
    "cast_by_keyword": (
        mlp(lambda n, x: x * torch.ones(8, dtype=torch.float32)), torch.float32,
    ),
    "default_dtype": (mlp(lambda n, x: torch.ones(4, 4) @ x), torch.float32),
    "autocast": (mlp(autocast, c=nn.Linear(8, 8)), torch.float32),
    "half_model": (mlp(lambda n, x: n.c(x.half()), c=nn.Linear(8, 8)).half(), torch.float16),
    "bfloat16_model": (
        mlp(lambda n, x: n.c(x.bfloat16()), c=nn.Linear(8, 8)).bfloat16(), torch.bfloat16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_right_answer_at_full_precision(case):
    model, dtype = CASES[case]
    x = (torch.zeros(4, 6, dtype=dtype),)
    spec = derive_spec(model, x)
    assert "a" in spec.groups
    assert prove_spec(spec, model, x).invariance < 1e-12


def test_what_is_made_and_cast_inside_is_float64():
    with InDouble():
        made = [torch.zeros(2), torch.ones(2, dtype=torch.float16), torch.tensor([1.0]).half()]
        whole = torch.arange(3)
    assert [tensor.dtype for tensor in made] == [torch.float64] * 3
    assert whole.dtype == torch.int64
    assert torch.zeros(2).dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"padding": 1},
        {"stride": 2, "padding": 2},
        {"dilation": 2, "padding": (2, 1)},
        {"padding": "same"},
        {"groups": 2},
        {"groups": 180, "outputs": 180, "stride": 2, "padding": 1},
        {"groups": 180, "outputs": 180, "dilation": 2, "bias": False},
        {"groups": 180, "outputs": 360},
    ],
)
def test_a_convolution_of_many_weights_is_the_same_product(options):
    options = dict(options)
    layer = nn.Conv2d(180, options.pop("outputs", 170), 3, **options).double()
    x = torch.randn(3, 180, 6, 7, dtype=torch.float64, requires_grad=True)
    wanted = layer(x)
    with InDouble():
        found = layer(x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    (one,) = torch.autograd.grad(found.sum(), x)
    (other,) = torch.autograd.grad(wanted.sum(), x)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("inputs", "outputs", "runs"), [(8, 12, True), (8, 13, False), (9, 12, False)]
)
def test_experts_of_odd_widths_do_not_run_in_float64_either(inputs, outputs, runs):
    """Else they would look growable: torch's own product of groups wants rows of 16 bytes."""
    rows, experts = torch.randn(6, inputs).double(), torch.randn(2, inputs, outputs).double()
    offs = torch.tensor([2, 6], dtype=torch.int32)
    with InDouble():
        if runs:
            found = torch._grouped_mm(rows, experts, offs=offs)
            torch.testing.assert_close(found[:2], rows[:2] @ experts[0])
            torch.testing.assert_close(found[2:], rows[2:] @ experts[1])
        else:
            with pytest.raises(RuntimeError, match="16 bytes"):
                torch._grouped_mm(rows, experts, offs=offs)
