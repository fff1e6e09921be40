"""Signatures: rows by hand, and write-back with gates and products."""

import torch

from fedma_flwr.structure import PermutationSpec, set_signature, signature, signature_tensors

LSTM = PermutationSpec(
    groups={"emb": 2, "h": 3},
    axes={
        "emb.weight": "5, emb",
        "lstm.weight_ih_l0": "h + h + h + h, emb",
        "lstm.weight_hh_l0": "h + h + h + h, h",
        "lstm.bias_ih_l0": "h + h + h + h",
        "head.weight": "5, h",
    },
    outputs={"emb.weight": 1},
)
HEADS = PermutationSpec(
    groups={"heads": 2, "v": 3},
    axes={"value.weight": "heads x v, 4", "norm": "heads x v", "head.weight": "2, heads x v"},
)


def state_of(spec):
    shapes = spec.shapes()
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_recurrent_weights_wait_for_their_own_group():
    assert signature_tensors(LSTM, "h", frozenset({"emb"})) == (
        "lstm.weight_ih_l0",
        "lstm.bias_ih_l0",
    )


def test_a_row_holds_all_gates_of_a_unit():
    state = state_of(LSTM)
    rows = signature(LSTM, "h", ("lstm.weight_ih_l0", "lstm.bias_ih_l0"), state)
    weight, bias = state["lstm.weight_ih_l0"], state["lstm.bias_ih_l0"]
    expected = torch.cat([weight[1], weight[4], weight[7], weight[10], bias[[1, 4, 7, 10]]])
    assert rows.shape == (3, 12)
    assert torch.equal(rows[1], expected)


def test_an_output_axis_other_than_the_first():
    state = state_of(LSTM)
    rows = signature(LSTM, "emb", signature_tensors(LSTM, "emb", frozenset()), state)
    assert torch.equal(rows, state["emb.weight"].T)


def test_a_product_gives_one_block_for_all_its_other_places():
    state = state_of(HEADS)
    rows = signature(HEADS, "v", ("value.weight",), state)
    assert torch.equal(rows[1], state["value.weight"][[1, 4]].reshape(-1))


def test_write_back_round_trip():
    for spec, group in ((LSTM, "h"), (LSTM, "emb"), (HEADS, "heads"), (HEADS, "v")):
        state = state_of(spec)
        names = signature_tensors(spec, group, frozenset(spec.groups) - {group})
        rows = signature(spec, group, names, state)
        empty = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        set_signature(spec, group, names, empty, rows)
        assert names
        assert all(torch.equal(empty[name], state[name]) for name in names)


def test_rows_follow_a_permutation():
    state = state_of(HEADS)
    order = torch.tensor([2, 0, 1])
    names = signature_tensors(HEADS, "v", frozenset({"heads"}))
    rows = signature(HEADS, "v", names, HEADS.permute(state, {"v": order}))
    assert torch.equal(rows, signature(HEADS, "v", names, state)[order])
