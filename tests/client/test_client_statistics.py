"""Running statistics of what a layer has seen: few examples, half precision, long sums."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedma_flwr.client_statistics import StatisticsHook, estimate_statistics


def layer(channels=2, *, training=True, dtype=torch.float32):
    """What the hook needs of a batch norm."""
    mean, variance = torch.zeros(channels, dtype=dtype), torch.zeros(channels, dtype=dtype)
    return SimpleNamespace(training=training, running_mean=mean, running_var=variance)


def see(*batches, **options):
    """Mean and variance after a layer has seen some batches."""
    module = layer(batches[0].shape[1], **options)
    hook = StatisticsHook()
    for batch in batches:
        hook(module, (batch,), {}, batch)
    return module.running_mean.tolist(), module.running_var.tolist()


def test_two_examples_have_an_unbiased_variance():
    # Means 2 and 5; deviations of 1 and 3 from them: squares of 2 and 18 in all, for n - 1 = 1.
    assert see(torch.tensor([[1.0, 2.0], [3.0, 8.0]])) == ([2.0, 5.0], [2.0, 18.0])
    # The same, one example at a time.
    assert see(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 8.0]])) == ([2.0, 5.0], [2.0, 18.0])


def test_a_single_example_varies_by_nothing():
    assert see(torch.tensor([[1.0, 2.0]])) == ([1.0, 2.0], [0.0, 0.0])


def test_batches_of_different_sizes_weigh_by_their_examples():
    """1, 2, 3 and then 10: mean 4, variance (9 + 4 + 1 + 36) / 3."""
    batches = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0]])
    for order in (batches, batches[::-1]):
        mean, variance = see(*order)
        assert mean == [pytest.approx(4.0)]
        assert variance == [pytest.approx(50 / 3)]


def test_positions_of_a_picture_count_as_examples():
    pictures = torch.arange(8.0).reshape(1, 2, 2, 2)  # channels 0 .. 3 and 4 .. 7
    mean, variance = see(pictures)
    assert mean == [1.5, 5.5]
    assert variance == [pytest.approx(5 / 3)] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_holds_no_squares_so_they_are_summed_in_more(dtype):
    """Squares of 512 are beyond float16; 513 is no number of bfloat16."""
    mean, variance = see(torch.tensor([[-512.0], [512.0]], dtype=dtype))
    assert (mean, variance) == ([0.0], [2 * 512.0**2])
    # 1 + 2 + ... + 4: a mean that has more digits than half precision.
    many = [torch.full((1, 1), value, dtype=dtype) for value in [256.0, *[257.0] * 6]]
    many = [batch.float().round().to(dtype) for batch in many]
    values = torch.cat(many).double()
    mean, variance = see(*many)
    assert mean == [pytest.approx(float(values.mean()), rel=1e-7)]
    assert variance == [pytest.approx(float(values.var()), rel=1e-6, abs=1e-9)]


def test_long_sums_of_single_precision_lose_nothing():
    """A first batch with squares of 2^25, to which float32 cannot add 2."""
    batches = [torch.tensor([[-4096.0], [4096.0]]), *[torch.tensor([[-1.0], [1.0]])] * 100]
    (mean,), (variance,) = see(*batches)
    assert mean == 0.0
    assert variance == torch.tensor((2**25 + 200) / 201).item()
    assert variance != torch.tensor(2**25 / 201).item()


def test_a_large_mean_does_not_drown_the_variance():
    generator = torch.Generator().manual_seed(0)
    batches = [1000.0 + 0.01 * torch.randn(50, 1, generator=generator) for _ in range(20)]
    exact = torch.cat(batches).double()
    (mean,), (variance,) = see(*batches)
    assert mean == pytest.approx(float(exact.mean()), rel=1e-7)
    assert variance == pytest.approx(float(exact.var()), rel=0.01)


def test_double_precision_is_kept():
    values = torch.tensor([[1.0], [1.0 + 2.0**-40]], dtype=torch.float64)
    (mean,), (variance,) = see(values, dtype=torch.float64)
    assert mean == 1.0 + 2.0**-41
    assert variance == pytest.approx(2.0**-81, rel=1e-9)


def test_what_is_seen_in_evaluation_does_not_count():
    module, hook = layer(1), StatisticsHook()
    hook(module, (torch.tensor([[1.0], [3.0]]),), {}, None)
    module.training = False
    hook(module, (torch.tensor([[99.0], [99.0]]),), {}, None)
    assert (module.running_mean.tolist(), module.running_var.tolist()) == ([2.0], [2.0])


def test_inputs_may_come_by_name_and_need_gradients():
    module, hook = layer(1), StatisticsHook()
    batch = torch.tensor([[1.0], [3.0]], requires_grad=True)
    hook(module, (), {"input": batch}, batch)
    assert module.running_var.tolist() == [2.0]
    assert not module.running_var.requires_grad


def test_only_named_batch_norms_are_watched():
    model = nn.ModuleDict(
        {
            "a": nn.BatchNorm1d(2),
            "b": nn.BatchNorm1d(2),
            "c": nn.InstanceNorm1d(2, track_running_stats=True),
        }
    )
    estimate_statistics(model, ["a.running_mean", "c.running_mean"])
    watched = [name for name, module in model.items() if module._forward_hooks]
    assert watched == ["a"]


def test_a_model_may_be_a_batch_norm_itself():
    model = nn.BatchNorm1d(1, momentum=0.5)
    estimate_statistics(model, ["running_mean"])
    model(torch.tensor([[1.0], [3.0]]))
    model(torch.tensor([[5.0], [7.0]]))
    assert model.running_mean.tolist() == [4.0]
    assert model.running_var.tolist() == [pytest.approx(20 / 3)]
