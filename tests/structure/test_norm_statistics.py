"""Running statistics: fitted in the order of the calls, and differentiable."""

import pytest
import torch
from torch import nn
from torch.nn import functional as fn

from fedma_flwr.structure import sequential_spec
from fedma_flwr.structure.proving.model_in_proof import ModelInProof
from fedma_flwr.structure.proving.norm_statistics import DifferentiableStatistics, fit_statistics
from fedma_flwr.structure.proving.training_mode_runs import training_mode


def deep(depth):
    blocks = [[nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()] for _ in range(depth)]
    layers = [layer for block in blocks for layer in block]
    return nn.Sequential(nn.Conv2d(1, 4, 1), *layers, nn.Flatten(), nn.Linear(64, 2))


def test_every_norm_reads_what_its_statistics_say():
    model = deep(20)
    in_proof = ModelInProof(sequential_spec(model), model, (torch.zeros(4, 1, 4, 4),))
    generator = torch.Generator().manual_seed(0)
    in_proof.inputs = [(torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64),)]
    fit_statistics(in_proof, generator)
    seen = []
    for module in in_proof.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(1), module.bias.fill_(0)
            module.register_forward_hook(lambda m, args, out: seen.append(out.std()))
    in_proof.run()
    assert len(seen) == 20
    assert all(0.7 < float(spread) < 1.5 for spread in seen)


def test_statistics_are_off_by_a_quarter_at_most_to_either_side():
    model = nn.Sequential(nn.Linear(6, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 2))
    in_proof = ModelInProof(sequential_spec(model), model, (torch.randn(40, 6),))
    fit_statistics(in_proof, torch.Generator().manual_seed(0))
    variance, mean = torch.var_mean(in_proof.module[0](in_proof.inputs[0][0]), 0, correction=0)
    shares = in_proof.tensors["1.running_var"] / variance - 1
    shifts = (in_proof.tensors["1.running_mean"] - mean) / variance.sqrt()
    for off in (shares, shifts):
        assert -0.25 <= float(off.min()) < -0.1
        assert 0.1 < float(off.max()) <= 0.25


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 4, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_by_running_statistics_is_written_out(shape, affine):
    x, mean, var, *scales = torch.randn(shape), torch.randn(3), torch.rand(3), *torch.randn(2, 3)
    weight, bias = scales if affine else (None, None)
    expected = fn.batch_norm(x, mean, var, weight, bias, False, 0.1, 1e-3)
    mean.requires_grad_(), var.requires_grad_()
    with DifferentiableStatistics():
        found = fn.batch_norm(x, mean, var, weight, bias, eps=1e-3)
    torch.testing.assert_close(found, expected)
    assert all(g.abs().min() > 0 for g in torch.autograd.grad(found.square().sum(), (mean, var)))


def test_norms_by_their_input_stay_as_they_are():
    x = torch.randn(5, 3, 4)
    with DifferentiableStatistics():
        batch, instance = fn.batch_norm(x, None, None, training=True), fn.instance_norm(x)
    torch.testing.assert_close(batch, fn.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(instance, fn.instance_norm(x))


def test_an_instance_norm_by_running_statistics_is_a_batch_norm():
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True).eval()
    norm.running_mean.fill_(2)
    x = torch.randn(5, 3, 4)
    with DifferentiableStatistics():
        found = norm(x)
    torch.testing.assert_close(found, norm(x))


def test_attention_drops_nothing_in_training_mode():
    q, k, v = torch.randn(3, 2, 4, 8, generator=torch.Generator().manual_seed(0)).unbind()
    with training_mode(nn.Linear(1, 1)):
        seen = fn.scaled_dot_product_attention(q, k, v, dropout_p=0.9)
    torch.testing.assert_close(seen, fn.scaled_dot_product_attention(q, k, v))
