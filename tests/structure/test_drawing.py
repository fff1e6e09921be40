"""What a proof draws: weights of a known size, inputs in range, and constants left alone."""

import math

import pytest
import torch
from torch import nn

from fedma_flwr.structure import PermutationSpec, prove_spec
from fedma_flwr.structure.proving.drawing import redraw
from fedma_flwr.structure.proving.model_in_proof import ModelInProof
from tests.structure.networks import Net

AXES = {"a.weight": "g, 6", "a.bias": "g", "again.weight": "g, 6", "again.bias": "g"}
AXES |= {"b.weight": "3, g", "b.bias": "3", "constant": "8", "follows": "g", "count": ""}


def drawn(attempt):
    """A model drawn anew: `again` is `a` once more; one buffer follows units, two do not."""
    layer = nn.Linear(6, 8)
    model = Net(
        lambda n, x: n.b((n.a(x) + n.again(x)).relu() * n.follows + n.constant.mean() * n.count),
        a=layer,
        again=layer,
        b=nn.Linear(8, 3),
        constant=torch.rand(8),
        follows=torch.linspace(1, 2, 8),
        count=torch.tensor(4),
    )
    in_proof = ModelInProof(PermutationSpec({"g": 8}, AXES), model, (torch.zeros(100, 6),))
    assert redraw(in_proof, attempt, torch.Generator().manual_seed(0))
    own = {name: t.to(in_proof.tensors[name]) for name, t in model.state_dict().items()}
    return in_proof, own


@pytest.mark.parametrize("attempt", range(4))
def test_all_is_drawn_but_constants_and_integers(attempt):
    in_proof, own = drawn(attempt)
    same = {name for name, tensor in in_proof.tensors.items() if torch.equal(tensor, own[name])}
    assert same == {"constant", "count"}
    assert torch.equal(in_proof.tensors["again.weight"], in_proof.tensors["a.weight"])


def test_the_first_draw_gives_the_models_own_weights_a_known_size():
    in_proof, own = drawn(0)
    # Every unit of a reads 6 inputs, every output 8 units; the gain is that of a ReLU.
    for name, reads in (("a.weight", 6), ("b.weight", 8)):
        size = 1.4 / math.sqrt(reads)
        torch.testing.assert_close(in_proof.tensors[name], own[name] * size / own[name].std())


def test_the_second_draw_keeps_them_nearly():
    in_proof, own = drawn(1)
    for name in ("a.weight", "b.weight"):
        moved = (in_proof.tensors[name] - own[name]).std() / own[name].std()
        assert 0.05 < float(moved) < 0.2


def test_the_third_draw_has_no_negative_weights_and_inputs():
    in_proof, _ = drawn(2)
    for tensor in (in_proof.tensors["a.weight"], in_proof.tensors["b.weight"], *in_proof.inputs[0]):
        assert tensor.min() >= 0


def test_the_last_draw_is_of_another_direction():
    in_proof, own = drawn(3)
    found = in_proof.tensors["a.weight"]
    assert 0.7 < float(found.std()) * math.sqrt(6) / 1.4 < 1.3
    assert found.min() < 0 < found.max()
    assert not torch.allclose(found / found.std(), own["a.weight"] / own["a.weight"].std())


def test_vectors_stay_near_what_they_are():
    """Biases around 0, scales around their mean: a quarter of a number that is cut off at 2."""
    in_proof, _ = drawn(3)
    assert in_proof.tensors["a.bias"].abs().max() <= 0.5
    assert (in_proof.tensors["follows"] - 1.5).abs().max() <= 0.5


@pytest.mark.parametrize(("example", "smallest"), [(0, 5), (6, 7)])
def test_tokens_are_of_all_that_the_smallest_table_and_the_example_have(example, smallest):
    model = Net(
        lambda n, x, mask: n.b(n.a(x) + n.c(x % 5) * mask[..., None]),
        a=nn.Embedding(9, 8),
        c=nn.Embedding(5, 8),
        b=nn.Linear(8, 3),
    )
    axes = {"a.weight": "9, g", "c.weight": "5, g", "b.weight": "3, g", "b.bias": "3"}
    tokens = torch.full((2, 100), example)
    mask = torch.ones(2, 100, dtype=torch.bool)
    in_proof = ModelInProof(PermutationSpec({"g": 8}, axes), model, (tokens, mask))
    assert redraw(in_proof, 3, torch.Generator().manual_seed(0))
    assert in_proof.inputs[0][0].unique().tolist() == list(range(smallest))
    assert torch.equal(in_proof.inputs[0][1], mask)


def test_a_proof_goes_back_to_the_last_draw_that_was_good():
    """Only the third draw has no negative weights: all others end in NaN."""

    def attend(net, x):
        scores = 0.1 * net.q(x) @ net.k(x).transpose(1, 2)
        return net.b(scores.softmax(-1) @ x) + net.q.weight.min().sqrt()

    model = Net(attend, q=nn.Linear(6, 4), k=nn.Linear(6, 4), b=nn.Linear(6, 2))
    axes = {"q.weight": "g, 6", "q.bias": "g", "k.weight": "g, 6", "k.bias": "g"}
    spec = PermutationSpec({"g": 4}, {**axes, "b.weight": "2, 6", "b.bias": "2"})
    proof = prove_spec(spec, model, (torch.zeros(2, 5, 6),))
    assert proof.inert == (("g", "k.bias"),)  # which softmax ignores
    assert proof.invariance < 1e-12
